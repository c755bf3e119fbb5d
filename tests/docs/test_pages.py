"""The pages of documentation name what exists: files, symbols, options, rooms, and the targets of links."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from sleep_trl.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"runs", "build", "dist"}
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*/README.md")),
    "benchmarks/README.md",
]
PAGES = [page for page in PAGES if (ROOT / page).exists()]
HISTORY = "CHANGELOG.md"  # names what was renamed and removed, so only its links are checked
PLACEHOLDERS = {
    "path/to/file.py",
    "monday/night.yaml",
    "my.yaml",
    "package.module",
    "mine.py",
    "NAME.j2",
    "NAME.ask.j2",
    "FILE.j2",
}
OTHERS = {"frequency_penalty"}  # a parameter of OpenAI's API that the server of transformers converts

NAMES_OF_TRL = "docs/trl_arguments.md"  # compared with TRL in test_tables.py

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"[\w.-]*(?:/[\w.-]+)*\.(?:py|yaml|j2|toml|md|txt)\b")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?=\(.*\)$|$)")
OPTION = re.compile(r"--([a-z_]+\.[a-z_]+)\b")


@cache
def files() -> tuple[str, ...]:
    """Return the checkout's files, relative to the root."""
    tops = [path for path in ROOT.iterdir() if path.name[0] != "." and path.name not in GENERATED]
    found = [path for top in tops for path in (top.rglob("*") if top.is_dir() else [top]) if path.is_file()]
    return tuple(f"/{path.relative_to(ROOT)}" for path in found if "__pycache__" not in path.parts)


@cache
def words() -> frozenset[str]:
    """Return the words of the code, its tests and settings, without this file, and of committed results, their
    names included."""
    found: set[str] = set()
    for name in files():
        is_code = name.endswith((".py", ".yaml", ".j2", ".toml", "Makefile")) and not name.startswith("/tests/docs/")
        if is_code or name.startswith("/benchmarks/results/"):
            found |= set(re.findall(r"\w+", name + (ROOT / name[1:]).read_text("utf-8")))
    return frozenset(found)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def option_exists(option: str) -> bool:
    section, name = option.split(".")
    field = RunConfig.model_fields.get(section)
    kind = field.annotation if field else None
    return isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields


def missing_links(page: str, text: str) -> list[str]:
    """Return the relative links whose file or anchor does not exist."""
    missing = []
    for target in LINK.findall(FENCED.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.resolve())):
            missing.append(target)
    return missing


def missing_files(text: str) -> list[str]:
    """Return the files named in inline code, or in a block by a path with a folder, that do not exist."""
    named = {match for code in INLINE.findall(FENCED.sub("", text)) for match in FILE.findall(code)}
    named |= {match for block in FENCED.findall(text) for match in FILE.findall(block) if "/" in match}
    named = {name for name in named if name.strip(".") and not name.startswith((".", "/")) and name not in PLACEHOLDERS}
    return sorted(name for name in named if not any(path.endswith(f"/{name}") for path in files()))


def missing_names(text: str) -> list[str]:
    """Return the symbols in inline code of which some part occurs nowhere in the code."""
    named = {match.group() for code in INLINE.findall(FENCED.sub("", text)) if (match := NAME.match(code))}
    named -= PLACEHOLDERS | OTHERS
    return sorted(name for name in named if not FILE.fullmatch(name) and not set(name.split(".")) <= words())


@pytest.mark.parametrize("page", [*PAGES, HISTORY])
def test_links_lead_somewhere(page: str) -> None:
    assert missing_links(page, text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    assert missing_files(text_of(page)) == []


@pytest.mark.parametrize("page", sorted({*PAGES} - {NAMES_OF_TRL}))
def test_named_symbols_exist(page: str) -> None:
    assert missing_names(text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_named_options_exist(page: str) -> None:
    named = set(OPTION.findall(text_of(page)))
    assert sorted(option for option in named if not option_exists(option)) == []


def test_a_missing_file_symbol_option_or_link_is_found() -> None:
    text = "See `night/gone.py`, `Gone.now(x)`, [there](gone.md), [here](README.md#gone) and `levels.when_full`.\n"
    assert missing_files(text) == ["night/gone.py"]
    assert missing_names(text.replace("Gone", "Qzx")) == ["Qzx.now"]
    assert missing_links("README.md", text) == ["gone.md", "README.md#gone"]
    assert option_exists("levels.when_full") and not option_exists("levels.gone") and not option_exists("gone.now")


def rooms() -> tuple[str, ...]:
    """Return the rooms, from the bottom up."""
    spec = importlib.util.spec_from_file_location("import_graph", ROOT / "scripts" / "import_graph.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(module.ROOMS)


def test_readme_has_a_phrase_for_every_room_and_folder() -> None:
    tree = text_of("README.md").split("## What is where")[1].split("```")[1]
    phrases = dict(re.findall(r"^ *([\w.]+)/ +(\S.*)$", tree, re.MULTILINE))
    tops = {
        path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in GENERATED
    }
    tops = {name for name in tops if not name.endswith(".egg-info") and name != "__pycache__"}
    inside = {path.parent.name for path in (ROOT / "sleep_trl").glob("*/__init__.py")}
    assert set(rooms()) == inside
    assert set(phrases) == tops | inside


def test_architecture_lists_the_rooms_from_the_top_down() -> None:
    table = text_of("docs/architecture.md").split("## Rooms")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [*reversed(rooms())]
