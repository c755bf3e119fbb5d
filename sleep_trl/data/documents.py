"""Read memories from JSON lines, a folder of text files, or a data set, and check each row.

Messages name the file, the line and the key, never a memory's text.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".md")
KEYS = ("id", "source", "text", "questions")  # of a row; others are for rewards
SAVED_DATASET = ("state.json", "dataset_dict.json")  # files that `save_to_disk` writes


@dataclass(frozen=True)
class Question:
    """A question about a document, asked before and after the night, never trained on.

    Args:
        question (`str`):
            The question, as a user would ask it.
        answers (`tuple[str, ...]`):
            Accepted answers; at least one.
        form (`str`, *optional*, defaults to `"plain"`):
            Kind of question, by which results can be grouped.
    """

    question: str
    answers: tuple[str, ...]
    form: str = "plain"


@dataclass(frozen=True)
class MemoryText:
    """A memory to be learned: a text, its source, and questions about it.

    Args:
        id (`str`):
            Unique among the documents of a run.
        source (`str`):
            Human-readable origin of the text: a title, a URL, a file name.
        text (`str`):
            The text to learn.
        questions (`tuple[Question, ...]`, *optional*):
            Used for evaluation only.
        columns (`dict[str, Any]`, *optional*):
            What else its row has, for rewards.
    """

    id: str
    source: str
    text: str
    questions: tuple[Question, ...] = ()
    columns: dict[str, Any] = field(default_factory=dict, hash=False)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the text in UTF-8, a hexadecimal string."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def as_row(self) -> dict[str, Any]:
        """Return the row that it is read from."""
        row = asdict(self)
        return row.pop("columns") | row


class Row(NamedTuple):
    """A row before it is checked, with its place for messages and defaults for missing values."""

    place: str
    default_id: str
    default_source: str
    values: Any


@dataclass(frozen=True)
class DatasetOptions:
    """What is read of a data set, with the meaning of TRL's `ScriptArguments`.

    Args:
        config (`str`, *optional*):
            Name of its configuration.
        split (`str`, *optional*):
            Split; by default `train`, or the only one.
        columns (`Mapping[str, str]`, *optional*):
            Its columns by the key of a row that they stand for, such as `{"text": "article"}`.
    """

    config: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def read_memories(spec: str, dataset: DatasetOptions = DatasetOptions()) -> list[MemoryText]:
    """Read the documents of a night.

    Args:
        spec (`str`):
            A .jsonl file, a folder of .txt and .md files (including subfolders, sorted by path), a folder written by
            `Dataset.save_to_disk`, or the name of a data set. Rows have `text` and optionally `id`, `source` and
            `questions`, a list of `question`, `answers` and optionally `form`; other keys are for rewards.
        dataset (`DatasetOptions`, *optional*):
            What is read if it is a data set.

    Returns:
        `list[MemoryText]`: at least one. A missing id is derived from the source and the position in it, or from the
        file name, so it is the same every time.

    Raises:
        `ValueError`: if nothing can be read or a row is invalid; names the file, the line and the key.
    """
    path = Path(spec)
    if dataset != DatasetOptions() and (path.is_file() or (path.is_dir() and (dataset.config or not _is_saved(path)))):
        raise ValueError(
            f"memories: {spec} is not a data set that dataset_config, dataset_train_split or dataset_columns could "
            f"apply to. Leave them out, or give a data set by its name (a folder written by `save_to_disk` has splits "
            f"and columns, but no configurations)."
        )
    if path.is_dir() and _is_saved(path):
        rows = _rows_of_dataset(path.name, _load_saved_dataset(path, dataset.split), dataset.columns)
    elif path.is_dir():
        rows = _rows_of_folder(path)
    elif path.is_file():
        rows = _rows_of_file(path)
    elif _looks_like_a_path(spec):
        raise ValueError(
            f"memories: {spec} does not exist. Give a .jsonl file, a folder of .txt and .md files, or a data set."
        )
    else:
        rows = _rows_of_dataset(spec, _load_dataset(spec, dataset), dataset.columns)
    return _documents(spec, rows)


def read_skill(path: Path) -> list[MemoryText]:
    """Read the probe of base skill: rows as in [`read_memories`], each with questions about its text.

    Raises:
        `ValueError`: as [`read_memories`], or if a row has no questions.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"evaluation.skill: {path} {problem}. Give a .jsonl file.")
    documents = _documents(str(path), _rows_of_file(path))
    for document in documents:
        if not document.questions:
            raise ValueError(
                f"{path}: row {document.id!r} has no `questions`, which measure the skill. Add some, or remove the row."
            )
    return documents


# -- sources of rows -------------------------------------------------------------------------------


def _rows_of_file(path: Path) -> Iterator[Row]:
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"{path} is not a .jsonl file. Give JSON lines, or a folder of .txt and .md files.")
    # splitlines() would also split at U+2028 and the like, which may occur in a JSON string.
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{place}: not valid JSON: {error.msg} (column {error.colno}). Each line must be one JSON object."
            ) from None
        yield Row(place, f"{path.name}:{number}", path.name, values)


def _rows_of_folder(folder: Path) -> Iterator[Row]:
    for path in text_files(folder):
        name = path.relative_to(folder).as_posix()
        yield Row(str(path), name, name, {"text": _read_text(path)})


