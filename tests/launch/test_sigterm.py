import os
import signal

import pytest

from sleep_trl.launch.sigterm import sigterm_as_interrupt

pytestmark = pytest.mark.usefixtures("default_sigterm")


def test_the_first_interrupts_and_the_second_ends_the_process() -> None:
    with sigterm_as_interrupt() as is_terminated:
        assert not is_terminated()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert is_terminated() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_forked_child_ends_at_once() -> None:
    with sigterm_as_interrupt() as is_terminated:
        if (child := os.fork()) == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM and not is_terminated()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_launched_processes_and_other_handlers_are_left_alone(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with sigterm_as_interrupt():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setenv("WORLD_SIZE", "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with sigterm_as_interrupt():
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
