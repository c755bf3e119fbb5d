import io
import math
import time
from types import SimpleNamespace

import pytest

from sleep_trl.config.console import PlainConsole
from sleep_trl.distributed import progress
from sleep_trl.distributed.progress import StepBar, bar, console


@pytest.mark.parametrize(
    ("reward", "shown"), [(0.25, ", reward 0.250"), (None, ", no reward"), (math.nan, ", no reward"), ("nan", ", no r")]
)
def test_a_log_window_without_any_reward_is_shown(reward, shown, capsys) -> None:
    assert not console.is_terminal
    state = SimpleNamespace(global_step=3, max_steps=5)
    StepBar("Seeding").on_log(None, state, None, logs={"loss": 1.0, "reward": reward})
    assert f"step 3 of 5, loss 1.0000{shown}" in capsys.readouterr().out


def test_a_phase_prints_lines_without_a_terminal(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    with bar("Writing statement", 3600) as advance:
        advance(1200)
        time.sleep(0.3)  # a batch that takes long
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("Writing statement: 1,200 of 3,600 after 0:00:0") for line in lines)


def test_a_bar_of_80_columns_has_its_figures_and_cuts_its_label(monkeypatch) -> None:
    screen = io.StringIO()
    terminal = PlainConsole(file=screen, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "console", terminal)
    with bar("Perplexity of 40 shipped prose texts, 9,564 tokens, after", 12_345) as advance:
        advance(31)
    drawn = [line for line in screen.getvalue().replace("\r", "\n").splitlines() if "31/12345" in line][-1]
    assert "Perplexity of 40" in drawn and "…" in drawn and "0:00:0" in drawn and "left -:--:--" in drawn


def test_a_short_phase_prints_no_line(capsys) -> None:
    with bar("Writing statement", 3) as advance:
        advance(3)
    assert capsys.readouterr().out == ""


def test_only_the_main_process_prints_lines(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    monkeypatch.setattr(progress, "PartialState", lambda: SimpleNamespace(is_main_process=False, num_processes=2))
    with bar("Writing statement", 3) as advance:
        advance(1)
        time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_steps_are_not_printed_twice(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    state, steps = SimpleNamespace(global_step=0, max_steps=5), StepBar("Seeding")
    steps.on_train_begin(None, state, None)
    time.sleep(0.1)
    steps.on_step_end(None, state, None)
    steps.on_train_end(None, state, None)
    assert capsys.readouterr().out == ""
