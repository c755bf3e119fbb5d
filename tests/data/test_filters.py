from collections import Counter

import pytest

from sleep_trl.data.filters import FILTERS, Candidate, Check, apply_filters
from sleep_trl.rollout import Completion


def candidate(text, stop_reason="eos", *, may_be_truncated=False, kept=(), check=None):
    return Candidate(text, stop_reason, text.casefold(), may_be_truncated, set(kept), check)


def check(again, without_text, text="Ben", request=""):
    return Check(str.__eq__, again, without_text, text, request)


DROPPED = {
    "empty": [candidate("")],
    "truncated": [candidate("Where", "length")],
    "repetitive": [candidate("a b c d a b c d a b c d"), candidate("la la la la la la la")],
    "duplicate": [candidate("Who?", kept=["who?"])],
    "inconsistent": [candidate("Ben", check=check("Mira", "Mira"))],
    "unsupported": [
        candidate("Ada Finch", check=check("Ada Finch", "Ben", "Ben has a boat.")),
        candidate("the red boat", check=check("the red boat", "Ben", "Ben has a boat.")),
        candidate("Mivo", check=check("Mivo", "", "Mirlo rows the boat.", "What is the boat of Mivo?")),
        candidate("She ends it here", check=check("She ends it here", "", "Ben leads it.", "Where does she end?")),
    ],
    "question": [candidate(f"Ben{mark}", check=check("Ben", "Mira")) for mark in ("?", "？", "؟")],
    "echo": [
        candidate("The bench that Petra wrote.", check=check("The bench that Petra wrote.", "", request=asked))
        for asked in ("What is the bench that Petra wrote?", "Fair: what is the bench that Petra wrote?")
    ],
    "known": [candidate("Ben", check=check("Ben", "Ben"))],
}
KEPT = {
    "empty": [candidate("Ben")],
    "truncated": [candidate("Where"), candidate("Where", "length", may_be_truncated=True)],
    "repetitive": [
        candidate(text) for text in ("", "Ben", "Ben Ben Ben", "the cat of Mira is called Tolu and eats hats")
    ],
    "duplicate": [candidate("Who?", kept=["what?"])],
    "inconsistent": [candidate("Ben"), candidate("Ben", check=check("Ben", "Mira"))],
    "unsupported": [
        candidate("Ada"),
        candidate("A boat!", check=check("A boat!", "Ben", "Ben has a boat.")),
        candidate("Ben leads it", check=check("Ben leads it", "", "He is called Ben.", "Who leads it?")),
        candidate("red", check=check("red", "", "The door is red.", "Is it red or green?")),
        candidate("小舟", check=check("小舟", "Ben", "本有一条小舟。")),
    ],
    "question": [candidate("Who?"), candidate("Ben", check=check("Ben", "Mira", "Who? Ben."))],
    "echo": [
        candidate("Ben"),
        candidate("red", check=check("red", "", request="Is it red or green?")),
        candidate("The bench is red.", check=check("The bench is red.", "", request="What color is the bench?")),
        candidate("The bench that Petra wrote."),
    ],
    "known": [candidate("Ben"), candidate("Ben", check=check("Ben", "Mira"))],
}


def test_every_filter_has_examples():
    assert DROPPED.keys() == KEPT.keys() == FILTERS.keys()


@pytest.mark.parametrize("reason", FILTERS)
def test_each_filter_drops_what_it_should_and_nothing_else(reason):
    assert all(map(FILTERS[reason], DROPPED[reason]))
    assert not any(map(FILTERS[reason], KEPT[reason]))


def test_a_completion_counts_for_the_first_filter_that_drops_it():
    loop = "a b c d " * 6
    completions = [Completion([], text, reason) for text, reason in [("", "length"), (loop, "length"), (loop, "eos")]]
    kept, dropped = apply_filters(((None, c) for c in completions), lambda _, c: c.text)
    assert kept == [] and dropped == Counter(empty=1, truncated=1, repetitive=1)


def test_another_answer_takes_the_place_of_one_that_is_dropped():
    good, cut, guess = Completion([], "Ben", "eos"), Completion([], "Mi", "length"), Completion([], "Ada", "eos")
    checks = [check("Ben", ""), check("Mi", ""), check("Tom", "")]

    def instead(number, reason):
        return (number + 10, good) if reason == "inconsistent" else None

    pairs = list(enumerate([good, cut, guess]))
    kept, dropped = apply_filters(pairs, lambda n, c: (n, c.text), checks=checks, instead=instead)
    assert kept == [(0, good), (12, good)] and dropped == Counter(truncated=1)
    kept, dropped = apply_filters(pairs, lambda _, c: c.text, checks=checks, instead=instead)
    assert kept == [(0, good)] and dropped == Counter(truncated=1, duplicate=1)


def test_only_kept_completions_have_duplicates():
    cut, whole, again = Completion([], "Who?", "length"), Completion([], "Who?", "eos"), Completion([], "who?", "eos")
    kept, dropped = apply_filters(enumerate([cut, whole, again]), lambda _, c: c.text.casefold())
    assert kept == [(1, whole)] and dropped == Counter(truncated=1, duplicate=1)
    kept, dropped = apply_filters(enumerate([cut, whole]), lambda _, c: c.text.casefold(), keep_truncated=True)
    assert kept == [(0, cut)] and dropped == Counter(duplicate=1)
