"""A thousand hostile records: each is stored unchanged or rejected with a reason, and none does harm."""

import json
import random
import string
from collections import Counter
from pathlib import Path

from sleep_trl.data.documents import MemoryText
from sleep_trl.report.page import render_page
from sleep_trl.runs.ledger import LedgerEntry, Source
from sleep_trl.wake import WakeBuffer, add_path

COUNT = 1_000
NIGHT = {
    "recall": {"before": 0.0, "with_context": 1.0, "after": 1.0},
    "base_skill": {"before": 1.0, "after": 1.0, "measure": "agreement"},
    "seconds": {"seed": 1.0},
    "parameters": {"base": 1, "added": 1, "trainable": 1},
}
MARKUP = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "javascript:alert(1)"]
PATHS = [
    "../../../../etc/passwd",
    "/etc/passwd",
    "..\\..\\boot.ini",
    "file:///etc/passwd",
    "~/.ssh/id_rsa",
    "a/../../b",
]
SQL = ["'; DROP TABLE records; --", '" OR 1=1 --', "%s %d {0}"]
CONTROL = ["\x1b[2J\x1b[H", "\x07\x08\x7f", "\u202egnp.exe", "\ufeff", "\r\n\r\n", "\x00"]


def hostile(number: int, draw: random.Random) -> tuple[str, bytes]:
    """Return what is wrong with a line (`good` if it is to be stored) and the line."""
    text = f"{number} " + "".join(draw.choices(string.printable + "äß漢😀", k=draw.randint(1, 300)))
    row = {
        "id": f"id-{number}",
        "source": draw.choice([*PATHS, *MARKUP, *SQL]),
        "text": f"{number} {draw.choice(MARKUP)}",
    }
    control = draw.choice(CONTROL)
    deep = "[" * draw.choice([50_000, 400]) + "1"
    nested = [deep, f'{{"text": {deep}', json.dumps(row | {"text": [[{"text": text}]]})]
    made = {
        "good": lambda: json.dumps(row).encode(),
        "good text": lambda: json.dumps(row | {"text": text + draw.choice([*SQL, *CONTROL[:-1]])}).encode(),
        "duplicate id": lambda: json.dumps(row | {"id": "taken"}).encode(),
        "not UTF-8": lambda: text.encode() + b"\xc3\x28\xff" + draw.randbytes(40).replace(b"\n", b""),
        "not JSON": lambda: json.dumps(row).encode()[: -draw.randint(1, 30)],
        "nested": lambda: draw.choice(nested).encode(),
        "empty": lambda: json.dumps(row | {"text": draw.choice(["", " ", "\n\t", "\u3000"])}).encode(),
        "kind": lambda: json.dumps(draw.choice([None, 1, [], "text", row | {"text": 3}, {}, {"id": "x"}])).encode(),
        "label": lambda: json.dumps(row | {draw.choice(["id", "source"]): f"a{control}"}).encode(),
        "NUL": lambda: json.dumps(row | {"text": f"a\0{number}"}).encode(),
        "long label": lambda: json.dumps(row | {"source": "../" * 300}).encode(),
        "surrogate": lambda: json.dumps(row | {"text": f"{number}\udc00"}).encode(),
        "time": lambda: json.dumps(row | {"time": draw.choice([7, "", "now", "9999-99-99", "1e999"])}).encode(),
        "number": lambda: b'{"text": "a", "n": ' + b"9" * 10_000 + b"}",
        "questions": lambda: json.dumps(row | {"questions": draw.choice([{}, [[]], [{"question": text}]])}).encode(),
    }
    kind = draw.choice(list(made))
    return kind, made[kind]().replace(b"\n", b" ").replace(b"\r", b" ")


def test_a_thousand_hostile_records_do_no_harm(tmp_path, monkeypatch):
    draw, expected, lines = random.Random(5), Counter(), []
    for number in range(COUNT):
        kind, line = hostile(number, draw)
        expected[kind] += 1
        lines.append(line)
    lines.append(b'{"text": "' + b"x" * 9 * 2**20 + b'"}')
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    (tmp_path / "hostile.jsonl").write_bytes(b"\n".join(lines))
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        tally = add_path(buffer, tmp_path / "hostile.jsonl")
        good = expected["good"] + expected["good text"] + 1  # the first of the duplicate ids
        assert min(expected.values()) > 30
        assert tally.added == good and tally.duplicates == 0
        assert tally.added + tally.rejected.total() == COUNT + 1
        assert tally.rejected["id taken"] == expected["duplicate id"] - 1
        assert tally.rejected["not UTF-8"] == expected["not UTF-8"]
        assert tally.rejected["too long"] == 1
        reasons = [row["reason"] for row in buffer.rejections()]
        assert len(reasons) == tally.rejected.total()
        assert all(reason.isprintable() and len(reason) < 800 for reason in reasons)
        records = list(buffer.records())
        assert all(found.id.isprintable() and found.source.isprintable() for found in records)
        stored = {memory.id: memory for memory in buffer.memories()}
        for row in (json.loads(line) for line in lines[:COUNT] if is_json(line)):
            if isinstance(row, dict) and (memory := stored.get(row.get("id"))) is not None and row["id"] != "taken":
                assert (memory.text, memory.source) == (row["text"], row["source"])  # unchanged
        samples = [
            {"part": "memory", "memory_id": m.id, "template": m.source, "prompt": m.text, "reference": m.text}
            for m in stored.values()
        ]
        page = render_page(NIGHT, {"samples": samples}, [ledger_row(memory) for memory in stored.values()], "")
    assert not any(markup in page for markup in MARKUP[:2])
    assert "&lt;script&gt;" in page
    assert not list(home.iterdir()), "a source was taken for a path"
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} <= {"home", "hostile.jsonl", "wake.db"}
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        assert buffer._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert add_path(buffer, tmp_path / "hostile.jsonl").added == 0
        assert buffer.forget("../../../../etc/passwd") > 0 and Path("/etc/passwd").exists()


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def ledger_row(memory: MemoryText) -> LedgerEntry:
    source = Source(id=memory.id, source=memory.source, sha256=memory.sha256)
    place = {"expert": 0, "level": 1, "fingerprint": "", "base": "", "parents": ()}
    return LedgerEntry(id=memory.id, date="", sources=(source,), metrics={}, **place)
