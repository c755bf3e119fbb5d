"""The layout: which package may import which, under which names, and how light an import is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("rewards", "trainers", "launch")
TOPS = (*LINKED, "cli")  # folders of sleep_trl that are no part of the core
LAYERS = ("core", *TOPS)  # each imports itself and what stands before it
HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "vllm", "ray", "deepspeed"}


def modules(layer: str) -> dict[str, Path]:
    """Return the modules of a layer: dotted name -> file, links named through `sleep_trl`."""
    folder = ROOT / {"core": "sleep_trl", "cli": "sleep_trl/cli"}.get(layer, layer)
    prefix = ("sleep_trl",) if layer == "core" else ("sleep_trl", layer)
    found = {}
    for path in sorted(folder.rglob("*.py")):
        below = path.relative_to(folder).with_suffix("").parts
        if layer == "core" and below[0] in TOPS:
            continue
        below = below[:-1] if below[-1] == "__init__" else below
        found[".".join((*prefix, *below))] = path
    return found


def layer_of(name: str) -> str | None:
    """Return the layer a dotted name belongs to; None for what is not ours."""
    parts = name.split(".")
    if parts[0] != "sleep_trl":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in TOPS else "core"


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import in a syntax tree, also of those in functions.

    `from a import b` yields `a.b`, since b can be a module; relative names are resolved.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            keep = len(parts) - node.level + (1 if is_package else 0)
            base = [*(parts[:keep] if node.level else []), *(node.module or "").split(".")]
            base = [part for part in base if part]
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def violations(layer: str, name: str, source: str, is_package: bool = False) -> list[str]:
    """Return one line for each import that a module of this layer must not make."""
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    found = []
    for line, target in imported_names(ast.parse(source), name, is_package):
        if target.split(".")[0] in LINKED:
            found.append(f"{name}:{line} imports {target}; its name is sleep_trl.{target}")
        elif (other := layer_of(target)) is not None and other not in allowed:
            found.append(f"{name}:{line} imports {target}; {layer} may import {', '.join(allowed)}")
    return found


def imports_at_start(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the import statements that run when a module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imports_at_start(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "handlers", "finalbody"):
                yield from imports_at_start(getattr(node, field, []))


def run_isolated(code: str) -> str:
    """Run code in a fresh interpreter at the root and return what it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer: str) -> None:
    found = modules(layer)
    assert found, f"no modules found in the layer {layer}"
    wrong = []
    for name, path in found.items():
        if name == "sleep_trl":  # imports from every layer, but only for type checkers and on first use
            continue
        wrong += violations(layer, name, path.read_text("utf-8"), path.stem == "__init__")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["tests", "examples", "benchmarks", "scripts"])
def test_links_have_one_name(folder: str) -> None:
    paths = sorted((ROOT / folder).rglob("*.py"))
    if folder in ("tests", "examples"):
        assert paths, f"no modules found in {folder}/"
    wrong = []
    for path in paths:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        wrong += violations(LAYERS[-1], name, path.read_text("utf-8"), path.stem == "__init__")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("core", "from sleep_trl import trainers"),
        ("core", "from .trainers.dreaming import loss"),
        ("core", "def late():\n    import sleep_trl.rewards"),
        ("rewards", "import sleep_trl.trainers.dreaming"),
        ("trainers", "from sleep_trl.launch import sleep"),
        ("launch", "from sleep_trl import cli"),
        ("launch", "import rewards"),
        ("launch", "from trainers.dreaming import loss"),
    ],
)
def test_wrong_import_is_seen(layer: str, source: str) -> None:
    name = "sleep_trl.night" if layer == "core" else f"sleep_trl.{layer}.module"
    assert len(violations(layer, name, source)) == 1


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("core", "from .memory import attach"),
        ("rewards", "from sleep_trl.config import RunConfig"),
        ("trainers", "from ..rewards import registry"),
        ("trainers", "import sleep_trl.memory, torch"),
        ("launch", "from sleep_trl.trainers.dreaming import DreamingTrainer"),
        ("cli", "from ..launch import sleep"),
    ],
)
def test_right_import_passes(layer: str, source: str) -> None:
    name = "sleep_trl.night" if layer == "core" else f"sleep_trl.{layer}.module"
    assert violations(layer, name, source) == []


def test_config_and_what_it_imports_are_light() -> None:
    ours = modules("core")
    queue, seen, heavy = ["sleep_trl.config"], set(), []
    assert queue[0] in ours, "sleep_trl/config not found"
    while queue:
        name = queue.pop()
        if name in seen or name not in ours:
            continue
        seen.add(name)
        queue.append(name.rpartition(".")[0])  # importing a module runs its package first
        path = ours[name]
        for statement in imports_at_start(ast.parse(path.read_text("utf-8")).body):
            for line, target in imported_names(statement, name, path.stem == "__init__"):
                queue += [target, target.rpartition(".")[0]]
                if target.split(".")[0] in HEAVY:
                    heavy.append(f"{name}:{line} imports {target}")
    assert seen >= {"sleep_trl", "sleep_trl.config"}
    assert not heavy, "\n".join(heavy)


@pytest.mark.parametrize(
    "module",
    ["sleep_trl", "sleep_trl.config", "sleep_trl.wake", "sleep_trl.daemon", "sleep_trl.doctor", "sleep_trl.cli"],
)
def test_fresh_import_is_light(module: str) -> None:
    loaded = run_isolated(f"import {module}, sys; print(*sys.modules)").split()
    assert module in loaded
    assert not HEAVY.intersection(loaded)


@pytest.mark.parametrize("name", LINKED)
def test_package_is_a_link_to_the_folder_beside_it(name: str) -> None:
    link = ROOT / "sleep_trl" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for layer in LAYERS for path in modules(layer).values()}
    assert folders
    bare = [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()]
    assert not bare, "without __init__.py these are left out of the wheel: " + ", ".join(bare)


@pytest.mark.parametrize("name", ["accelerate", "ray"])
def test_folder_of_settings_hides_no_library(name: str) -> None:
    # `python launch/sleep.py` puts launch/ first on the path: with an __init__.py in it,
    # launch/accelerate would be imported in place of the library.
    assert list((ROOT / "launch").glob("*/*.yaml"))
    assert not list((ROOT / "launch" / name).rglob("*.py"))
