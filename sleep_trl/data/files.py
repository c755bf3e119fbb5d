"""Documents on disk: which files of a folder are read, and how a file becomes text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, BinaryIO
from zipfile import ZipFile

TEXT_SUFFIXES = (".txt", ".md")
IGNORED_FOLDERS = ("node_modules", "__pycache__")  # and those whose names begin with a dot
MAX_BYTES = 64 * 2**20  # of a document, or of a row of a .jsonl file: about 10 million words of plain text
GIVE_ITSELF = "a .jsonl file is given by its own path (sleep-trl wake add takes both)"
FULL_LINE = 0.7  # share of a page's longest line from which a line of a PDF is taken to go on in the next (ours)


class InvalidDocument(ValueError):
    """Raised for a file or a row that cannot be read; `kind` is what it is counted under."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class LeftOut:
    """Something that was not read.

    Args:
        reason (`str`): where and why, without any of its text.
        is_fault (`bool`): whether a document or a folder cannot be read. Otherwise it is left out on purpose.
    """

    reason: str
    is_fault: bool


def find_documents(
    folder: Path, hint: str = GIVE_ITSELF, given: Collection[Path] = ()
) -> tuple[list[Path], list[LeftOut]]:
    """Find the documents of a folder and its subfolders. Links that lead out of it, or to folders, are not followed.

    Args:
        folder (`Path`):
            The folder.
        hint (`str`, *optional*):
            What to do about .jsonl files that are there.
        given (`Collection[Path]`, *optional*):
            Whole paths of files that are read anyway, and so not named.

    Returns:
        `tuple[list[Path], list[LeftOut]]`: the documents, sorted by path, and what else is there.
    """
    found, left, others = list[Path](), list[LeftOut](), Counter[str]()
    inside = folder.resolve()

    def refuse(path: object, reason: str) -> None:
        left.append(LeftOut(f"{path}: {reason}", True))

    def refuse_closed(error: OSError) -> None:
        refuse(error.filename, f"cannot be opened: {error.strerror}. Check its permissions.")

    for at, folders, names in os.walk(folder, onerror=refuse_closed):
        here = Path(at)
        if not os.access(here, os.X_OK):
            refuse(here, "nothing in it can be opened. Check its permissions.")
            folders.clear()
            continue
        for name in sorted(folders):
            if (here / name).is_symlink():
                left.append(LeftOut(f"{here / name}: a link to a folder, which is not followed", False))
            elif name.startswith(".") or name in IGNORED_FOLDERS:
                left.append(LeftOut(f"{here / name}: folders of this name are ignored", False))
        folders[:] = [n for n in folders if not (n.startswith(".") or n in IGNORED_FOLDERS)]
        for path in (here / name for name in names):
            if not is_document(path):
                if Path(os.path.realpath(path)) in given:
                    continue
                others[path.suffix.lower() or "files without an extension"] += 1
            elif path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                left.append(LeftOut(f"{path}: a link that leads out of the folder, which is not followed", False))
            elif os.path.isfile(path):  # unlike Path.is_file, also where the link may not be followed
                found.append(path)
            else:
                refuse(path, "no file, or one that may not be opened. Remove it, or put the document there.")
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        hint = f"; {hint}" if others[".jsonl"] else ""
        left.append(LeftOut(f"{folder}: {counts}: not documents, which end in {shown_suffixes()}{hint}", False))
    return sorted(found), left


def is_document(path: PurePath) -> bool:
    """Whether a file is a document, by its name."""
    return path.suffix.lower() in (*TEXT_SUFFIXES, *CONVERTERS)


def shown_suffixes() -> str:
    """Return the extensions of documents, for messages."""
    *first, last = (*TEXT_SUFFIXES, *CONVERTERS)
    return f"{', '.join(first)} or {last}"


def source_of(path: Path) -> str:
    """Return the source of what is read from a file: its path from the working directory, or from the home directory,
    or the whole path if it is in neither. So two files are never one source."""
    whole = Path(os.path.abspath(path))
    if whole.is_relative_to(here := Path.cwd()):
        return whole.relative_to(here).as_posix()
    home = Path.home()
    return f"~/{whole.relative_to(home).as_posix()}" if whole.is_relative_to(home) else whole.as_posix()


def matching(given: str, sources: Iterable[str]) -> list[str]:
    """Return the source that is named, or the sources that end with this name: that of a file, or of a file and some
    of its folders."""
    known = sorted(set(sources))
    return [given] if given in known else [source for source in known if source.endswith(f"/{given}")]


