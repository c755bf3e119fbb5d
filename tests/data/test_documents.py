"""Reading memories: every source gives the same documents; errors name a bad row and never quote it."""

import hashlib
import json
from pathlib import Path

import datasets
import pytest

from sleep_trl.data.documents import DatasetOptions, MemoryText, Question, read_memories, read_skill

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
    assert {document.source for document in documents} == {"docs.jsonl"}
    assert documents == read_memories(str(path))


def test_line_separators_and_byte_order_mark_are_text(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('\ufeff{"text": "one\u2028two\u0085three"}\r\n', "utf-8", newline="")
    [document] = read_memories(str(path))
    assert document.text == "one\u2028two\u0085three"


def test_folder_is_read_sorted_by_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.md", "a.txt", "sub/c.TXT", "picture.png"):
        (tmp_path / name).write_text(f"text of {name}", "utf-8")
    with caplog.at_level("INFO", "sleep_trl"):
        documents = read_memories(str(tmp_path))
    assert [document.id for document in documents] == ["a.txt", "b.md", "sub/c.TXT"]
    assert documents[1] == MemoryText("b.md", "b.md", "text of b.md")
    assert "ignoring 1 files that are neither" in caplog.text


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
    assert first == MemoryText("x", "set", "one", (Question("q", ("a",)),))
    assert second == MemoryText("set:1", "set", "two")


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
        ({"txt": SECRET}, r"line 1: the required key `text` is missing"),
        ({"text": " \n"}, r"line 1: `text` is empty"),
        ({"text": 7}, r"line 1: `text` must be a string, not a number"),
        ({"text": None}, r"line 1: `text` must be a string, not null"),
        ({"text": SECRET + "\ud800"}, r"line 1: `text` contains half a surrogate pair"),
        ({"text": SECRET, "id": 7}, r"line 1: `id` must be a string, not a number"),
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
    (tmp_path / "one.txt").write_text("text", "utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/state.json").write_text("{}", "utf-8")
    for name, message in {
        "empty.jsonl": "is empty. Give at least one row",
        "absent.jsonl": "does not exist",
        "latin.jsonl": "is not UTF-8 text",
        "one.txt": r"is not a \.jsonl file",
        "folder": r"has no \.txt or \.md files",
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
