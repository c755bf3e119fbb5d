"""What becomes of nights that fail, of signals, and of a life that somebody else is at work in. The launchers here are
commands that end as a night can end; nights themselves are slept in test_live.py."""

import fcntl
import json
import os
import signal
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
from sleep_trl.wake import WakeBuffer, record_of_text
from tests.tiny import tiny_tokenizer
from tests.tiny_runs import write_finished_run

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "sleep_trl.cli", "live", "--json", "--check_every", "0.1"]


@pytest.fixture
def chain(tmp_path) -> list[str]:
    """Return the options of a life with a record that waits, in `tmp_path`."""
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([record_of_text("in", b"the cat of Mira", "s")])
    return [f"--model={tmp_path / 'model'}", f"--output_dir={tmp_path / 'life'}", f"--buffer={tmp_path / 'wake.db'}"]


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


def test_a_night_that_fails_is_tried_again_after_growing_pauses(chain):
    code, events = live(*chain, "--after_tokens", 4, "--launch", "sh -c 'exit 7'", "--tries", 3, "--pause", 0.1)
    assert code == 7
    assert kinds(events) == ["waiting", *["night", "failed"] * 3]
    assert [event["again_in"] for event in events if event["event"] == "failed"] == [0.1, 0.2, None]
    assert events[0]["records"] == 1 and events[0]["tokens"] == 4 and events[1]["why"] == "4 tokens wait"


def test_a_mistake_is_not_tried_again_and_a_kill_is_told_by_its_signal(chain):
    code, events = live(*chain, "--after_tokens", 4, "--launch", "sh -c 'exit 2'")
    assert (code, kinds(events)) == (2, ["waiting", "night", "failed"])
    code, events = live(*chain, "--after_tokens", 4, "--launch", "sh -c 'kill -9 $$'", "--tries", 1)
    assert code == 128 + signal.SIGKILL and events[-1]["exit_code"] == code


