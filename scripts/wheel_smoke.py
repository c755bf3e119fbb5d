"""Build the source archive and, from it, the wheel; import every module from the installed wheel.

Trainers, rewards and launchers reach the wheel through symbolic links, and setuptools silently leaves out
folders without `__init__.py`. So this compares the wheel with the source tree, file by file, and then imports
every module from the installed wheel, outside the tree. Needs no network.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("sleep_trl", "trainers", "rewards", "launch")
METADATA = ("pyproject.toml", "LICENSE", "README.md", "MANIFEST.in", "constraints.txt")
SHIPPED = (".py", ".j2", ".typed", ".yaml", ".txt", ".jsonl")

# Runs in a fresh interpreter: argv is the folder the wheel was installed to.
IMPORT_ALL = """
import importlib, pkgutil, sys
from pathlib import Path

target = Path(sys.argv[1])
sys.path.insert(0, str(target))
extras = {"vllm", "ray", "deepspeed"}  # optional, and absent from the development environment
import sleep_trl

names = ["sleep_trl"]
def fail(name):
    raise
names += [m.name for m in pkgutil.walk_packages(sleep_trl.__path__, "sleep_trl.", onerror=fail)]
for name in names:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in extras:
            raise
        print(f"not imported: {name} (needs the extra {error.name.partition('.')[0]!r})")
        continue
    assert Path(module.__file__).is_relative_to(target), f"{name} came from {module.__file__}"
print("\\n".join(names), file=open(sys.argv[2], "w"))
"""


def copy_sources(destination: Path) -> None:
    """Copy what a build reads, so that a stale build/ in the checkout cannot reach the wheel."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, destination / name, symlinks=True, ignore=ignore)
    for name in METADATA:
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, destination / name)


def source_files() -> set[str]:
    """Return what the wheel has to hold, as paths below `sleep_trl`, links resolved into it."""
    found = set()
    for top in SOURCES:
        prefix = Path() if top == "sleep_trl" else Path(top)
        for path in (ROOT / top).rglob("*"):
            if path.suffix in SHIPPED and path.is_file() and "__pycache__" not in path.parts:
                found.add((prefix / path.relative_to(ROOT / top)).as_posix())
    return found


def module_name(path: str) -> str:
    """Return the dotted name of a file below `sleep_trl`."""
    parts = ["sleep_trl", *Path(path).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command, quiet unless it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        shown = " ".join(str(part) for part in command if "\n" not in str(part))
        sys.exit(f"{shown} failed\n{done.stdout}{done.stderr}")
    if "not imported" in done.stdout:
        print(done.stdout, end="")


def main() -> None:
    """Build, compare, import; exit with a message that names what is missing."""
    expected = source_files()
    if not any(path.endswith(".py") for path in expected):
        sys.exit("no modules found in the source tree")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        source, dist, target, imported = (work / n for n in ("source", "dist", "target", "names"))
        source.mkdir()
        copy_sources(source)
        python = sys.executable
        run(python, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=work)
        (wheel,) = dist.glob("*.whl")
        pip = (python, "-m", "pip", "install", "-qq", "--disable-pip-version-check")
        run(*pip, "--no-deps", "--no-index", "--target", target, wheel, cwd=work)

        package = target / "sleep_trl"
        if missing := sorted(path for path in expected if not (package / path).is_file()):
            sys.exit("in the source tree, not in the wheel: " + ", ".join(missing))
        run(python, "-I", "-c", IMPORT_ALL, target, imported, cwd=work)
        names = set(imported.read_text().split())
        modules = {module_name(path) for path in expected if path.endswith(".py")}
        if unseen := sorted(modules - names):
            sys.exit("in the wheel, but not importable as a package: " + ", ".join(unseen))
        print(f"{wheel.name}: {len(expected)} files, {len(names)} modules imported")


if __name__ == "__main__":
    main()
