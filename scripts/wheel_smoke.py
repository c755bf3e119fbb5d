"""Build the source archive and, from it, the wheel; import every module from the installed wheel.

Some packages lie elsewhere in the repository than in the wheel (see setup.py), and setuptools silently leaves out
folders without `__init__.py`. So this compares the wheel with the source tree, file by file, reads its metadata
strictly, and then imports every module from the installed wheel, outside the tree. It builds from a copy without
symbolic links, as a clone on Windows may be. Needs no network.

With --fresh it also does what a new user does: in an empty virtual environment it installs the wheel and what it
requires from the package index, and in an empty folder it runs `sleep-trl demo`, `sleep-trl doctor` and
`accelerate launch -m sleep_trl.launch.sleep`. With --output FOLDER it keeps archive and wheel.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("trainers", "rewards", "launch")
QUICKSTART = {"examples/quickstart": "data/shipped/quickstart"}
PLACES = {"sleep_trl": "", **{name: name for name in LINKED}, **QUICKSTART}  # in the repository -> below sleep_trl
SHIPPED = (".py", ".j2", ".typed", ".yaml", ".txt", ".jsonl", ".json", ".safetensors")
GENERATED = ("build", "dist", "runs", "site")

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
    assert Path(module.__file__ or target).is_relative_to(target), f"{name} came from {module.__file__}"
print("\\n".join(names), file=open(sys.argv[2], "w"))
"""


def copy_sources(destination: Path, root: Path = ROOT) -> None:
    """Copy what a build reads, so that a stale build/ in the checkout cannot reach the wheel. Links become what git
    writes where there are none: files that hold the link's target."""
    others = [path.name for path in root.iterdir() if path.name in GENERATED or path.name.startswith(".")]

    def ignore(folder: str, names: list[str]) -> list[str]:
        found = [name for name in names if name == "__pycache__" or name.endswith(".egg-info")]
        return found + others if Path(folder) == root else found

    shutil.copytree(root, destination, symlinks=True, ignore=ignore)
    for link in filter(Path.is_symlink, list(destination.rglob("*"))):
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)


def source_files() -> set[str]:
    """Return what the wheel has to hold, as paths below `sleep_trl`."""
    found = set()
    for top, place in PLACES.items():
        for path in (ROOT / top).rglob("*"):
            inside = path.relative_to(ROOT / top)
            if top == "sleep_trl" and inside.parts[0] in LINKED:
                continue  # the symbolic link
            if path.suffix in SHIPPED and path.is_file() and "__pycache__" not in path.parts:
                found.add((place / inside).as_posix())
    return found


def module_name(path: str) -> str:
    """Return the dotted name of a file below `sleep_trl`."""
    parts = ["sleep_trl", *Path(path).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run(*command: str | Path, cwd: Path, **options: object) -> str:
    """Run a command, quiet unless it fails, and return what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        shown = " ".join(str(part) for part in command if "\n" not in str(part))
        sys.exit(f"{shown} failed\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def say(step: str) -> None:
    """Print a step before it begins: some take minutes."""
    print(f"== {step}", flush=True)


def check_metadata(wheel: Path) -> None:
    """Exit unless the wheel's metadata is valid, with README as its description and the package's version."""
    sys.path.insert(0, str(ROOT))
    from sleep_trl import __version__

    with zipfile.ZipFile(wheel) as opened:
        [name] = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Metadata.from_email(opened.read(name), validate=True)
    if str(metadata.version) != __version__:
        sys.exit(f"the wheel is {metadata.version}, but sleep_trl.__version__ is {__version__}")
    if (metadata.description or "").strip() != (ROOT / "README.md").read_text("utf-8").strip():
        sys.exit("the wheel's description is not README.md")


def check_files(wheel: Path, work: Path) -> None:
    """Exit unless the wheel holds every file of the source tree, and every module can be imported from it."""
    expected = source_files()
    if not any(path.endswith(".py") for path in expected):
        sys.exit("no modules found in the source tree")
    target, imported = work / "target", work / "names"
    pip = (sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--no-index", "--target", target, wheel, cwd=work)
    package = target / "sleep_trl"
    if missing := sorted(path for path in expected if not (package / path).is_file()):
        sys.exit("in the source tree, not in the wheel: " + ", ".join(missing))
    print(run(sys.executable, "-I", "-c", IMPORT_ALL, target, imported, cwd=work), end="")
    names = set(imported.read_text().split())
    modules = {module_name(path) for path in expected if path.endswith(".py")}
    if unseen := sorted(modules - names):
        sys.exit("in the wheel, but not importable as a package: " + ", ".join(unseen))
    print(f"{wheel.name}: {len(expected)} files, {len(names)} modules imported")


def try_as_a_new_user(wheel: Path, work: Path) -> None:
    """Install the wheel with what it requires into an empty environment, and run two nights in an empty folder."""
    say("creating an empty environment")
    environment, folder = work / "environment", work / "empty"
    venv.create(environment, with_pip=True)
    folder.mkdir()
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    variables["PATH"] = os.pathsep.join([str(programs), variables["PATH"]])

    def call(*command: str) -> str:
        say(" ".join(command))
        begun = time.monotonic()
        printed = run(str(programs / command[0]), *command[1:], cwd=folder, env=variables)
        print(f"{time.monotonic() - begun:6.1f} s", flush=True)
        return printed

    call("python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", str(wheel))
    where = "from sleep_trl.data.quickstart import QUICKSTART; print(QUICKSTART)"
    town = Path(call("python", "-c", where).strip())
    night = ("--config", str(town / "config.yaml"), "--memories", str(town / "memories_night2.jsonl"))
    call("sleep-trl", "demo")
    call("sleep-trl", "doctor", *night, "--continue_from", "runs/demo", "--output_dir", "runs/second")
    launch = ("accelerate", "launch", "-m", "sleep_trl.launch.sleep")
    call(*launch, *night, "--continue_from", "runs/demo", "--output_dir", "runs/second", "--seeding.steps", "20")
    for run_folder in ("demo/night-001", "second"):
        if not (folder / "runs" / run_folder / "model" / "model.safetensors").is_file():
            sys.exit(f"runs/{run_folder} has no model")


def main() -> None:
    """Build, compare, import; exit with a message that names what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="also install it into an empty environment and run it")
    parser.add_argument("--output", type=Path, help="folder to keep archive and wheel in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        source, dist = work / "source", work / "dist"
        say("building archive and wheel from a copy of the sources")
        copy_sources(source)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=work)
        (wheel,) = dist.glob("*.whl")
        say(f"checking {wheel.name}: metadata, files, and that every module can be imported")
        check_metadata(wheel)
        check_files(wheel, work)
        if options.fresh:
            try_as_a_new_user(wheel, work)
        if options.output:
            shutil.copytree(dist, options.output, dirs_exist_ok=True)
            say(f"archive and wheel are in {options.output}/")


if __name__ == "__main__":
    main()
