"""Following a log: no line is lost or read twice, however it is rotated."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from sleep_trl.wake import WakeBuffer, follow
from sleep_trl.wake.following import _Stream


class Log:
    """A log that is followed in steps, as `wake tail` does between two polls."""

    def __init__(self, folder: Path) -> None:
        self.path, self.buffer = folder / "app.log", WakeBuffer(folder / "wake.db")
        self.path.write_text("")
        self.number = 0

    def write(self, count: int, path: Path | None = None) -> None:
        with (path or self.path).open("a") as file:
            for _ in range(count):
                self.number += 1
                file.write(f"line {self.number}\n")

    def texts(self) -> list[str]:
        return [memory.text for memory in self.buffer.memories()]

    def expected(self) -> list[str]:
        return [f"line {number}" for number in range(1, self.number + 1)]


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path)
    yield made
    made.buffer.close()


def renamed(log: Log) -> None:
    log.path.rename(log.path.with_name("app.log.1"))
    log.write(2, log.path.with_name("app.log.1"))  # the program has not opened the new one yet
    log.path.touch()


def copied_and_truncated(log: Log) -> None:
    shutil.copy(log.path, log.path.with_name("app.log.1"))
    log.path.write_text("")


def made_anew(log: Log) -> None:
    log.path.rename(log.path.with_name("app.log.1"))
    log.write(5)  # longer at once than what was read


def truncated_and_longer(log: Log) -> None:
    copied_and_truncated(log)
    log.write(40)


ROTATIONS = [renamed, copied_and_truncated, made_anew, truncated_and_longer]


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_a_running_follower_loses_no_line(log, rotate, monkeypatch) -> None:
    """Lines are written between a look at the file and its rotation."""
    rounds = iter((log.write, rotate, log.write, rotate, log.write))

    def between_two_looks(_: float) -> None:
        if (change := next(rounds, None)) is not None:
            log.write(3)
            change(*((log,) if change is rotate else (2,)))
            log.write(2)

    monkeypatch.setattr(time, "sleep", between_two_looks)
    log.write(3)
    counted = sum(t.added + t.duplicates for t in follow(log.buffer, log.path, poll=1, idle=4))
    assert log.texts() == log.expected() and counted == log.number > 20


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_a_follower_that_starts_again_finds_the_rotated_file(log, rotate) -> None:
    log.write(3)
    list(follow(log.buffer, log.path, idle=0))
    log.write(3)
    rotate(log)
    log.write(2)
    counted = sum(t.added + t.duplicates for t in follow(log.buffer, log.path, idle=0))
    assert log.texts() == log.expected() and counted == log.number - 3
    assert sum(t.added + t.duplicates for t in follow(log.buffer, log.path, idle=0)) == 0


def test_a_rotated_file_may_have_descriptor_zero(log, monkeypatch) -> None:
    """The first that is free where standard input is closed, as in a service."""
    log.write(3)
    list(follow(log.buffer, log.path, idle=0))
    renamed(log)
    log.write(1)
    beside, standard_input, left_open = _Stream._beside, os.dup(0), [0]

    def and_close_standard_input(stream: _Stream) -> list[Path]:
        found = beside(stream)
        while left_open:
            os.close(left_open.pop())
        return found

    try:
        with monkeypatch.context() as patch:
            patch.setattr(_Stream, "_beside", and_close_standard_input)
            list(follow(log.buffer, log.path, idle=0))
        still_open = {path.resolve().name for path in Path("/proc/self/fd").iterdir()}
    finally:
        os.dup2(standard_input, 0)
        os.close(standard_input)
    assert log.texts() == log.expected() and not still_open & {"app.log", "app.log.1"}


@pytest.mark.parametrize("copies", [False, True])
def test_a_log_that_was_rotated_several_times_meanwhile_is_read_in_order(log, copies) -> None:
    """Each time what was rotated before moves up, as logrotate does it. Another log beside it is not read."""
    (log.path.parent / "app-errors.log").write_text("not this one\n")
    log.write(3)
    list(follow(log.buffer, log.path, idle=0))
    for _ in range(3):
        log.write(2)
        for number in (2, 1):
            if (former := log.path.with_name(f"app.log.{number}")).exists():
                former.rename(log.path.with_name(f"app.log.{number + 1}"))
        if copies:
            shutil.copy2(log.path, log.path.with_name("app.log.1"))
            log.path.write_text("")
        else:
            log.path.rename(log.path.with_name("app.log.1"))
        time.sleep(0.02)  # the times of files differ
    log.write(1)
    counted = sum(t.added + t.duplicates for t in follow(log.buffer, log.path, idle=0))
    assert log.texts() == log.expected() and counted == log.number - 3


def test_a_file_made_anew_with_the_same_inode_is_another(log) -> None:
    log.write(3)
    list(follow(log.buffer, log.path, idle=0))
    with log.path.open("r+") as file:  # as a file system that gives the inode again
        file.truncate()
        file.write("other 1\nother 2\nother 3\nother 4\nother 5\n")
    list(follow(log.buffer, log.path, idle=0))
    assert log.texts()[3:] == [f"other {number}" for number in range(1, 6)]


def test_a_moment_without_the_file_is_outlived(log) -> None:
    log.write(2)

    def rotate() -> None:
        time.sleep(0.1)
        log.path.rename(log.path.with_name("app.log.1"))
        time.sleep(0.2)
        log.write(3)

    writer = threading.Thread(target=rotate)
    writer.start()
    list(follow(log.buffer, log.path, poll=0.01, idle=0.5))
    writer.join()
    assert log.texts() == log.expected()


def test_what_may_be_lost_is_said(log, caplog) -> None:
    log.write(3)
    list(follow(log.buffer, log.path, idle=0))
    log.path.unlink()
    log.write(1)
    list(follow(log.buffer, log.path, idle=0))
    assert "was replaced while it was not followed" in caplog.text and log.texts() == log.expected()


def test_a_last_line_without_a_break_is_read_once_its_file_was_rotated(log) -> None:
    log.path.write_text("whole\nbegun")
    list(follow(log.buffer, log.path, idle=0))
    assert log.texts() == ["whole"]
    log.path.rename(log.path.with_name("app.log.1"))
    log.path.write_text("next\n")
    list(follow(log.buffer, log.path, idle=0))
    assert log.texts() == ["whole", "begun", "next"]
