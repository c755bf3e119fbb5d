import math
from types import SimpleNamespace

import pytest

from sleep_trl.distributed.progress import StepBar, console


@pytest.mark.parametrize(
    ("reward", "shown"), [(0.25, ", reward 0.250"), (None, ", no reward"), (math.nan, ", no reward"), ("nan", ", no r")]
)
def test_a_log_window_without_any_reward_is_shown(reward, shown, capsys) -> None:
    assert not console.is_terminal
    state = SimpleNamespace(global_step=3, max_steps=5)
    StepBar("Seeding").on_log(None, state, None, logs={"loss": 1.0, "reward": reward})
    assert f"step 3 of 5, loss 1.0000{shown}" in capsys.readouterr().out