def test_a_night_that_is_set_aside_is_followed_by_others(chain, tmp_path):
    heard = tmp_path / "life" / "quarantined-001" / "phases" / "ingested.jsonl"
    record = json.dumps({"id": "a", "source": "s", "text": "the cat of Mira"})
    night = tmp_path / "night.sh"  # the first ends as one does of which nothing usable was written
    night.write_text(f"test -e {heard} && exit 7\nmkdir -p {heard.parent}\necho '{record}' > {heard}\nexit 2")
    words = [*COMMAND, *chain, "--after_tokens", "2", "--launch", f"bash {night}", "--tries", "1"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    (*_, quarantined, waiting) = read_until(process, "aside") + read_until(process, "waiting")
    assert quarantined["records"] == 1 and quarantined["night"] == str(heard.parents[1])
    assert (waiting["records"], waiting["tokens"]) == (0, 0)
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([record_of_text("in", b"it eats hats", "s")])
    (*_, failed) = read_until(process, "failed")
    assert failed["exit_code"] == 7 and process.wait(60) == 7


def test_a_launcher_that_sleeps_no_night_is_told(chain):
    done = subprocess.run([*COMMAND, *chain, "--after_tokens=4", "--launch=true"], cwd=ROOT, capture_output=True)
    assert done.returncode == 1 and b"exit code 0, but" in done.stderr and b"is not finished" in done.stderr


def test_no_night_before_enough_was_heard(chain, tmp_path):
    words = [*COMMAND, *chain, "--after_tokens", "5", "--launch", "sh -c 'exit 2'"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert read_until(process, "waiting")[-1]["tokens"] == 4
    time.sleep(0.5)
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([record_of_text("in", b"Ben", "s")])
    assert kinds(read_until(process, "failed")) == ["waiting", "night", "failed"]
    assert process.wait(60) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on_and_waited_for(chain, tmp_path, number):
    seen = tmp_path / "seen"
    night = tmp_path / "night.sh"  # as a night does, it puts its things away, and takes a moment for it
    night.write_text(
        f"trap 'sleep 0.5; echo ended > {seen}; exit 130' INT\necho begun > {seen}\nwhile :; do sleep 0.1; done"
    )
    words = [*COMMAND, *chain, "--after_tokens", "4", "--launch", f"bash {night}"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    read_until(process, "night")
    wait_for(seen.exists)
    process.send_signal(number)
    assert kinds(read_until(process, "stopped")) == ["stopped"]
    assert process.wait(60) == 130 and seen.read_text() == "ended\n"


def test_nothing_of_a_stopped_night_stays(chain, tmp_path):
    """A launcher may end at once, and leave workers that are still at it."""
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


def test_a_life_that_somebody_is_at_work_in_is_waited_for(chain, tmp_path):
    (tmp_path / "life").mkdir()
    with (tmp_path / "life" / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        words = [*COMMAND, *chain, "--after_tokens", "4", "--launch", "sh -c 'exit 2'"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert kinds(read_until(process, "held")) == ["held"]
        time.sleep(0.5)
        assert process.poll() is None
    assert kinds(read_until(process, "failed")) == ["waiting", "night", "failed"]
    assert process.wait(60) == 2


def test_a_night_holds_the_lock_of_its_life(chain, tmp_path):
    """So that no second one begins beside it when the process that started it was killed."""
    begun = tmp_path / "begun"
    words = [*COMMAND, *chain, "--after_tokens", "4", "--launch", f"sh -c 'touch {begun}; sleep 3'"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(begun.exists)
    process.kill()
    process.wait()
    with (tmp_path / "life" / LOCK).open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX)  # free when the night has ended


def supervisor(chain: Path, told: list, **policy: object) -> Supervisor:
    pending = PendingRecords(chain.parent / "wake.db")
    launcher = Launcher.read("sh -c 'exit 2'")
    return Supervisor(
        chain, "wake:b", ["--model=m"], launcher, pending, SleepPolicy(**policy), lambda kind, _: told.append(kind)
    )


def test_an_hour_without_anything_new_is_no_night(tmp_path):
    now = datetime.now().astimezone()
    told: list = []
    loop = supervisor(tmp_path / "life", told, at=now.time())
    assert loop._why_now() is None and told == ["waiting"]
    loop._alarm.due = now - timedelta(minutes=1)  # the hour comes
    assert loop._why_now() is None and told == ["waiting", "nothing new"]
    assert loop._why_now() is None and told == ["waiting", "nothing new"]
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([record_of_text("in", b"the cat", "s")])
    assert loop._why_now() is None
    loop._alarm.due = now - timedelta(minutes=1)
    assert loop._why_now() == "the hour has come"


def test_nights_stay_what_they_were_about_and_an_interrupted_one_comes_first(tmp_path):
    chain, told = tmp_path / "life", list[str]()
    loop = supervisor(chain, told, after_tokens=5)
    assert loop._why_now() is None
    assert loop._arguments(1) == ["--model=m", '--nights=["wake:b"]', "--resume"]
    write_finished_run(chain / "night-001")
    write_json(chain / "night-001" / "config.json", {"memories": "monday.jsonl"})
    assert loop._arguments(2)[1] == '--nights=["monday.jsonl", "wake:b"]' and loop._why_now() is None
    write_json(chain / "night-002" / "config.json", {"memories": "wake:a"})
    assert loop._finished() == 1 and loop._why_now() == "a night was interrupted"
    assert loop._arguments(2)[1] == '--nights=["monday.jsonl", "wake:a"]'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "When to sleep is not said"),
        (["--after_tokens", "4", "--launch", "snore 8"], "there is no program 'snore'"),
        (["--after_tokens", "4", "--launch", "'"], "is no command"),
        (["--at", "25:00"], "--at: '25:00' is no hour of a day. Give such as 03:30."),
        (["--at", "3:30", "--seeding.stepz", "4"], "--seeding.stepz is not an option. Did you mean --seeding.steps?"),
        (["--at", "3:30", "--memories", "docs.jsonl"], "is about a wake buffer, not docs.jsonl. Give --buffer PATH."),
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
        main(["live", "--model=m", "--output_dir=life", *words])
    _, err = capfd.readouterr()
    assert ended.value.code == 2 and message in err and "Traceback" not in err


def test_nights_of_the_file_are_refused(tmp_path, capfd):
    (tmp_path / "life.yaml").write_text("model: m\nnights: [a.jsonl, b.jsonl]\n")
    with pytest.raises(SystemExit) as ended:
        main(["live", "--config", str(tmp_path / "life.yaml"), "--at", "3:30"])
    assert ended.value.code == 2 and "not nights (a.jsonl, b.jsonl). Give --buffer PATH." in capfd.readouterr()[1]


def wait_for(happens, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)
