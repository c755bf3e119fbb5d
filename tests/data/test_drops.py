"""What is dropped is counted, and some of it is kept to be shown."""

from collections import Counter

from sleep_trl.data.drops import MOST_EXAMPLES, DroppedText, Drops, pack, unpack
from sleep_trl.data.filters import apply_filters
from sleep_trl.data.quality import find_uncovered, measure_faithfulness
from sleep_trl.data.samples import Sample, Window
from sleep_trl.rollout import Completion


def text(number: int, reason: str) -> DroppedText:
    return DroppedText("m", "t", "Ben has a boat.", f"q{number}", "", reason)


def test_a_few_examples_of_each_reason_are_kept_with_all_counts():
    many = Drops({"known": 500, "none": 0}, [text(n, "known") for n in range(500)])
    both = many + Drops({"echo": 1}, [text(0, "echo")])
    assert both == Counter(known=500, echo=1) and "none" not in both
    kept = [example.request for example in both.examples]
    assert len(kept) == MOST_EXAMPLES + 1 and kept[-2] > kept[0]  # in order, and not only the first ones
    assert kept == [example.request for example in (many + Drops({"echo": 1}, [text(0, "echo")])).examples]


def test_each_text_is_stored_once():
    examples = [text(1, "known"), text(2, "known"), text(1, "echo")]
    packed = pack(examples)
    assert len(packed["texts"]) == len(set(packed["texts"])) and unpack(packed) == examples
    assert unpack({}) == []


def test_filters_describe_what_they_drop():
    completions = [Completion([], "", "eos"), Completion([1], "Ben", "eos"), Completion([1], "Ben", "eos")]
    kept, dropped = apply_filters(
        enumerate(completions), lambda _, c: c.text, describe=lambda n, c: DroppedText("m", "t", "", f"{n}", c.text)
    )
    assert [n for n, _ in kept] == [1] and dropped == Counter(empty=1, duplicate=1)
    assert [(d.request, d.answer, d.reason) for d in dropped.examples] == [
        ("0", "", "empty"),
        ("2", "Ben", "duplicate"),
    ]


def test_faithful_samples_have_only_words_of_what_the_teacher_read():
    windows = [Window("m", "", "Ben has a boat. It is red.", 0, ("Ben has a boat.", "It is red."))]

    def sample(reference, sentence=None, part="memory"):
        return Sample(part, "m", "t", "p", [1], [1], reference, [1], sentence=sentence)

    samples = [sample("A boat.", "Ben has a boat."), sample("a blue boat"), sample("once", part="general")]
    assert measure_faithfulness(windows, samples) == {"samples": 2, "faithful": 1}
    assert find_uncovered(windows, samples) == [{"memory_id": "m", "sentence": "It is red."}]
