"""The layout: which room may import which, under which names, how light an import is, and what README says of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts.loading import load_script

ROOT = Path(__file__).resolve().parent.parent
graph = load_script("import_graph")
HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "vllm", "ray", "deepspeed"}


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


def write_package(root: Path, files: dict[str, str]) -> Path:
    """Write modules below `root`, each folder with an `__init__.py`."""
    for name, source in files.items():
        path = root / name
        for folder in [parent for parent in path.parents if root in parent.parents]:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
        path.write_text(source)
    return root


def test_no_circle_no_upward_import_no_unknown_room() -> None:
    modules = graph.find_modules()
    assert len(modules) > 100
    assert graph.find_problems(graph.read_graph(modules)) == []


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"sleep_trl/config/a.py": "from . import b", "sleep_trl/config/b.py": "from .a import x"},
            "circle: sleep_trl.config.a <-> sleep_trl.config.b",
        ),
        (
            {"sleep_trl/runs/a.py": "def late():\n    from ..night.b import x", "sleep_trl/night/b.py": ""},
            "upward: sleep_trl.runs.a imports sleep_trl.night.b, but runs stands below night",
        ),
        (
            {"sleep_trl/night/a.py": "import sleep_trl.launch.b", "launch/b.py": ""},
            "upward: sleep_trl.night.a imports sleep_trl.launch.b, but night stands below launch",
        ),
        (
            {"rewards/a.py": "from sleep_trl.trainers import b", "trainers/b.py": ""},
            "upward: sleep_trl.rewards.a imports sleep_trl.trainers.b, but rewards stands below trainers",
        ),
        ({"sleep_trl/attic/a.py": ""}, "sleep_trl.attic.a: the room 'attic' has no place in ROOMS"),
        ({"sleep_trl/flat.py": ""}, "sleep_trl.flat: the room 'flat' has no place in ROOMS"),
    ],
)
def test_a_planted_problem_is_found(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    modules = graph.find_modules(write_package(tmp_path, files))
    assert problem in graph.find_problems(graph.read_graph(modules))


@pytest.mark.parametrize(
    "files",
    [
        {"sleep_trl/night/a.py": "from ..runs import b", "sleep_trl/runs/b.py": ""},
        {"trainers/a.py": "from ..rewards.b import x", "rewards/b.py": ""},
        {"sleep_trl/runs/a.py": "if TYPE_CHECKING:\n    from ..night import b", "sleep_trl/night/b.py": ""},
    ],
)
def test_right_imports_pass(tmp_path: Path, files: dict[str, str]) -> None:
    modules = graph.find_modules(write_package(tmp_path, files))
    assert graph.find_problems(graph.read_graph(modules)) == []


def test_config_and_what_it_imports_are_light() -> None:
    ours = graph.find_modules()
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
            for target in graph.targets_of(statement, name, path):
                queue += [target, target.rpartition(".")[0]]
                if target.split(".")[0] in HEAVY:
                    heavy.append(f"{name}:{statement.lineno} imports {target}")
    assert seen >= {"sleep_trl", "sleep_trl.config"}
    assert not heavy, "\n".join(heavy)


@pytest.mark.parametrize(
    "module",
    ["sleep_trl", "sleep_trl.config", "sleep_trl.wake", "sleep_trl.daemon", "sleep_trl.doctor", "sleep_trl.cli"],
)
def test_fresh_import_is_light(module: str) -> None:
    command = [sys.executable, "-c", f"import {module}, sys; print(*sys.modules)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert module in loaded
    assert not HEAVY.intersection(loaded)


@pytest.mark.parametrize("name", graph.LINKED)
def test_package_is_a_link_to_the_folder_next_to_it(name: str) -> None:
    link = ROOT / "sleep_trl" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in graph.find_modules().values()}
    bare = [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()]
    assert not bare, "without __init__.py these are left out of the wheel: " + ", ".join(bare)


@pytest.mark.parametrize("name", ["accelerate", "ray"])
def test_folder_of_settings_hides_no_library(name: str) -> None:
    # `python launch/sleep.py` puts launch/ first on the path: with an __init__.py in it,
    # launch/accelerate would be imported in place of the library.
    assert list((ROOT / "launch").glob("*/*.yaml"))
    assert not list((ROOT / "launch" / name).rglob("*.py"))


def test_sleep_trl_holds_rooms_only_and_readme_says_what_each_is() -> None:
    found = {path.name for path in (ROOT / "sleep_trl").iterdir()} - {"__pycache__"}
    assert found == {*graph.ROOMS, "__init__.py", "py.typed"}
    tree = (ROOT / "README.md").read_text("utf-8").partition("## What is where")[2]
    missing = [room for room in graph.ROOMS if not re.search(rf"\b{room}/ +\w+", tree)]
    assert not missing, f"README's tree has no phrase for {', '.join(missing)}"


def find_bare_names(path: Path, root: Path = ROOT) -> list[str]:
    """Return one line for each import of a linked folder that leaves out `sleep_trl.`: a second copy of its modules."""
    name = ".".join(("sleep_trl", *path.relative_to(root).with_suffix("").parts))
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in graph.targets_of(node, name, path):
                if target.split(".")[0] in graph.LINKED:
                    found.append(f"{path.name}:{node.lineno} imports {target}; its name is sleep_trl.{target}")
    return found


@pytest.mark.parametrize(
    "folder", ["sleep_trl", "trainers", "rewards", "launch", "tests", "examples", "benchmarks", "scripts"]
)
def test_linked_folders_have_one_name(folder: str) -> None:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, f"no modules found in {folder}/"
    wrong = [line for path in paths for line in find_bare_names(path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import rewards", 1),
        ("def late():\n    from trainers.dreaming import loss", 1),
        ("import torch, launch.sleep", 1),
        ("from sleep_trl.trainers.dreaming import DreamingTrainer", 0),
        ("from ..rewards import registry", 0),
        ("from .launch import sleep", 0),
    ],
)
def test_a_bare_name_is_found(tmp_path: Path, source: str, count: int) -> None:
    path = tmp_path / "night" / "module.py"
    path.parent.mkdir()
    path.write_text(source)
    assert len(find_bare_names(path, tmp_path)) == count
