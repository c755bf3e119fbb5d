import random
import time
from collections.abc import Callable

import pytest
import regex

from sleep_trl.data.windows import find_headings, find_statements, split_all, split_sentences, token_windows
from tests.tiny import byte_tokenizer, tiny_tokenizer

TEXT = " ".join(f'Sentence {i} says "hello." It {i} goes on{" and on" * (i % 5)}!' for i in range(40))


def count(text: str) -> int:
    return len(text.split())


def split(text: str, count_tokens: Callable[[str], int], window: int, overlap: int = 0) -> list[str]:
    return split_all([text], lambda texts: list(map(count_tokens, texts)), window, overlap)[0]


def test_a_text_that_fits_is_one_window():
    assert split("One. Two.", count, 10, 2) == ["One. Two."]


def test_sentences_joined_are_the_text():
    for text in (TEXT, "no end", "a.b.c", "Eins.\n\nZwei?! Drei", "句子一。句子二！", ""):
        assert "".join(split_sentences(text)) == text


@pytest.mark.parametrize("window", [12, 20, 50])
@pytest.mark.parametrize("overlap", [0, 5, 11])
def test_windows_fit_cover_everything_and_begin_at_sentences(window, overlap):
    windows = split(TEXT, count, window, overlap)
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
    windows = split("Ann has cats. Ben has dogs. Cleo has eels. Dan has fish.", count, 6, 3)
    assert windows == [
        "Ann has cats. Ben has dogs.",
        "Ben has dogs. Cleo has eels.",
        "Cleo has eels. Dan has fish.",
    ]


def test_a_sentence_longer_than_a_window_is_split_between_words():
    words = [f"word{i}" for i in range(100)]
    windows = split(" ".join(words), count, 10, 0)
    assert [word for window in windows for word in window.split()] == words
    assert max(map(count, windows)) <= 10


def test_a_word_longer_than_a_window_is_split_too():
    windows = split("x" * 1000, len, 64, 0)
    assert "".join(windows) == "x" * 1000 and max(map(len, windows)) <= 64


@pytest.mark.parametrize("blank", ["\r\n" * 600, "\t\n" * 300])
def test_a_long_blank_stretch_is_no_window(blank):
    windows = split(f"Ann has two cats. {blank}Ben has two dogs.", len, 256, 32)
    assert windows == ["Ann has two cats.", "Ben has two dogs."]


def test_an_empty_text_states_nothing():
    assert find_statements("") == [] == find_headings("")


