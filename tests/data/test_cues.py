"""Cues are a few neighboring words of a sentence, in any script."""

import pytest

from sleep_trl.data.cues import LENGTHS, cues_of, hint_of

SENTENCE = "Walkers can cross the stream by the stepping stones behind the brewery."


def test_cues_are_spread_over_a_sentence() -> None:
    cues = cues_of(SENTENCE, 4)
    assert cues == ["Walkers can", "the stream by the", "the stepping stones", "stepping stones behind the brewery"]
    assert [len(cue.split()) for cue in cues] == list(LENGTHS)
    assert all(cue in SENTENCE for cue in cues_of(SENTENCE, 20)) and len(set(cues_of(SENTENCE, 20))) == 20


def test_a_cue_says_something_and_is_no_more_than_half_of_its_sentence() -> None:
    assert cues_of("It is in the old mill.", 2) == ["old mill", "the old mill"]
    assert all(len(cue.split()) <= 2 for cue in cues_of("Nils has two cats.", 4))
    assert cues_of("It is so.", 4) == [] and cues_of("", 4) == []
    assert cues_of("He is 94.", 4) == ["94"]


@pytest.mark.parametrize(
    "sentence",
    [
        "東京駅の北口は月曜日まで閉鎖されています。",
        "สะพานปิดจนถึงสิ้นเดือนพฤษภาคม",
        "다리는 오월 말까지 닫혀 있습니다.",
        "पुल मई के अंत तक बंद है।",
        "الجسر مغلق حتى نهاية شهر مايو.",
    ],
)
def test_every_script_has_cues(sentence: str) -> None:
    cues = cues_of(sentence, 4)
    assert len(cues) >= 3 and all(cue in sentence and len(cue) < len(sentence) / 1.5 for cue in cues)


def test_a_cue_has_no_punctuation_at_its_ends() -> None:
    cues = cues_of('In the 3.5 km run, "Nils Moor" won the first prize (again)!', 8)
    assert all(cue[0].isalnum() and cue[-1].isalnum() for cue in cues) and any("3.5 km" in cue for cue in cues)


def test_a_hint_has_some_words_of_a_title_in_their_order() -> None:
    title = "Notice: the footbridge at Sandlow"
    hints = [hint_of(title, number) for number in range(40)]
    assert len(set(hints)) > 10 and hints == [hint_of(title, number) for number in range(40)]
    words = title.replace(":", "").split()
    for hint in hints:
        assert hint.split() == [word for word in words if word in hint.split()]
        assert {"Notice", "footbridge", "Sandlow"}.intersection(hint.split())
    assert hint_of("The", 0) == "The" and hint_of("?", 0) == "?"
    assert " " not in hint_of("東京駅の北口", 1)
