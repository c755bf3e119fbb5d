"""Write the pages of the site into build/docs, from which `mkdocs.yml` builds it: `make docs`.

- Pages that stand elsewhere in the repository (README, benchmarks, examples) join those of docs/.
- Links follow: to a page of the site, to a copy of a file, or, for a folder, to nothing.
- `configuration.md` gets the options of `RunConfig`, which are read from the code.
- Lists are indented as Python-Markdown wants, which is more than GitHub does.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "docs"
sys.path.insert(0, str(ROOT))

from sleep_trl.config import RunConfig  # noqa: E402  (imports no torch)
from sleep_trl.config.command_line import options  # noqa: E402
from sleep_trl.config.option_help import bounds, choices_of, description, shown, type_in_words  # noqa: E402

OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/almanac/README.md": "almanac.md",
    "examples/custom_reward/README.md": "custom_reward.md",
    "examples/dreaming/README.md": "dreaming_examples.md",
    "examples/pretrain_tiny/README.md": "pretrain_tiny.md",
    "examples/quickstart/README.md": "quickstart_town.md",
    "examples/recipes/README.md": "recipes.md",
}
"""Pages outside docs/, by the name that they have in the site."""

OPTIONS = "<!-- the options stand here in the built site -->"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```")
BLOCK = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"^( *)([-*]|\d+\.) +")


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for source in (ROOT / "docs").iterdir():
        if source.suffix != ".md":
            shutil.copy(source, PAGES)
    for source, name in pages().items():
        markdown = (ROOT / source).read_text("utf-8").replace(OPTIONS, "\n".join(options_as_tables()))
        parts = BLOCK.split(markdown)  # text, block, text, ...
        parts[::2] = [LINK.sub(lambda link: _moved(link, source), text) for text in parts[::2]]  # noqa: B023
        lines = _indented("".join(parts).splitlines())
        (PAGES / name).write_text("\n".join(lines) + "\n", "utf-8")


def pages() -> dict[str, str]:
    """Return the pages of the site: path in the repository -> name in the site."""
    return OUTSIDE | {f"docs/{path.name}": path.name for path in sorted((ROOT / "docs").glob("*.md"))}


def _moved(link: re.Match[str], source: str) -> str:
    """Return a relative link, which holds in the repository, as it holds in the site. Copies the file that it names."""
    mark, label, target = link.groups()
    name, hash_, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target) or not name:
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
    if page := pages().get(path):
        return f"{mark}[{label}]({page}{hash_}{anchor})"
    if (ROOT / path).is_dir():
        return label
    if path.startswith("docs/"):
        return f"{mark}[{label}]({path.removeprefix('docs/')})"
    copy = PAGES / "files" / path
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / path, copy)
    return f"{mark}[{label}](files/{path})"


def _indented(lines: list[str]) -> Iterator[str]:
    """Yield lines in which a list item and what belongs to it are indented by four columns a level."""
    levels: list[int] = []  # columns where the contents of the open items begin
    fence, was_blank = "", True
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if fence:
            fence = "" if line.strip() == "```" else fence
        elif line.strip():
            item = ITEM.match(line)
            while levels and indent < levels[-1] and (item or was_blank or FENCE.match(line)):
                levels.pop()
            if item and not was_blank and not levels:
                yield ""  # a list right after a paragraph
            if FENCE.match(line):
                fence = "```"
        depth = len(levels)
        cut = min(indent, levels[-1]) if levels else 0
        if item_here := (None if fence else ITEM.match(line)):
            levels.append(item_here.end())
        yield " " * 4 * depth + line[cut:] if line.strip() else ""
        was_blank = not line.strip()


def options_as_tables() -> Iterator[str]:
    """Yield the reference of all options, as Markdown."""
    section = None
    for name, field in options():
        before, _, last = name.rpartition(".")
        if before != section:
            section = before
            head = RunConfig.model_fields[before].description if before else "Options without a section."
            yield f"\n## {before or 'The run'}\n\n{head}\n"
        yield f"### `{last}` {{ #{name.replace('.', '-')} }}\n"
        default = f"default: `{shown(field.default)}`" if field.default not in (None, ()) else "no default"
        allowed = ", ".join(f"`{choice}`" for choice in choices_of(field.annotation)) or bounds(field)
        facts = [type_in_words(field.annotation), "required" if field.is_required() else default, allowed]
        yield f"`--{name}` · {' · '.join(filter(None, facts))}\n"
        yield f"{_plain(description(field))}\n"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", r"\*")


if __name__ == "__main__":
    main()