@pytest.mark.parametrize("unit", ["天気がいい。", "He came. ", "x"])
def test_a_text_without_line_breaks_is_split_in_time(unit):
    text = unit * (240_000 // len(unit))
    begin = time.perf_counter()
    sentences = split_sentences(text)
    assert time.perf_counter() - begin < 8  # 1 second; 22 when the library got all of it at once
    assert "".join(sentences) == text
    assert len(sentences) == (1 if unit == "x" else 240_000 // len(unit))


def test_a_sentence_at_the_end_of_a_block_is_not_cut():
    text = "A fox ran. " * 500 + "This sentence" + " goes on" * 2000 + ". " + "A fox ran. " * 500
    assert max(split_sentences(text), key=len) == "This sentence" + " goes on" * 2000 + ". "
    assert len(split_sentences(text)) == 1001


def test_random_texts_lose_nothing():
    rng = random.Random(0)
    for _ in range(100):
        text = "".join(rng.choice('ab .!?\n"') for _ in range(rng.randrange(1, 300))).strip() or "a"
        kept = "".join("".join(w.split()) for w in split(text, len, 16, 0))
        assert kept == "".join(text.split())


def test_small_windows_overlap_by_at_most_half():
    texts = ["Ann has cats. Ben has dogs. Cleo has eels.", "Yes."]
    assert [split(text, count, 6, 50) for text in texts] == [
        ["Ann has cats. Ben has dogs.", "Ben has dogs. Cleo has eels."],
        ["Yes."],
    ]


SENTENCES = {
    "Japanese": ["今日は晴れです。", "本当ですか？", "行こう！", "はい、そうです。"],
    "Chinese": ["他来了。", "你好吗？", "太好了！", "我们走吧。"],
    "Korean": ["비가 온다. ", "정말이야? ", "우리는 간다! ", "네, 그렇습니다."],
    "Hindi": ["राम घर गया। ", "वह कहाँ है? ", "हाँ।"],
    "Hindi without spaces": ["राम घर गया।", "वह सो गया।"],
    "Arabic": ["ذهب أحمد إلى البيت. ", "هل نام؟ ", "نعم!"],
    "Urdu": ["وہ گھر گیا۔ ", "کیا وہ سو گیا؟ ", "ہاں۔"],
    "English": ["Dr. Smith of the U.S. paid $3.50. ", "J. R. Brown (see p. 5) left. ", "Why?"],
    "lines": ["A heading\n\n", "- one\n", "- two\n", "The end."],
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_end_in_every_language(language):
    assert split_sentences("".join(SENTENCES[language])) == SENTENCES[language]


LONG = {
    "Japanese": "東京タワーは東京都港区にあるとても高い電波塔で多くの人がエレベーターで展望台に上る",
    "Chinese": "南京长江大桥是一座位于江苏省南京市的双层公路铁路两用桥全长约四千五百米",
    "Korean": "이것은 아주 긴 한국어 문장이고 끝나지 않습니다 계속해서 이어집니다",
    "Thai": "สวัสดีครับผมชื่อสมชายที่อยู่กรุงเทพมหานครและชอบกินส้มตำ วันนี้อากาศดี",
    "Hindi": "यह एक बहुत लंबा हिंदी वाक्य है जो समाप्त नहीं होता और चलता रहता है",
    "Arabic": "هذه جملة عربية طويلة جدا لا تنتهي وتستمر في الكلام عن المدينة القديمة",
    "emoji": "👨‍👩‍👧‍👦🇩🇪👍🏽e\u0301" * 6,
}


@pytest.mark.parametrize("language", LONG)
def test_windows_cut_no_word_and_no_character(language):
    """The length is that of UTF-8, as for a byte-level tokenizer; the longest character has 25 bytes."""
    text, window = LONG[language], 40
    windows = split(text, lambda piece: len(piece.encode()), window, 0)
    assert len(windows) > 1 and max(len(piece.encode()) for piece in windows) <= window
    assert "".join("".join(windows).split()) == "".join(text.split())
    characters = [character for piece in windows for character in regex.findall(r"\X", piece)]
    assert [c for c in characters if c.strip()] == [c for c in regex.findall(r"\X", text) if c.strip()]
    if language in ("Korean", "Hindi", "Arabic"):
        assert [word for piece in windows for word in piece.split()] == text.split()
    if language in ("Japanese", "Chinese", "emoji"):
        assert "".join(windows) == text


@pytest.mark.parametrize("language", SENTENCES)
def test_windows_without_overlap_give_the_text_back(language):
    text = "".join(SENTENCES[language])
    windows = split(text, len, 30, 0)
    assert len(windows) > 1 or len(text) <= 30
    position = 0
    for piece in windows:
        begin = text.index(piece, position)
        assert not text[position:begin].strip()  # only white space is left out
        position = begin + len(piece)
    assert not text[position:].strip()


def test_a_character_longer_than_a_window_is_cut_as_a_last_resort():
    windows = split("e" + "\u0301" * 50, len, 16, 0)
    assert "".join(windows) == "e" + "\u0301" * 50 and max(map(len, windows)) <= 16


def test_texts_are_split_together_as_they_are_alone():
    rng = random.Random(0)
    texts = ["".join(rng.choice("ab .!?\n") for _ in range(rng.randrange(1, 200))) for _ in range(60)]
    together = split_all(texts, lambda pieces: list(map(count, pieces)), 8, 3)
    assert together == [split(text, count, 8, 3) for text in texts]
    assert any(len(windows) > 1 for windows in together) and any(len(windows) == 1 for windows in together)


def test_a_text_is_counted_once_as_a_whole_and_once_by_sentences():
    counted = list[str]()

    def count_all(texts):
        counted.extend(texts)
        return list(map(count, texts))

    split_all([TEXT, "One. Two."], count_all, 12, 0)
    assert "".join(counted) == TEXT + "One. Two." + TEXT
    counted.clear()
    split_all([TEXT], count_all, 12, 0, [count(TEXT)])
    assert "".join(counted) == TEXT


def test_windows_of_tokens_lose_nothing():
    tokenizer = byte_tokenizer()
    text = "the boat of Ben " * 20
    windows = token_windows([text, "x"], tokenizer, 64)
    assert [len(window) for window in windows] == [64] * 5 and tokenizer.decode([i for w in windows for i in w]) == text
    assert [len(window) for window in token_windows([text], tokenizer, 100)] == [100, 100, 100, 20]


def test_a_window_of_tokens_begins_with_what_the_tokenizer_puts_before_a_text():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    special = [("<bos>", 1), ("<eos>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<bos> $A <eos>", special_tokens=special)
    assert token_windows(["the cat of Mira", "it"], tokenizer, 3) == [[1, 4, 5], [1, 6, 7], [1, 12]]


def test_headings_state_nothing_and_lists_do_without_their_markers():
    text = (
        "# The lighthouse of Orvane Point\n\nThe tower is 31 m high.\n\nWho built it\n============\n\n"
        "- Mara Quill built it alone. It took two years.\n  * The lamp is from Delft\n> Nobody may go up.\n\n"
        "### Set the port to 8080 first.\n"
        "#hashtags are no headings\nAnna Loft wrote this\n---\nBob Quill wrote that\n---\nA minus -3 is cold.\n"
        "- 5 degrees were measured at night.\n    # indented code is no heading\n"
    )
    assert find_statements(text) == [
        "The tower is 31 m high.",
        "Mara Quill built it alone.",
        "It took two years.",
        "The lamp is from Delft",
        "Nobody may go up.",
        "Set the port to 8080 first.",
        "#hashtags are no headings",
        "Anna Loft wrote this",
        "Bob Quill wrote that",
        "A minus -3 is cold.",
        "- 5 degrees were measured at night.",
        "indented code is no heading",
    ]
    assert find_headings(text) == ["# The lighthouse of Orvane Point\n\n", "Who built it\n"]


def test_a_long_line_of_dots_is_read_at_once():
    begun = time.process_time()
    assert find_statements("# Contents of this book " + ". " * 50_000 + "x") == []
    assert time.process_time() - begun < 5
