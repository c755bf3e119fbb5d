"""What a night prints at its end: the table, and in a sentence whether it worked."""

import pytest

from sleep_trl.config import RunConfig
from sleep_trl.launch.outcome import show_outcome
from tests.report.pages import make_results

UNMEASURED = {"before": None, "with_context": None, "after": None}


def shown(capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    results = make_results(
        agreement={"before": None, "after": None},
        consolidations=[],
        capacity={"max_experts": 8, "by_level": {"1": 1}},
        fold_difference=0.0,
        **changes,
    )
    show_outcome(RunConfig(model="m", memories="d.jsonl"), results, has_report=True)
    return " ".join(capsys.readouterr().out.split())


def test_the_end_says_whether_the_night_worked(capsys):
    assert "The model has learned the memories: without the text it answers 96.0 %" in shown(capsys)
    assert "It is not known what the model has learned" in shown(capsys, recall=UNMEASURED)


def test_the_end_does_not_repeat_why_something_was_not_measured(capsys):
    """The log said it when it was left out, and the report says it."""
    reason = "the texts have fewer than two tokens"
    printed = shown(capsys, left_out={"perplexity": reason})
    assert printed.count("not measured") == 1 and reason not in printed


def test_the_end_names_rewards_that_gave_no_value_or_failed(capsys):
    history = [
        {"step": step, "rewards/nones/scored": 0.0, "rewards/late/scored": share, "rewards/late/abstained": 1 - share}
        for step, share in ((1, 0.75), (2, 0.0))
    ]
    printed = shown(capsys, history=[*history, {"step": 2, "train_runtime": 1.0}])
    assert "Reward 'nones' gave no value for any completion" in printed
    assert "Reward 'late' gave a value for only 37.5 % of the completions" in printed
    assert "Reward 'late' failed for 62.5 % of the completions (on_error: abstain)" in printed
    assert "Reward" not in shown(capsys, history=[{"step": 1, "rewards/imitation/scored": 0.9}])
