"""The figures draw the numbers of the run."""

import math

import pytest

from sleep_trl.report.figures import charts, series
from sleep_trl.report.retention import chain_charts
from tests.report.pages import make_chain, make_results


def by_id(results):
    return {chart.id: chart for chart in charts(results)}


def lines(chart):
    return {trace.name: (list(trace.x), list(trace.y)) for trace in chart.plot.data}


def test_bars_are_the_results() -> None:
    drawn = by_id(make_results())
    recall = [trace.y[0] for trace in drawn["recall"].plot.data]  # before, with context, after
    assert recall == pytest.approx([2, 98, 96])
    before, after = drawn["skill"].plot.data
    assert list(before.x) == ["base skill", "recall of<br>entry-001"]
    assert list(before.y) == pytest.approx([98.7, 97])
    assert list(after.y) == pytest.approx([98.6, 96.5])
    assert drawn["skill"].plot.layout.xaxis.type == "category"
    seconds = {trace.name: trace.x[0] for trace in drawn["seconds"].plot.data}
    assert seconds == {"write dataset": 30.5, "seed": 120.25}  # the total is not a phase


def test_many_pairs_of_bars_have_no_numbers() -> None:
    few, many = (
        by_id(make_results(retention={f"entry-{n}": {"before": 1.0, "after": 0.9} for n in range(nights)}))["skill"]
        for nights in (3, 4)
    )
    assert few.plot.data[0].text == ("98.7", "100.0", "100.0", "100.0") and many.plot.data[0].text is None


def test_no_two_nights_look_alike() -> None:
    names = [f"entry-{number:03}" for number in range(1, 16)]
    recall = [[0.9] * (number + 1) for number in range(15)]
    _, curves = chain_charts(make_chain(entries=names, recall=recall, base_skill=[1.0] * 16))
    assert len({(trace.meta["hue"], trace.line.dash) for trace in curves.plot.data}) == 16


def test_lines_are_the_history() -> None:
    drawn = by_id(make_results())
    steps = [1, 2, 3]
    assert lines(drawn["loss"])["loss"] == (steps, [1.0, 1 / 2, 1 / 3])
    assert lines(drawn["reward"]) == {
        "imitation": (steps, [0.1 * s for s in steps]),
        "short": (steps, [0.3 * s for s in steps]),
        "weighted sum": (steps, [0.2 * s for s in steps]),
    }
    assert lines(drawn["divergence"]) == {
        "memory, rollout": (steps, [1.5 / s for s in steps]),
        "memory, reference": (steps, [1.25 / s for s in steps]),
        "general, rollout": (steps, [0.01 * s for s in steps]),
    }
    memory, reference, general = drawn["divergence"].plot.data
    assert memory.meta == reference.meta != general.meta  # a part keeps its hue, a kind its dash
    assert (memory.line.dash, reference.line.dash, general.line.dash) == ("solid", "dot", "solid")


def test_sum_of_one_reward_is_not_drawn_twice() -> None:
    history = [{"reward": 0.5, "rewards/imitation/mean": 0.5, "step": 1}]
    assert list(lines(by_id(make_results(history=history))["reward"])) == ["imitation"]


def test_values_that_are_not_finite_are_gaps() -> None:
    history = [{"loss": v, "step": i} for i, v in enumerate([1.0, math.nan, None, math.inf, 0.5])]
    assert series(history, "loss") == ([0, 1, 2, 3, 4], [1.0, None, None, None, 0.5])
    chart = by_id(make_results(history=history))["loss"]
    assert "gaps: 3." in chart.caption
    assert chart.summary == "loss: first 1, last 0.5"


def test_a_chain_is_drawn_as_matrix_and_curves() -> None:
    matrix, curves = chain_charts(make_chain())
    cells = {(x, y): share for t in matrix.plot.data for x, y, share in zip(t.x, t.y, t.customdata, strict=True)}
    assert cells == {("entry-001", "entry-001"): 90, ("entry-001", "entry-002"): 60, ("entry-002", "entry-002"): 100}
    drawn = [(shape.x0 + 0.48, shape.y0 + 0.48, shape.opacity) for shape in matrix.plot.layout.shapes]
    assert drawn == [(0, 0, pytest.approx(0.501)), (0, 1, pytest.approx(0.354)), (1, 1, 0.55)]
    assert "forgetting: 30.0\u00a0%" in matrix.caption and "forward transfer: not measured" in matrix.summary
    assert {trace.name: list(trace.y) for trace in curves.plot.data} == {
        "entry-001": [90, 60],
        "entry-002": [None, 100],
        "base skill": [99, 98],
    }


@pytest.mark.parametrize(
    "chain",
    [
        make_chain(entries=[], recall=[]),
        make_chain(entries=["entry-001"], recall=[[0.9]]),
        make_chain(recall=[[None], [None, None]]),
    ],
)
def test_one_night_or_no_questions_draw_no_chain(chain) -> None:
    assert chain_charts(chain) == []


def test_one_step_is_visible() -> None:
    (trace,) = by_id(make_results(history=[{"loss": 0.25, "step": 1}]))["loss"].plot.data
    assert "markers" in trace.mode
    assert list(trace.y) == [0.25]


@pytest.mark.parametrize("history", [[], None, [{"train_loss": 0.6, "step": 3}], [{"loss": math.nan, "step": 1}]])
def test_no_history_no_lines(history) -> None:
    assert set(by_id(make_results(history=history))) == {"recall", "skill", "seconds"}
