import random

import pytest

from sleep_trl.data.windows import split_all, split_sentences, split_windows

TEXT = " ".join(f'Sentence {i} says "hello." It {i} goes on{" and on" * (i % 5)}!' for i in range(40))


def count(text: str) -> int:
    return len(text.split())


def test_a_text_that_fits_is_one_window():
    assert split_windows("One. Two.", count, 10, 2) == ["One. Two."]


def test_sentences_joined_are_the_text():
    for text in (TEXT, "no end", "a.b.c", "Eins.\n\nZwei?! Drei", "句子一。句子二！", ""):
        assert "".join(split_sentences(text)) == text


@pytest.mark.parametrize("window", [12, 20, 50])
@pytest.mark.parametrize("overlap", [0, 5, 11])
def test_windows_fit_cover_everything_and_begin_at_sentences(window, overlap):
    windows = split_windows(TEXT, count, window, overlap)
    starts = {sentence.strip() for sentence in split_sentences(TEXT)}
    position = 0
    for text in windows:
        assert count(text) <= window
        assert any(text.startswith(sentence) for sentence in starts)
        begin = TEXT.index(text)
        assert begin <= position  # no gap but white space
        position = begin + len(text) + 1
    assert position >= len(TEXT)


def test_overlap_repeats_whole_sentences():
    windows = split_windows("A b c. D e f. G h i. J k l.", count, 6, 3)
    assert windows == ["A b c. D e f.", "D e f. G h i.", "G h i. J k l."]


def test_a_sentence_longer_than_a_window_is_split_between_words():
    words = [f"word{i}" for i in range(100)]
    windows = split_windows(" ".join(words), count, 10, 0)
    assert [word for window in windows for word in window.split()] == words
    assert max(map(count, windows)) <= 10


def test_a_word_longer_than_a_window_is_split_too():
    windows = split_windows("x" * 1000, len, 64, 0)
    assert "".join(windows) == "x" * 1000 and max(map(len, windows)) <= 64


def test_overlap_must_be_smaller_than_the_window():
    with pytest.raises(ValueError, match="must be smaller than the window"):
        split_windows(TEXT, count, 10, 10)


def test_random_texts_lose_nothing():
    rng = random.Random(0)
    for _ in range(100):
        text = "".join(rng.choice('ab .!?\n"') for _ in range(rng.randrange(1, 300))).strip() or "a"
        kept = "".join("".join(w.split()) for w in split_windows(text, len, 16, 0))
        assert kept == "".join(text.split())


def test_small_windows_overlap_by_at_most_half():
    assert split_all(["A b c. D e f. G h i.", "J."], count, 6, 50) == [["A b c. D e f.", "D e f. G h i."], ["J."]]
