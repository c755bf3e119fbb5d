"""Nights that fail, signals, and a chain that another process works on. The launchers here are commands that end as a
night can end; real nights are run in test_live.py."""

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from sleep_trl.cli import main
from sleep_trl.daemon import Launcher, PendingRecords, SleepPolicy, Supervisor
from sleep_trl.daemon.subprocess_night import LOCK
from sleep_trl.runs.files import write_json
from sleep_trl.runs.ledger import Source, read_ledger, write_ledger
from sleep_trl.wake import WakeBuffer, record_of_text
from tests.tiny import tiny_tokenizer
from tests.tiny_runs import write_finished_run

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "sleep_trl.cli", "live", "--json", "--check_every", "0.1"]


@pytest.fixture
def chain(tmp_path) -> list[str]:
    """Return the options of a chain with a pending record, in `tmp_path`."""
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([record_of_text("in", b"the cat of Mira", "s")])
    return [f"--model={tmp_path / 'model'}", f"--output_dir={tmp_path / 'chain'}", f"--buffer={tmp_path / 'wake.db'}"]


def live(*options: object) -> tuple[int, list[dict]]:
    """Call `sleep-trl live` and return its exit code and its events."""
    done = subprocess.run([*COMMAND, *map(str, options)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def kinds(events: list[dict]) -> list[str]:
    return [event["event"] for event in events]


def read_until(process: subprocess.Popen, kind: str) -> list[dict]:
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == kind:
            break
    return events


def test_a_night_that_fails_is_retried_after_growing_pauses(chain):
    code, events = live(*chain, "--after_tokens", 4, "--launch", "sh -c 'exit 7'", "--tries", 3, "--pause", 0.1)
    assert code == 7
    assert kinds(events) == ["pending", *["started", "failed"] * 3]
    assert [event["retry_in"] for event in events if event["event"] == "failed"] == [0.1, 0.2, None]
    assert events[0]["records"] == 1 and events[0]["tokens"] == 4 and events[1]["why"] == "4 tokens pending"


def test_a_mistake_is_not_retried_and_a_kill_is_reported_by_its_signal(chain):
    code, events = live(*chain, "--after_tokens", 4, "--launch", "sh -c 'exit 2'")
    assert (code, kinds(events)) == (2, ["pending", "started", "failed"])
    code, events = live(*chain, "--after_tokens", 4, "--launch", "sh -c 'kill -9 $$'", "--tries", 1)
    assert code == 128 + signal.SIGKILL and events[-1]["exit_code"] == code


def test_a_quarantined_night_is_followed_by_others(chain, tmp_path):
    ingested = tmp_path / "chain" / "quarantined-001" / "phases" / "ingested.jsonl"
    record = json.dumps({"id": "a", "source": "s", "text": "the cat of Mira"})
    night = tmp_path / "night.sh"  # the first ends as a night for which nothing usable was written
    night.write_text(f"test -e {ingested} && exit 7\nmkdir -p {ingested.parent}\necho '{record}' > {ingested}\nexit 2")
    words = [*COMMAND, *chain, "--after_tokens", "2", "--launch", f"bash {night}", "--tries", "1"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    (*_, quarantined, pending) = read_until(process, "quarantined") + read_until(process, "pending")
    assert quarantined["records"] == 1 and quarantined["night"] == str(ingested.parents[1])
    assert (pending["records"], pending["tokens"]) == (0, 0)
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([record_of_text("in", b"it eats hats", "s")])
    (*_, failed) = read_until(process, "failed")
    assert failed["exit_code"] == 7 and process.wait(60) == 7


def test_a_night_of_which_all_is_forgotten_does_not_end_the_loop(chain, tmp_path):
    night = tmp_path / "night.sh"  # ends as a night whose records were forgotten
    forget = f"{sys.executable} -m sleep_trl.cli wake forget s --buffer {tmp_path / 'wake.db'}"
    night.write_text(f"mkdir -p {tmp_path / 'chain'}\n{forget} >&2\nexit 75")
    words = [*COMMAND, *chain, "--after_tokens", "2", "--launch", f"bash {night}"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    events = read_until(process, "nothing_left") + read_until(process, "pending")
    process.kill()
    process.wait()
    assert kinds(events) == ["pending", "started", "nothing_left", "pending"] and events[-1]["records"] == 0


def test_a_launcher_that_runs_no_night_is_reported(chain):
    done = subprocess.run([*COMMAND, *chain, "--after_tokens=4", "--launch=true"], cwd=ROOT, capture_output=True)
    assert done.returncode == 1 and b"exit code 0, but" in done.stderr and b"is not finished" in done.stderr


def test_no_night_before_enough_records_are_pending(chain, tmp_path):
    words = [*COMMAND, *chain, "--after_tokens", "5", "--launch", "sh -c 'exit 2'"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert read_until(process, "pending")[-1]["tokens"] == 4
    time.sleep(0.5)
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([record_of_text("in", b"Ben", "s")])
    assert kinds(read_until(process, "failed")) == ["pending", "started", "failed"]
    assert process.wait(60) == 2


def test_an_interrupt_while_the_night_starts_is_not_lost(tmp_path, monkeypatch):
    start, started = subprocess.Popen, []

    def start_and_interrupt(*arguments, **options):
        started.append(start(*arguments, **options))
        signal.raise_signal(signal.SIGINT)  # before the caller has the process
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start_and_interrupt)
    night = tmp_path / "night.sh"
    night.write_text("sleep 50")
    launcher = Launcher.parse(f"bash {night}")
    with (tmp_path / "lock").open("w") as lock, pytest.raises(KeyboardInterrupt):
        launcher.run([], lock.fileno())
    assert started[0].poll() is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_night_is_interrupted_and_waited_for(chain, tmp_path, number, code):
    seen = tmp_path / "seen"
    night = tmp_path / "night.sh"  # like a night, it takes a moment to clean up
    night.write_text(
        f"trap 'sleep 0.5; echo ended > {seen}; exit 130' INT\necho begun > {seen}\nwhile :; do sleep 0.1; done"
    )
    words = [*COMMAND, *chain, "--after_tokens", "4", "--launch", f"bash {night}"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    read_until(process, "started")
    wait_for(seen.exists)
    process.send_signal(number)
    assert kinds(read_until(process, "stopped")) == ["stopped"]
    assert process.wait(60) == code and seen.read_text() == "ended\n"


def test_no_process_of_a_stopped_night_remains(chain, tmp_path):
    """A launcher may end at once and leave running workers."""
    worker = tmp_path / "worker"
    night = tmp_path / "night.sh"
    night.write_text(f"(trap '' INT; echo $BASHPID > {worker}.part; mv {worker}.part {worker}; sleep 1) & sleep 60")
    words = [*COMMAND, *chain, "--after_tokens", "4", "--launch", f"bash {night}"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(worker.exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(worker.read_text()), 0)


def test_a_chain_that_another_process_works_on_is_waited_for(chain, tmp_path):
    (tmp_path / "chain").mkdir()
    with (tmp_path / "chain" / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        words = [*COMMAND, *chain, "--after_tokens", "4", "--launch", "sh -c 'exit 2'"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert kinds(read_until(process, "waiting_for_lock")) == ["waiting_for_lock"]
        time.sleep(0.5)
        assert process.poll() is None
    assert kinds(read_until(process, "failed")) == ["pending", "started", "failed"]
    assert process.wait(60) == 2


def test_a_night_holds_the_lock_of_its_chain(chain, tmp_path):
    """No second night starts when the process that started the first one was killed."""
    begun = tmp_path / "begun"
    words = [*COMMAND, *chain, "--after_tokens", "4", "--launch", f"sh -c 'touch {begun}; sleep 3'"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(begun.exists)
    process.kill()
    process.wait()
    with (tmp_path / "chain" / LOCK).open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX)  # free once the night has ended


def supervisor(chain: Path, events: list, **policy: object) -> Supervisor:
    pending = PendingRecords(chain.parent / "wake.db")
    launcher = Launcher.parse("sh -c 'exit 2'")
    return Supervisor(
        chain, "wake:b", ["--model=m"], launcher, pending, SleepPolicy(**policy), lambda kind, _: events.append(kind)
    )


def test_no_night_at_the_scheduled_time_without_new_records(tmp_path):
    now = datetime.now().astimezone()
    events: list = []
    loop = supervisor(tmp_path / "chain", events, at=now.time())
    assert loop._why_now() is None and events == ["pending"]
    loop._alarm.due = now - timedelta(minutes=1)  # the scheduled time passes
    assert loop._why_now() is None and events == ["pending", "nothing_new"]
    assert loop._why_now() is None and events == ["pending", "nothing_new"]
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([record_of_text("in", b"the cat", "s")])
    assert loop._why_now() is None
    loop._alarm.due = now - timedelta(minutes=1)
    assert loop._why_now() == "scheduled time"


def test_the_scheduled_time_lasts_until_what_did_not_fit_a_night_is_learned(tmp_path):
    chain, night = tmp_path / "chain", tmp_path / "chain" / "night-001"
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([record_of_text("in", b"the cat", "s")])
    loop = supervisor(chain, [], at=datetime.now().astimezone().time())
    loop._alarm.due = datetime.now().astimezone() - timedelta(minutes=1)
    assert loop._why_now() == "scheduled time"
    write_finished_run(night)
    source = Source(id="a", source="in", sha256="0")
    entries = [entry.model_copy(update={"sources": (source,)}) for entry in read_ledger(night / "ledger.jsonl")]
    write_ledger(night / "ledger.jsonl", entries)
    write_json(night / "config.json", {"memories": "wake:b"})
    write_json(night / "results.json", {"not_trained": {"count": 1, "of": 2, "queued": 1, "ids": ["b"]}})
    assert loop._why_now() == "scheduled time"  # the night ended with its chunk, or its steps
    write_json(night / "results.json", {})
    assert loop._why_now() is None and not loop._is_night


def test_the_chunk_of_level_0_is_a_schedule(chain):
    code, events = live(*chain, "--levels.chunks=4,8", "--launch", "sh -c 'exit 2'")
    assert code == 2 and kinds(events) == ["pending", "started", "failed"] and events[0]["tokens"] == 4


def test_a_buffer_that_cannot_be_read_for_a_while_is_outlived(tmp_path, monkeypatch):
    """A full disk, on which SQLite cannot write what it needs to open a file."""
    events: list[str] = []
    loop = supervisor(tmp_path / "chain", events, after_tokens=1000)
    assert loop._why_now() is None and events == ["pending"]
    full = sqlite3.OperationalError("database or disk is full")
    with monkeypatch.context() as patch:
        patch.setattr(loop.pending, "_count", lambda: (_ for _ in ()).throw(full))
        patch.setattr(loop.pending, "_counted", None)
        assert [loop._why_now() for _ in range(3)] == [None] * 3
    assert events == ["pending", "buffer_unavailable"] and loop._unavailable == "database or disk is full"
    assert loop._why_now() is None and len(events) == 2


def test_a_buffer_that_never_could_be_read_is_an_error(tmp_path):
    (tmp_path / "wake.db").write_text("no database, but a text of sufficient length to be checked " * 20)
    with pytest.raises(ValueError, match="not a wake buffer"):
        supervisor(tmp_path / "chain", [], after_tokens=1000)._why_now()


def test_nights_keep_their_memories_and_an_interrupted_one_is_resumed_first(tmp_path):
    chain, events = tmp_path / "chain", list[str]()
    loop = supervisor(chain, events, after_tokens=5)
    assert loop._why_now() is None
    assert loop._arguments(1) == ["--model=m", '--nights=["wake:b"]', "--resume"]
    write_finished_run(chain / "night-001")
    write_json(chain / "night-001" / "config.json", {"memories": "monday.jsonl"})
    assert loop._arguments(2)[1] == '--nights=["monday.jsonl", "wake:b"]' and loop._why_now() is None
    write_json(chain / "night-002" / "config.json", {"memories": "wake:a"})
    assert loop._finished() == 1 and loop._why_now() == "resuming an interrupted night"
    assert loop._arguments(2)[1] == '--nights=["monday.jsonl", "wake:a"]'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--buffer", "wake.db"], "No schedule is given"),
        (["--after_tokens", "4", "--launch", "snore 8"], "there is no program 'snore'"),
        (["--after_tokens", "4", "--launch", "'"], "is not a command"),
        (["--at", "25:00"], "--at: '25:00' is not a time of day. Give, for example, 03:30."),
        (["--at", "3:30", "--seeding.stepz", "4"], "--seeding.stepz is not an option. Did you mean --seeding.steps?"),
        (
            ["--at", "3:30", "--memories", "docs.jsonl"],
            "from a wake buffer, not docs.jsonl. Give --buffer PATH.",
        ),
        (["--at", "3:30", "--buffer", "b", "--dry_run"], "sleep-trl doctor"),
        (["--at", "3:30"], "memories is missing"),
        (["--after_tokens", "4", "--buffer", "b"], "m has no tokenizer.json"),
        (["--at", "3:30", "--buffer", "m/tokenizer_config.json"], "is not a wake buffer"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(tmp_path, monkeypatch, capfd, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main(["live", "--model=m", "--output_dir=chain", *words])
    _, err = capfd.readouterr()
    assert ended.value.code == 2 and message in err and "Traceback" not in err


def test_nights_in_the_config_file_are_refused(tmp_path, capfd):
    (tmp_path / "chain.yaml").write_text("model: m\nnights: [a.jsonl, b.jsonl]\n")
    with pytest.raises(SystemExit) as ended:
        main(["live", "--config", str(tmp_path / "chain.yaml"), "--at", "3:30"])
    assert ended.value.code == 2 and "not nights (a.jsonl, b.jsonl). Give --buffer PATH." in capfd.readouterr()[1]


def wait_for(happens, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)
