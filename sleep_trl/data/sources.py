"""Where memories come from: JSON lines, documents, folders of documents, data sets. One that is bad stops no other."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .documents import KEYS, MemoryText, Row, check_row, parse_line
from .files import (
    CONVERTERS,
    TEXT_SUFFIXES,
    InvalidDocument,
    LeftOut,
    check_size,
    find_documents,
    is_document,
    read_content,
    read_document,
    read_lines,
    shown_suffixes,
    source_of,
)

log = logging.getLogger(__name__)

SAVED_DATASET = ("state.json", "dataset_dict.json")  # files that `save_to_disk` writes
SHOWN = 20  # files and rows that a message lists


@dataclass(frozen=True)
class Reading:
    """What was read, and what was not.

    Args:
        spec (`str`): what was to be read.
        memories (`list[MemoryText]`): at least one.
        left_out (`list[LeftOut]`): files, rows and folders that were not read.
    """

    spec: str
    memories: list[MemoryText]
    left_out: list[LeftOut]

    @property
    def faults(self) -> list[str]:
        """Where and why documents could not be read."""
        return [one.reason for one in self.left_out if one.is_fault]

    def check(self) -> list[MemoryText]:
        """Return the memories.

        Raises:
            `ValueError`: if a file or a row could not be read; names all of them.
        """
        if len(self.faults) == 1:
            raise ValueError(self.faults[0])
        if self.faults:
            raise ValueError(f"{len(self.faults)} files or rows of {self.spec} cannot be read:\n{shown(self.faults)}")
        return self.memories


def shown(reasons: list[str]) -> str:
    """Return a line for each of the first reasons, and how many more there are."""
    lines = [f"  {reason}" for reason in reasons[:SHOWN]]
    return "\n".join([*lines, f"  and {len(reasons) - SHOWN:,} more"] if len(reasons) > SHOWN else lines)


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
    """Read memories, all of which have to be right. See [`read_all`].

    Raises:
        `ValueError`: as [`read_all`], or if any file or row is invalid; names all of them.
    """
    return read_all(spec, dataset).check()


def read_all(spec: str, dataset: DatasetOptions = DatasetOptions()) -> Reading:
    """Read the documents of a night.

    Args:
        spec (`str`):
            A .jsonl file, a document, a folder of documents (including subfolders, sorted by path), a folder written by
            `Dataset.save_to_disk`, or the name of a data set. Rows have `text` or `messages` and optionally `id`,
            `source` and `questions`, a list of `question`, `answers` and optionally `form`; other keys are for rewards.
        dataset (`DatasetOptions`, *optional*):
            What is read if it is a data set.

    Returns:
        `Reading`: at least one memory. A missing id is derived from the source and the position in it, or from the
        file name, so it is the same every time.

    Raises:
        `ValueError`: if nothing can be read; names the files, the lines and the keys.
    """
    path, left = Path(spec), list[LeftOut]()
    is_saved = path.is_dir() and _is_saved_dataset(path)
    if dataset != DatasetOptions() and (path.is_file() or (path.is_dir() and (dataset.config or not is_saved))):
        raise ValueError(
            f"memories: {spec} is not a data set that dataset_config, dataset_train_split or dataset_columns could "
            f"apply to. Leave them out, or give a data set by its name (a folder written by `save_to_disk` has splits "
            f"and columns, but no configurations)."
        )
    if path.is_dir() and not is_saved:
        found, left = find_documents(path)
        if not found:
            ignored = "".join(f"\n  {one.reason}" for one in left)
            raise ValueError(
                f"The folder {spec} has no documents ({shown_suffixes()}) and no saved data set. Put the texts there, "
                f"or give the path of a .jsonl file.{ignored}"
            )
        rows: Iterable[Row | LeftOut] = (_row_of_document(one, one.relative_to(path).as_posix()) for one in found)
    elif path.is_dir():
        rows = _rows_of_dataset(source_of(path), path.name, _load_saved_dataset(path, dataset.split), dataset.columns)
    elif path.is_file():
        rows = _rows_of_file(path)
    else:
        check_exists(spec)
        rows = _rows_of_dataset(spec, spec, _load_dataset(spec, dataset), dataset.columns)
    return _read(spec, rows, left)


def check_exists(spec: str) -> None:
    """Raise if memories can only be a path, and nothing is there.

    Args:
        spec (`str`): as for [`read_all`].

    Raises:
        `ValueError`: if it is missing; if it is a list of what exists, with how several are learned.
    """
    if Path(spec).exists():
        return
    parts = [part for part in re.split(r"[,\s]+", spec) if part]
    if len(parts) > 1 and all(Path(part).exists() for part in parts):
        raise ValueError(
            f"memories: {spec} is a list, but one file, folder or data set is read. To learn all of it in one night, "
            f"collect it with `sleep-trl wake add {' '.join(parts)}` and give --memories wake:runs/wake.db. For one "
            f"night each, give --nights {','.join(parts)}."
        )
    if len(parts) > 1 or _looks_like_a_path(spec):
        raise ValueError(
            f"memories: {spec} does not exist. Give a .jsonl file, a document ({shown_suffixes()}), a folder of "
            f"documents, or a data set."
        )


def check_texts_exist(path: Path, option: str) -> None:
    """Raise `ValueError` if the file that an option names is missing."""
    if not path.exists():
        raise ValueError(f"{option}: {path} does not exist. Give a .jsonl file.")


def read_texts(path: Path | None, option: str) -> list[MemoryText]:
    """Read the file of texts that an option names, as [`read_memories`] does; nothing if it names none.

    Raises:
        `ValueError`: as [`check_texts_exist`] and [`read_memories`].
    """
    if path is None:
        return []
    check_texts_exist(path, option)
    return read_memories(str(path))


def read_skill(path: Path) -> list[MemoryText]:
    """Read the probe of base skill: rows as in [`read_memories`], each with questions about its text.

    Raises:
        `ValueError`: as [`read_texts`], if it is a folder, or if a row has no questions.
    """
    if path.is_dir():
        raise ValueError(f"evaluation.skill: {path} is a folder. Give a .jsonl file.")
    documents = read_texts(path, "evaluation.skill")
    for document in documents:
        if not document.questions:
            raise ValueError(
                f"{path}: row {document.id!r} has no `questions`, which measure the skill. Add some, or remove the row."
            )
    return documents


def _read(spec: str, rows: Iterable[Row | LeftOut], left: list[LeftOut]) -> Reading:
    memories, places = list[MemoryText](), dict[str, str]()
    for row in rows:
        if isinstance(row, LeftOut):
            left.append(row)
            continue
        try:
            memory = check_row(row)
        except ValueError as error:
            left.append(LeftOut(str(error), True))
            continue
        if memory.id in places:
            reason = f"the id {memory.id!r} is already used in {places[memory.id]}. Make ids unique, or leave them out."
            left.append(LeftOut(f"{row.place}: {reason}", True))
            continue
        places[memory.id] = row.place
        memories.append(memory)
    reading = Reading(spec, memories, left)
    if not memories:
        reading.check()
        raise ValueError(f"{spec} is empty. Give at least one row with `text`.")
    return reading


# -- rows ------------------------------------------------------------------------------------------


def _rows_of_file(path: Path) -> Iterator[Row | LeftOut]:
    if path.suffix.lower() == ".jsonl":
        return _rows_of_lines(path)
    if not is_document(path):
        raise ValueError(f"{path} is neither a .jsonl file nor a document ({shown_suffixes()}). Give one of these.")
    return iter([_row_of_document(path, path.name)])


def _rows_of_lines(path: Path) -> Iterator[Row | LeftOut]:
    source = source_of(path)
    for number, (size, line) in enumerate(read_lines(path), 1):
        place = f"{path}, line {number}"
        try:
            check_size(path, size)
            if line.strip():
                yield Row(place, f"{path.name}:{number}", source, parse_line(line))
        except InvalidDocument as error:
            yield LeftOut(f"{place}: {error}", True)


def _row_of_document(path: Path, name: str) -> Row | LeftOut:
    try:
        return Row(str(path), name, source_of(path), {"text": read_document(path, read_content(path))})
    except InvalidDocument as error:
        return LeftOut(f"{path}: {error}", True)
    except ValueError as error:
        return LeftOut(str(error), True)


def _rows_of_dataset(source: str, name: str, dataset: Any, columns: Mapping[str, str]) -> Iterator[Row]:
    key = "text" if "text" in dataset.column_names or "messages" not in dataset.column_names else "messages"
    given = dict(columns) if {"text", "messages"}.intersection(columns) else {key: key, **columns}
    if unknown := [key for key in columns if key not in KEYS]:
        raise ValueError(f"dataset_columns: {unknown[0]!r} is not a key of a memory. Its keys are {', '.join(KEYS)}.")
    if missing := [column for column in given.values() if column not in dataset.column_names]:
        raise ValueError(
            f"The data set {source} has no column `{missing[0]}`, only {', '.join(dataset.column_names)}. Name the one "
            f'of the texts with --dataset_columns \'{{"text": "NAME"}}\', or that of chats as `messages`.'
        )
    taken = {*given.values(), *columns, "text", "messages"}  # a row has one of the two
    for number, values in enumerate(dataset):
        others = {key: value for key, value in values.items() if key not in taken}
        row = others | {key: values[column] for key, column in given.items()}
        yield Row(f"{source}, row {number}", f"{name}:{number}", source, row)


def _is_saved_dataset(folder: Path) -> bool:
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
    suffixes = (*TEXT_SUFFIXES, *CONVERTERS, ".jsonl", ".json", ".csv", ".parquet", "/")
    is_deep = spec.startswith((".", "/", "~")) or spec.count("/") > 1
    return is_deep or spec.lower().endswith(suffixes)