def read_document(path: Path, content: bytes) -> str:
    """Return the text of a document.

    Args:
        path (`Path`):
            The file, whose name tells its form.
        content (`bytes`):
            What it contains.

    Raises:
        `InvalidDocument`: if it is not text, is too long once unpacked, or the extra `documents` is needed and not
            installed.
    """
    if (convert := CONVERTERS.get(path.suffix.lower())) is None:
        return decode_text(content)
    try:
        text = convert(content)
    except ImportError as error:
        raise InvalidDocument(
            "extra not installed",
            f"reading {path.suffix.lower()} needs {error.name}, which is not installed. Run "
            f"`pip install 'sleep-trl[documents]'`.",
        ) from None
    except InvalidDocument:
        raise
    except Exception as error:  # whatever a damaged file makes the libraries raise
        raise InvalidDocument(
            "unreadable", f"cannot be read as {path.suffix.lower()} ({type(error).__name__}). Convert it to text."
        ) from None
    if not text.strip():
        raise InvalidDocument("no text", "contains no text, as a scan does. Convert it with an OCR program.")
    return text


def check_size(path: PurePath, size: int) -> None:
    """Raise `InvalidDocument` if a document, or a row of a .jsonl file, has more bytes than are read at once."""
    if size > MAX_BYTES:
        remedy = "Split it, or convert it to text" if path.suffix.lower() in CONVERTERS else "Split it"
        reason = f"{size / 2**20:.0f} MiB, more than {MAX_BYTES / 2**20:g} MiB. {remedy}."
        raise InvalidDocument("too long", reason)


def read_content(path: Path) -> bytes:
    """Return what a document contains.

    Raises:
        `InvalidDocument`: if it is too long.
        `ValueError`: if it cannot be read.
    """
    with _opened(path) as file:
        check_size(path, os.fstat(file.fileno()).st_size)
        return file.read()


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the size and the content of each line of a file; of a line that is too long, only its end.

    Raises:
        `ValueError`: if it cannot be read.
    """
    with _opened(path) as file:
        size, line = 0, b""
        while part := file.readline(MAX_BYTES + 1):
            size, line = size + len(part), part
            if line.endswith(b"\n"):
                yield size - 1, line[:-1]
                size = 0
        if size:
            yield size, line


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None


def decode_text(content: bytes) -> str:
    """Return the text of a whole file.

    Raises:
        `InvalidDocument`: if it is not text in UTF-8, or there is none.
    """
    if not (text := decode(content)).strip():
        raise InvalidDocument("no text", "contains no text. Fill it in, or leave it out.")
    return text


def decode(content: bytes) -> str:
    """Return UTF-8 text without its byte order mark.

    Raises:
        `InvalidDocument`: if it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidDocument(
            "not UTF-8", f"not UTF-8 text (byte {error.start}: {error.reason}). Convert it, for example with iconv."
        ) from None


def unwrap(page: str) -> str:
    """Join the lines of a page of a PDF that its layout broke: after a full line, and after a hyphen."""
    lines = [line.strip() for line in page.splitlines()]
    longest = max(map(len, lines), default=0)
    text = ""
    for line, following in pairwise([*lines, ""]):
        goes_on = len(line) >= FULL_LINE * longest and following[:1].isalnum()
        if goes_on and line.endswith("-") and line[-2:-1].isalpha() and following[0].islower():
            text += line[:-1]
        else:
            text += line + (" " if goes_on else "\n")
    return text


def _pdf_text(content: bytes) -> str:
    from pypdf import PdfReader

    return "\n".join(unwrap(page.extract_text()) for page in PdfReader(BytesIO(content)).pages)


def _html_text(content: bytes | str) -> str:
    from bs4 import BeautifulSoup
    from markdownify import ATX, MarkdownConverter

    soup: Any = BeautifulSoup(content, "html.parser")
    for hidden in soup(["head", "script", "style", "noscript", "template"]):
        hidden.decompose()
    converter = MarkdownConverter(
        heading_style=ATX,
        strip=["a", "img", "b", "strong", "i", "em"],
        escape_asterisks=False,
        escape_underscores=False,
    )
    return "\n\n".join(_paragraphs(str(converter.convert_soup(soup))))


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        if stripped := paragraph.strip():
            yield stripped


def _docx_text(content: bytes) -> str:
    import mammoth

    with ZipFile(BytesIO(content)) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > MAX_BYTES:
        unpacked, most = f"{size / 2**20:.0f} MiB unpacked", f"{MAX_BYTES / 2**20:g} MiB"
        raise InvalidDocument("too long", f"{unpacked}, more than {most}. Split it, or convert it to text.")
    return _html_text(mammoth.convert_to_html(BytesIO(content)).value)


CONVERTERS: Mapping[str, Callable[[bytes], str]] = {
    ".pdf": _pdf_text,
    ".html": _html_text,
    ".htm": _html_text,
    ".docx": _docx_text,
}
"""Forms that libraries of the extra `documents` read."""
