"""`sleep-trl wake`: records are added, followed, listed and forgotten."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sleep_trl.runs.files import write_json, write_jsonl
from sleep_trl.runs.ledger import read_ledger
from sleep_trl.wake import WakeBuffer
from tests.cli.commands import COMMAND, ROOT, rows
from tests.tiny_runs import write_finished_run


def test_add_list_forget(call, documents, tmp_path):
    assert call("wake", "add", documents)[:2] == (0, "2 added, 0 duplicates, 0 already forgotten\n")
    assert rows(call("wake", "add", documents, "--json")[1])[0]["duplicates"] == 2
    (tmp_path / "again.txt").write_text("the cat")
    assert call("wake", "add", "again.txt")[1].startswith("0 added, 1 duplicate, 0")
    _, out, _ = call("wake", "list", "--json")
    found = [(row["id"], row["source"], row["copies"]) for row in rows(out)]
    assert found == [("a", "letters", 3), ("b", "docs.jsonl", 2)]
    assert [row["excerpt"] for row in rows(out)] == ["the cat", "the boat"]
    assert call("wake", "list", "--source", "letters")[1].endswith("a  letters  “the cat”\n")
    assert call("wake", "forget", "letters")[:2] == (0, "1 record forgotten\n")
    assert rows(call("wake", "list", "--counts", "--json")[1]) == [
        {"new": 1, "consolidated": 0, "failed": 0, "forgotten": 1, "rejected": 0}
    ]
    assert (tmp_path / "runs" / "wake.db").is_file()


def test_rejections_are_explained_and_the_rest_is_stored(call, tmp_path):
    (tmp_path / "mixed.jsonl").write_bytes(b'{"text": "good"}\n{"text": ""}\n\xff\n' + b"{}\n" * 30)
    code, out, err = call("wake", "add", "mixed.jsonl")
    assert code == 2 and out == "1 added, 0 duplicates, 0 already forgotten, rejected: 31 not a record, 1 not UTF-8\n"
    assert err.splitlines()[0] == "mixed.jsonl, line 2: `text` is empty. Fill it in, or leave out the row."
    assert len(err.splitlines()) == 21 and "and 12 more" in err
    assert len(rows(call("wake", "list", "--rejected", "--json")[1])) == 32


def test_an_empty_document_is_called_so(call, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    code, out, err = call("wake", "add", "empty.txt")
    assert (code, err) == (2, "empty.txt: contains no text. Fill it in, or leave it out.\n")
    assert out.endswith("rejected: 1 no text\n")


def test_what_is_left_out_of_a_folder_is_told_for_this_command_and_without_what_was_given(call, tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("the cat")
    (folder / "chats.jsonl").write_text('{"text": "the boat"}\n')
    code, out, err = call("wake", "add", "docs", "docs/chats.jsonl")
    assert (code, err) == (0, "") and out.startswith("2 added")
    (folder / "more.jsonl").write_text('{"text": "the dog"}\n')
    err = call("wake", "add", "docs", "docs/chats.jsonl")[2]
    assert err.startswith("Not read: docs: 1 .jsonl: not documents") and "wake add" not in err
    assert err.endswith("; a .jsonl file is stored if its own path is given too\n")


def test_standard_input_is_stored_line_by_line(tmp_path):
    arguments = [
        "wake",
        "add",
        "-",
        "--form",
        "lines",
        "--source",
        "log",
        "--buffer",
        str(tmp_path / "wake.db"),
        "--json",
    ]
    done = subprocess.run([*COMMAND, *arguments], input=b"one\ntwo\n", cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and json.loads(done.stdout)["added"] == 2
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        assert [(m.source, m.text) for m in buffer.memories()] == [("log", "one"), ("log", "two")]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_tail_continues_where_it_was_stopped(tmp_path, end):
    path, database = tmp_path / "log.txt", tmp_path / "wake.db"
    path.write_text("one\ntwo\n")
    command = [*COMMAND, "wake", "tail", str(path), "--buffer", str(database), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for expected in (2, 3):
        limit = time.monotonic() + 60
        while not (database.exists() and stored(database) == expected):
            assert time.monotonic() < limit
            time.sleep(0.05)
        with path.open("a") as file:
            file.write("three\n" if expected == 2 else "four\n")
        if expected == 3:
            process.send_signal(end)
    out = process.communicate()[0]
    if end == signal.SIGINT:
        assert process.returncode == 130 and json.loads(out)["added"] in (3, 4)
    done = subprocess.run([*command, "--idle", "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["duplicates"] == 0
    assert stored(database) == 4


def test_records_are_listed_with_the_beginning_of_their_text(call, tmp_path):
    lines = [{"id": "a", "text": "the cat\n\x1b]0;owned\x07 sleeps"}, {"id": "b", "text": "word " * 40}]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call("wake", "add", "docs.jsonl")
    first, second = call("wake", "list")[1].splitlines()
    assert first.endswith("docs.jsonl  “the cat ⟨U+001B⟩]0;owned⟨U+0007⟩ sleeps”")
    assert second.endswith(f"“{('word ' * 12).strip()}…”")
    assert [row["excerpt"] for row in rows(call("wake", "list", "--json")[1])][1] == "word " * 12
    call("wake", "forget", "docs.jsonl")
    assert "word" not in call("wake", "list")[1]


def stored(database: Path) -> int:
    with WakeBuffer(database) as buffer:
        return buffer.counts()["new"]


def test_forgetting_names_the_entries_that_learned_it(call, tmp_path, documents):
    run = write_finished_run(tmp_path / "runs" / "night1")
    write_json(run / "config.json", {"model": "tiny", "memories": "docs.jsonl"})
    call("wake", "add", documents)
    with WakeBuffer(tmp_path / "runs" / "wake.db") as buffer:
        buffer.register(run)
        (entry,) = read_ledger(run / "ledger.jsonl")
        sources = [{"id": m.id, "source": m.source, "sha256": m.sha256} for m in buffer.memories()]
    write_jsonl(run / "ledger.jsonl", [entry.model_dump(mode="json") | {"sources": sources}])
    assert {row["state"] for row in rows(call("wake", "list", "--json")[1])} == {"consolidated"}
    code, out, _ = call("wake", "forget", "letters")
    assert code == 0 and "sleep-trl memory drop" in out and "--source 'letters'" in out


def test_a_source_that_matches_several_is_forgotten_only_if_all_are_meant(call, tmp_path):
    for name in ("a", "b", "b/node_modules"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"about {name}")
    code, out, err = call("wake", "add", "a", "b")
    assert (code, out) == (0, "2 added, 0 duplicates, 0 already forgotten\n")
    assert err == "Not read: b/node_modules: folders of this name are ignored\n"
    assert [row["source"] for row in rows(call("wake", "list", "--json")[1])] == ["a/README.md", "b/README.md"]
    code, _, err = call("wake", "forget", "README.md")
    assert code == 2 and "the end of 2 sources: a/README.md, b/README.md" in err and "--all" in err
    assert call("wake", "forget", "a/README.md")[:2] == (0, "1 record forgotten\n")
    (row,) = rows(call("wake", "forget", "README.md", "--all", "--json")[1])
    assert (row["forgotten"], row["sources"]) == (1, ["a/README.md", "b/README.md"])
