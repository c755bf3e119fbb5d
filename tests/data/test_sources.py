"""Reading memories: every source gives the same documents, and one that is bad stops no other."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import datasets
import pytest

from sleep_trl.data.documents import MemoryText, Question
from sleep_trl.data.files import source_of
from sleep_trl.data.sources import DatasetOptions, read_all, read_memories, read_skill

SECRET = "The vault opens at noon."


def write_rows(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_jsonl_gives_what_it_was_given(tmp_path: Path) -> None:
    asked = {"question": "When?", "answers": ["noon", "12"], "form": "forward"}
    row = {"id": "a", "source": "Crier", "text": SECRET, "questions": [asked], "other_words": [1]}
    [document] = read_memories(write_rows(tmp_path / "docs.jsonl", row))
    question = Question("When?", ("noon", "12"), "forward")
    assert document == MemoryText("a", "Crier", SECRET, (question,), {"other_words": [1]})
    assert json.loads(json.dumps(document.as_row())) == row and hash(document)
    assert document.sha256 == hashlib.sha256(SECRET.encode()).hexdigest()


def test_derived_ids_name_source_and_line(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "id": null, "questions": null}\n', "utf-8")
    documents = read_memories(str(path))
    assert [document.id for document in documents] == ["docs.jsonl:1", "docs.jsonl:3"]
    assert {document.source for document in documents} == {source_of(path)}
    assert documents == read_memories(str(path))


def test_line_separators_and_byte_order_mark_are_text(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('\ufeff{"text": "one\u2028two\u0085three"}\r\n', "utf-8", newline="")
    [document] = read_memories(str(path))
    assert document.text == "one\u2028two\u0085three"


def test_folder_is_read_sorted_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("letters [2024]")
    (folder / "sub").mkdir(parents=True)
    for name in ("b.md", "a.txt", "sub/c.TXT", "picture.png"):
        (folder / name).write_text(f"text of {name}", "utf-8")
    reading = read_all(str(folder))
    assert [document.id for document in reading.memories] == ["a.txt", "b.md", "sub/c.TXT"]
    assert reading.memories[1] == MemoryText("b.md", "letters [2024]/b.md", "text of b.md")
    [left] = reading.left_out
    assert not left.is_fault and left.reason.startswith("letters [2024]: 1 .png: not documents")
    assert "wake add" not in left.reason
    (folder / "questions.jsonl").write_text('{"text": "a text"}\n')
    [left] = read_all(str(folder)).left_out
    assert left.reason.startswith("letters [2024]: 1 .jsonl, 1 .png: not documents")
    assert left.reason.endswith("a .jsonl file is given by its own path (sleep-trl wake add takes both)")


@pytest.mark.parametrize("in_splits", [False, True])
def test_saved_dataset(tmp_path: Path, in_splits: bool) -> None:
    rows = [
        {"text": "one", "id": "x", "questions": [{"question": "q", "answers": ["a"]}]},
        {"text": "two", "id": None, "questions": None},
    ]
    saved = datasets.Dataset.from_list(rows)
    folder = tmp_path / "set"
    (datasets.DatasetDict(test=saved) if in_splits else saved).save_to_disk(folder)
    first, second = read_memories(str(folder))
    assert first == MemoryText("x", source_of(folder), "one", (Question("q", ("a",)),))
    assert second == MemoryText("set:1", source_of(folder), "two")


def test_dataset_by_name_takes_the_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": ["one"], "test": ["two"]}
    made = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict(made))
    assert read_memories("owner/set") == [MemoryText("owner/set:0", "owner/set", "one")]


def test_configuration_split_and_columns_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"article": "one", "text": "its summary", "url": "a", "stars": 3}]
    made = datasets.DatasetDict(train=datasets.Dataset.from_dict({"b": [1]}), test=datasets.Dataset.from_list(rows))
    loaded: list[tuple[str, str | None]] = []

    def load(name: str, config: str | None) -> datasets.DatasetDict:
        loaded.append((name, config))
        return made

    monkeypatch.setattr(datasets, "load_dataset", load)
    columns = {"text": "article", "source": "url"}
    [memory] = read_memories("owner/set", DatasetOptions("de", "test", columns))
    assert loaded == [("owner/set", "de")]
    assert memory == MemoryText("owner/set:0", "a", "one", columns={"stars": 3})
    made.save_to_disk(tmp_path / "set")
    assert read_memories(str(tmp_path / "set"), DatasetOptions(split="test", columns=columns))[0].text == "one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DatasetOptions(split="dev"), r"has the splits train and no `dev`\. Choose one with --dataset_train_split"),
        (DatasetOptions(columns={"text": "article"}), "has no column `article`, only body"),
        (DatasetOptions(columns={"text": "body", "label": "body"}), "'label' is not a key of a memory"),
        (DatasetOptions("de"), "is not a data set that dataset_config"),
    ],
)
def test_what_a_dataset_does_not_have_is_named(tmp_path: Path, options: DatasetOptions, message: str) -> None:
    made = datasets.DatasetDict(train=datasets.Dataset.from_dict({"body": ["one"]}))
    made.save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        read_memories(str(tmp_path / "set"), options)


def test_options_of_a_dataset_do_not_go_with_files(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "docs.jsonl", {"article": "one"})
    with pytest.raises(ValueError, match=r"dataset_columns could apply to\. Leave them out"):
        read_memories(path, DatasetOptions(columns={"text": "article"}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"line 1: not valid JSON.*column 2\)\. Each line"),
        ([SECRET], r"line 1: must be a JSON object, not a list"),
        ({"txt": SECRET}, r"line 1: the required key `text` \(or `messages`\) is missing; found `txt`"),
        ({"text": " \n"}, r"line 1: `text` is empty"),
        ({"text": 7}, r"line 1: `text` must be a string, not a number"),
        ({"text": None}, r"line 1: `text` must be a string, not null"),
        ({"text": SECRET + "\ud800"}, r"line 1: `text` contains half a surrogate pair"),
        ({"text": SECRET, "id": 7.5}, r"line 1: `id` must be a string, not a number"),
        ({"text": SECRET, "id": True}, r"line 1: `id` must be a string, not a boolean"),
        ({"messages": [{"role": "user"}]}, r"line 1, messages\[0\]: `content` must be a string"),
        ({"messages": [], "text": SECRET}, r"line 1: has both `text` and `messages`"),
        ({"text": SECRET, "source": True}, r"`source` must be a string, not a boolean"),
        ({"text": SECRET, "questions": "q"}, r"`questions` must be a list of objects, not a str"),
        ({"text": SECRET, "questions": ["q"]}, r"questions\[0\]: must be a JSON object"),
        ({"text": SECRET, "questions": [{"answers": ["a"]}]}, r"\[0\]: the required key `question` is miss"),
        ({"text": SECRET, "questions": [{"question": "q"}]}, r"`answers` is missing or empty"),
        ({"text": SECRET, "questions": [{"question": "q", "answers": []}]}, r"`answers` is miss"),
        ({"text": SECRET, "questions": [{"question": "q", "answers": "a"}]}, r"`answers` must be"),
        ({"text": SECRET, "questions": [{"question": "q", "answers": [1]}]}, r"`answers\[0\]` mus"),
    ],
)
def test_bad_row_is_named_without_its_text(tmp_path: Path, row: object, message: str) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(row if isinstance(row, str) else json.dumps(row), "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_memories(str(path))
    assert "docs.jsonl" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.jsonl", {"text": "one", "id": "a"}, {"text": "two", "id": "a"})
    with pytest.raises(ValueError, match=r"line 2: the id 'a' is already used in .*line 1"):
        read_memories(path)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "latin.jsonl").write_bytes('{"text": "café"}'.encode("latin-1"))
    (tmp_path / "blank.md").write_text("\n", "utf-8")
    (tmp_path / "one.csv").write_text("text", "utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/state.json").write_text("{}", "utf-8")
    for name, message in {
        "empty.jsonl": "is empty. Give at least one row",
        "blank.md": r"blank\.md: contains no text\. Fill it in, or leave it out",
        "absent.jsonl": "does not exist",
        "latin.jsonl": "line 1: not UTF-8 text",
        "one.csv": r"is neither a \.jsonl file nor a document",
        "folder": "has no documents",
        "damaged": "cannot be read.*Save it again",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_memories(str(tmp_path / name))


def test_dataset_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(name: str, config: str | None) -> None:
        raise ConnectionError(f"Couldn't reach {name} on the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"'towns' is not a file.*reach towns.*network, or give a lo"):
        read_memories("towns")
    datasets.Dataset.from_dict({"body": ["x"]}).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=r"no column `text`, only body\. Name the one .*--dataset_columns"):
        read_memories(str(tmp_path / "set"))
    splits = {"a": datasets.Dataset.from_dict({"text": ["x"]})}
    splits["b"] = splits["a"]
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="has the splits a, b and no `train`"):
        read_memories(str(tmp_path / "splits"))


def test_skill_needs_questions(tmp_path: Path) -> None:
    asked = {"text": "t", "questions": [{"question": "q", "answers": ["a"]}]}
    [document] = read_skill(Path(write_rows(tmp_path / "good.jsonl", asked)))
    assert document.questions == (Question("q", ("a",)),)
    path = write_rows(tmp_path / "bad.jsonl", asked, {"text": SECRET})
    with pytest.raises(ValueError, match=r"row 'bad\.jsonl:2' has no `questions`"):
        read_skill(Path(path))
    for wrong, message in ((tmp_path, "is a folder"), (tmp_path / "no.jsonl", "does not exist")):
        with pytest.raises(ValueError, match=message):
            read_skill(wrong)


@pytest.mark.parametrize("name", ["one.md", "one.TXT", "brackets [1].md"])
def test_one_document_is_a_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("# Title\n\nText.\n", "utf-8")
    assert read_memories(name) == [MemoryText(name, name, "# Title\n\nText.\n")]


def test_chats_and_numbers_as_ids(tmp_path: Path) -> None:
    parts = [[{"type": "text", "text": word} for word in words] for words in (["Who?"], ["Tolu,", "of course."])]
    chat = [{"role": role, "content": part} for role, part in zip(("user", "assistant"), parts, strict=True)]
    rows = [{"messages": chat, "id": 7, "source": "chats"}, {"text": "two", "id": 0}]
    first, second = read_memories(write_rows(tmp_path / "chats.jsonl", *rows))
    assert first == MemoryText("7", "chats", "user: Who?\nassistant: Tolu, of course.")
    assert second.id == "0"
    datasets.Dataset.from_list(rows[:1]).save_to_disk(tmp_path / "set")
    [saved] = read_memories(str(tmp_path / "set"))
    assert (saved.id, saved.text) == (first.id, first.text)
    datasets.Dataset.from_list([{"messages": chat, "text": "rendered"}]).save_to_disk(tmp_path / "both")
    assert read_memories(str(tmp_path / "both"))[0].text == "rendered"


def test_bad_rows_and_files_are_listed_together_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    lines = [
        b'{"text": "good", "id": "a"}',
        b"{",
        b'{"txt": "x"}',
        b"\xff",
        b'{"text": "other", "id": "a"}',
        b'{"text": "z"}',
    ]
    path.write_bytes(b"\n".join(lines))
    reading = read_all(str(path))
    assert [memory.text for memory in reading.memories] == ["good", "z"]
    places = [reason.split(": ")[0] for reason in reading.faults]
    assert places == [f"{path}, line {number}" for number in (2, 3, 4, 5)]
    with pytest.raises(ValueError, match=r"4 files or rows of .*\n.*line 2: not valid JSON(.|\n)*line 5: the id 'a'"):
        read_memories(str(path))
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text(" ")
    (tmp_path / "c.txt").write_text("text")
    reading = read_all(str(tmp_path))
    assert [memory.id for memory in reading.memories] == ["c.txt"] and len(reading.faults) == 2


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.pdf"])
def test_a_document_of_93_mib_is_refused_without_being_read(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(93 * 2**20)
    remedy = "Split it." if name in ("a.txt", "a.md") else "Split it, or convert it to text."
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"{name}: 93 MiB, more than 64 MiB. {remedy}$"):
            read_memories(str(tmp_path / name))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    (tmp_path / "b.txt").write_text("The ferry sails at noon.")
    reading = read_all(str(tmp_path))
    assert [memory.id for memory in reading.memories] == ["b.txt"] and "93 MiB" in reading.faults[0]


@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n"])
def test_a_row_that_is_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes) -> None:
    monkeypatch.setattr("sleep_trl.data.files.MAX_BYTES", 100)
    fitting = json.dumps({"text": "x" * (100 - len('{"text": ""}') - last.count(b"\r"))}).encode()
    rows = [b'{"text": "a"}', b" " * 301, fitting, b"", b"x" * 202, b"y" * 101, fitting.replace(b"xx", b"yy")]
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b"\n".join(rows) + last)
    reading = read_all(str(path))
    assert [(memory.id, memory.text[0]) for memory in reading.memories] == [
        ("docs.jsonl:1", "a"),
        ("docs.jsonl:3", "x"),
        ("docs.jsonl:7", "y"),
    ]
    places = [f"{path}, line {number}" for number in (2, 5, 6)]
    assert [reason.split(": ")[0] for reason in reading.faults] == places
    assert all("Split it." in reason for reason in reading.faults)


def test_only_the_first_faults_are_listed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "docs.jsonl", {"text": "good"}, *[{"txt": "bad"}] * 30)
    with pytest.raises(ValueError, match="30 files or rows") as caught:
        read_memories(path)
    assert str(caught.value).count("\n") == 21 and str(caught.value).endswith("and 10 more")


def test_two_folders_with_files_of_one_name_are_two_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "README.md").write_text(f"of {name}")
    sources = [memory.source for name in ("a", "./b/") for memory in read_memories(name)]
    assert sources == ["a/README.md", "b/README.md"]
