"""A process that adds records is killed repeatedly: every acknowledged record is there, and the file is intact."""

import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from sleep_trl.wake import WakeBuffer

ROOT = Path(__file__).parents[2]
BATCH = 20

ADD_FOREVER = """
import sys
from pathlib import Path
from sleep_trl.data.documents import MemoryText
from sleep_trl.wake import WakeBuffer, WakeRecord, Position

buffer, batch = WakeBuffer(Path(sys.argv[1])), int(sys.argv[2])
at = buffer.position("stream")
number = at.offset if at else 0
while True:
    texts = [f"record {n} " * 50 for n in range(number, number + batch)]
    records = [WakeRecord(MemoryText(f"r{number + i}", "stream", t), "2026-07-10") for i, t in enumerate(texts)]
    number += batch
    buffer.add(records, Position("stream", "", number))
    print(number, flush=True)
"""


def test_kill_minus_nine_loses_no_acknowledged_record(tmp_path):
    path, seen, kills = tmp_path / "wake.db", 0, random.Random(0)
    for _ in range(8):
        command = [sys.executable, "-c", ADD_FOREVER, str(path), str(BATCH)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()  # it has started
        time.sleep(kills.uniform(0, 0.15))
        process.kill()
        printed = [int(line) for line in process.communicate()[0].split("\n")[:-1]]
        seen = printed[-1] if printed else seen + BATCH
        with sqlite3.connect(path) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with WakeBuffer(path) as buffer:
            stored = buffer.counts()["new"]
            assert stored >= seen and stored % BATCH == 0, "an acknowledged record was lost, or half a batch stored"
            assert buffer.position("stream").offset == stored, "the stream would be read from a wrong position"
            assert [found.id for found in buffer.records()] == [f"r{number}" for number in range(stored)]
    assert seen > 8 * BATCH


def test_several_processes_add_at_once(tmp_path):
    code = """
import sys
from pathlib import Path
from sleep_trl.data.documents import MemoryText
from sleep_trl.wake import WakeBuffer, WakeRecord
with WakeBuffer(Path(sys.argv[1])) as buffer:
    for batch in range(10):
        buffer.add([WakeRecord(MemoryText(f"{sys.argv[2]}-{batch}-{i}", sys.argv[2], f"{sys.argv[2]}-{batch}-{i}"), "t")
                    for i in range(20)])
"""
    path = tmp_path / "wake.db"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=ROOT) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with WakeBuffer(path) as buffer:
        assert buffer.counts()["new"] == 600


def test_several_threads_create_one_buffer_at_the_same_moment(tmp_path):
    for number in range(20):
        path, moment, opened = tmp_path / f"{number}.db", threading.Barrier(6), []

        def open_it(path: Path = path, moment: threading.Barrier = moment, opened: list = opened) -> None:
            moment.wait()
            WakeBuffer(path).close()
            opened.append(path)

        openers = [threading.Thread(target=open_it) for _ in range(6)]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join()
        assert len(opened) == 6
