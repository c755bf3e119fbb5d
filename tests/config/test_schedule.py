"""The schedule against section 3.1 of the paper: who sleeps when, and in which order."""

import pytest

from sleep_trl.config.schedule import LADDER, Edge, Schedule

CONTEXT, FIRST, LAST = Edge(0, 1, 1_000), Edge(1, 2, 5_000), Edge(2, None, 10_000)


def test_the_ladder_of_the_paper():
    assert LADDER == (1_000, 5_000, 10_000)
    assert Schedule().edges == (CONTEXT, FIRST, LAST)


@pytest.mark.parametrize(
    ("tokens", "due"),
    [
        (0, ()),
        (999, ()),
        (1_000, (CONTEXT,)),
        (1_001, ()),
        (4_000, (CONTEXT,)),
        (5_000, (FIRST, CONTEXT)),
        (6_000, (CONTEXT,)),
        (10_000, (LAST, FIRST, CONTEXT)),
        (15_000, (FIRST, CONTEXT)),
        (20_000, (LAST, FIRST, CONTEXT)),
    ],
)
def test_edges_fall_due_at_multiples_of_the_senders_chunk_and_run_from_slow_to_fast(tokens, due):
    assert Schedule().due(tokens) == due


def test_a_level_has_passed_on_what_it_holds_before_the_faster_one_writes_into_it():
    for _, due in Schedule((10, 20, 40, 80)).between(0, 400):
        senders = [edge.sender for edge in due]
        assert senders == sorted(senders, reverse=True)


def test_every_edge_runs_as_often_as_its_frequency_says():
    runs = [edge for _, due in Schedule().between(0, 50_000) for edge in due]
    assert [runs.count(edge) for edge in (CONTEXT, FIRST, LAST)] == [50, 10, 5]


@pytest.mark.parametrize("step", [1, 7, 999, 1_000, 1_001, 2_345, 12_000])
def test_input_in_pieces_of_any_size_meets_the_same_boundaries(step):
    """Nothing falls due twice and nothing is skipped, however the input is split."""
    schedule, met = Schedule(), []
    for ingested in range(0, 12_000, step):
        met += schedule.between(ingested, min(ingested + step, 12_000))
    assert met == list(schedule.between(0, 12_000))


def test_the_next_boundary_is_the_first_that_between_yields():
    schedule = Schedule()
    for ingested in (0, 1, 999, 1_000, 4_999, 10_000):
        assert schedule.next_boundary(ingested) == next(schedule.between(ingested, ingested + 1_000))[0]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ((1_000,), "at least two levels"),
        ((0, 5), "at least 1 token"),
        ((1_000, 1_000), "1000 follows 1000"),
        ((1_000, 2_500), "2500 follows 1000"),
        ((5_000, 1_000), "1000 follows 5000"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(chunks, message):
    with pytest.raises(ValueError, match=message):
        Schedule(chunks)