def text_files(folder: Path) -> list[Path]:
    """Return the .txt and .md files of a folder and its subfolders, sorted by path.

    Raises:
        `ValueError`: if there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix.lower() in TEXT_SUFFIXES]
    others = len(files) - len(texts)
    if not texts:
        raise ValueError(
            f"The folder {folder} has no .txt or .md files and no saved data set, only {others} other files. Put the "
            f"texts there, or give the path of a .jsonl file."
        )
    if others:
        log.info("%s: ignoring %d files that are neither .txt nor .md.", folder, others)
    return texts


def _rows_of_dataset(name: str, dataset: Any, columns: Mapping[str, str]) -> Iterator[Row]:
    given = {"text": "text", **columns}
    if unknown := [key for key in columns if key not in KEYS]:
        raise ValueError(f"dataset_columns: {unknown[0]!r} is not a key of a memory. Its keys are {', '.join(KEYS)}.")
    if missing := [column for column in given.values() if column not in dataset.column_names]:
        raise ValueError(
            f"The data set {name} has no column `{missing[0]}`, only {', '.join(dataset.column_names)}. Name the one "
            f'of the texts with --dataset_columns \'{{"text": "NAME"}}\'.'
        )
    taken = {*given.values(), *columns}
    for number, values in enumerate(dataset):
        others = {key: value for key, value in values.items() if key not in taken}
        row = others | {key: values[column] for key, column in given.items()}
        yield Row(f"{name}, row {number}", f"{name}:{number}", name, row)


def _is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in SAVED_DATASET)


def _load_saved_dataset(folder: Path, split: str | None) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, TypeError, KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"The data set saved in {folder} cannot be read ({_reason(error)}). Save it again with `save_to_disk`."
        ) from None
    return _one_split(str(folder), loaded, split)


def _load_dataset(name: str, options: DatasetOptions) -> Any:
    import datasets

    try:
        loaded = datasets.load_dataset(name, options.config)
    except (OSError, ValueError, RuntimeError) as error:  # unknown, offline, or a loading script
        raise ValueError(
            f"memories: {name!r} is not a file or folder, and no data set of that name could be loaded "
            f"({_reason(error)}). Check the spelling and the network, or give a local path."
        ) from None
    return _one_split(name, loaded, options.split)


def _one_split(name: str, loaded: Any, asked: str | None) -> Any:
    if not hasattr(loaded, "keys"):  # a Dataset, not a DatasetDict
        if asked is not None:
            raise ValueError(f"dataset_train_split: {name} has no splits, so there is no {asked!r}. Leave it out.")
        return loaded
    split = asked or ("train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None)
    if split not in loaded:
        raise ValueError(
            f"{name} has the splits {', '.join(loaded)} and no `{asked or 'train'}`. Choose one with "
            f"--dataset_train_split."
        )
    log.info("%s: reading the split %r.", name, split)
    return loaded[split]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _looks_like_a_path(spec: str) -> bool:
    """Return whether this looks like a path, not the name of a data set (`name` or `owner/name`)."""
    suffixes = (*TEXT_SUFFIXES, ".jsonl", ".json", ".csv", ".parquet", "/")
    is_deep = spec.startswith((".", "/", "~")) or spec.count("/") > 1
    return is_deep or spec.lower().endswith(suffixes)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # drops a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}: {error.reason}). Convert it, for example with iconv."
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None


# -- checks of a row -------------------------------------------------------------------------------


def _documents(spec: str, rows: Iterable[Row]) -> list[MemoryText]:
    documents: list[MemoryText] = []
    places: dict[str, str] = {}
    for row in rows:
        document = check_row(row)
        if document.id in places:
            raise ValueError(
                f"{row.place}: the id {document.id!r} is already used in {places[document.id]}. Make ids unique, or "
                f"leave them out."
            )
        places[document.id] = row.place
        documents.append(document)
    if not documents:
        raise ValueError(f"{spec} is empty. Give at least one row with `text`.")
    return documents


def check_row(row: Row) -> MemoryText:
    """Turn a row into a memory.

    Raises:
        `ValueError`: if the row is invalid; names its place and the key.
    """
    place, values = row.place, _mapping(row.place, row.values)
    questions = [] if values.get("questions") is None else values["questions"]
    if not isinstance(questions, list):
        raise ValueError(f"{place}: `questions` must be a list of objects, not {_kind(questions)}.")
    return MemoryText(
        id=_optional_text(place, values, "id", row.default_id),
        source=_optional_text(place, values, "source", row.default_source),
        text=_text(place, values, "text"),
        questions=tuple(_question(f"{place}, questions[{i}]", q) for i, q in enumerate(questions)),
        columns={key: value for key, value in values.items() if key not in KEYS},
    )


def _question(place: str, question: Any) -> Question:
    values = _mapping(place, question)
    answers = values.get("answers")
    if answers is None or answers == []:
        raise ValueError(f"{place}: `answers` is missing or empty. Give a list of accepted answers.")
    if not isinstance(answers, list):
        raise ValueError(f"{place}: `answers` must be a list of strings, not {_kind(answers)}.")
    by_key = {f"answers[{i}]": answer for i, answer in enumerate(answers)}
    return Question(
        question=_text(place, values, "question"),
        answers=tuple(_text(place, by_key, key) for key in by_key),
        form=_optional_text(place, values, "form", Question.form),
    )


def _mapping(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: must be a JSON object, not {_kind(value)}.")
    return value


def _optional_text(place: str, values: dict[str, Any], key: str, default: str) -> str:
    return default if values.get(key) is None else _text(place, values, key)


def _text(place: str, values: dict[str, Any], key: str) -> str:
    if key not in values:
        raise ValueError(f"{place}: the required key `{key}` is missing. Add it.")
    value = values[key]
    if not isinstance(value, str):
        raise ValueError(f"{place}: `{key}` must be a string, not {_kind(value)}.")
    if not value.strip():
        raise ValueError(f"{place}: `{key}` is empty. Fill it in, or remove the row.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{place}: `{key}` contains half a surrogate pair. Write it as UTF-8.")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
