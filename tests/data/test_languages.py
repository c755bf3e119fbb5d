"""The parts of a night on texts in Japanese and in Arabic: sentences, windows, titles, tasks, checks, coverage."""

import dataclasses

import pytest

from sleep_trl.data.documents import MemoryText
from sleep_trl.data.filters import Candidate, Check, is_echo, is_question, is_repetitive, is_unsupported
from sleep_trl.data.samples import Sample, Window
from sleep_trl.data.subjects import name_subject
from sleep_trl.data.templates import Template
from sleep_trl.data.titles import find_titles, with_title
from sleep_trl.data.windows import find_statements, split_all, split_sentences
from sleep_trl.data.words import has_words, share_in, words_of
from sleep_trl.data.writing import measure_coverage, tasks_of
from sleep_trl.evaluation import contains, exact_match

JAPANESE = [
    "青葉図書館からのお知らせ\n\n",
    "　青葉図書館は2019年4月に古い駅舎で開館しました。",
    "本の貸出は一人五冊まで、期間は二週間です。",
    "館長の森田ゆき子さんは「静かに読める場所にしたい。」と話しました。",
    "休館日は毎週火曜日です。",
    "駐車場はありません！",
]
ARABIC = [
    "مكتبة الميناء القديم\n\n",
    "افتُتِحت مكتبة الميناء في ربيع عام ٢٠١٩ في مبنى المحطة القديمة. ",
    "يستطيع القارئ أن يستعير خمسة كتب لمدة أسبوعين؛ ثم يعيدها. ",
    "قالت المديرة سلمى حداد: «نريد مكانًا هادئًا للقراءة». ",
    "تُغلق المكتبة أبوابها يوم الثلاثاء. ",
    "هل يوجد موقف للسيارات؟ ",
    "لا يوجد موقف للسيارات.",
]
TEXTS = {"Japanese": JAPANESE, "Arabic": ARABIC}


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_split_where_its_sentences_end(language):
    assert split_sentences("".join(TEXTS[language])) == TEXTS[language]


@pytest.mark.parametrize("language", TEXTS)
def test_windows_are_whole_sentences_and_give_the_text_back(language):
    text = "".join(TEXTS[language])
    [windows] = split_all([text], lambda pieces: [len(piece.encode()) for piece in pieces], 260, 0)
    assert len(windows) > 1
    assert all(len(window.encode()) <= 260 for window in windows)
    sentences = [sentence.strip() for sentence in TEXTS[language]]
    assert [s.strip() for window in windows for s in split_sentences(window)] == sentences


@pytest.mark.parametrize(("language", "short"), [("Japanese", []), ("Arabic", [])])
def test_each_sentence_that_states_something_is_asked_about(language, short):
    text = "".join(TEXTS[language])
    statements = find_statements(text)
    assert statements == [sentence.strip() for sentence in TEXTS[language] if sentence.strip() not in short]
    window = Window("1", "", text, 0, tuple(statements))
    tasks = tasks_of(window, len(statements), Template.load("question_answer"))
    assert [task.sentence for task in tasks] == statements
    sample = Sample("memory", "1", "question_answer", "", [], [], "", [], sentence=statements[1])
    assert measure_coverage([window], [sample]) == {"sentences": len(statements), "covered": 1}


@pytest.mark.parametrize("sentence", ["はい。", "本当？", "كِتَابٌ", "نعم!", "दिल्ली"])
def test_a_word_by_itself_states_nothing(sentence):
    assert find_statements(sentence) == []


@pytest.mark.parametrize("language", TEXTS)
def test_a_document_is_named_by_its_first_line(language):
    text = "".join(TEXTS[language])
    memory = MemoryText("docs.jsonl:1", "docs.jsonl", text)
    assert find_titles([memory]) == {memory.id: TEXTS[language][0].strip()}
    assert with_title(TEXTS[language][0].strip(), text) == text


def test_white_space_around_a_source_is_not_of_the_title():
    memories = [MemoryText("1", " " * 90 + "The harbor of Olm", "A text."), MemoryText("2", " notes.md", "Another.")]
    assert find_titles(memories) == {"1": "The harbor of Olm", "2": "notes.md"}


def test_a_japanese_text_without_a_heading_is_named_by_how_it_begins():
    text = "　東京 " + "都の青葉図書館は古い駅舎で開館しました" * 8
    title = find_titles([MemoryText("1", "docs.jsonl", text)])["1"]
    assert 70 < len(title) <= 81 and text.strip().startswith(title.rstrip("…"))
    assert with_title(title, text) == text  # it begins so: the title is not put above it


@pytest.mark.parametrize(
    ("request_", "title", "is_named"),
    [
        ("青葉図書館はいつ開館しましたか。", "青葉図書館からのお知らせ", True),
        ("休館日は何曜日ですか。", "青葉図書館からのお知らせ", False),
        ("いつからありますか。", "青葉図書館からのお知らせ", False),
        ("متى افتتحت مكتبة الميناء؟", "مكتبة الميناء القديم", True),
        ("كم كتابًا يُستعار من المكتبة؟", "مكتبة الميناء القديم", True),
        ("متى تغلق أبوابها؟", "مكتبة الميناء القديم", False),
    ],
)
def test_a_request_that_names_nothing_gets_the_title(request_, title, is_named):
    assert name_subject(request_, title) == (request_ if is_named else f"{title}: {request_}")


def answer(text: str, language: str = "Japanese", request: str = "") -> Candidate:
    check = Check(contains, text, "", "".join(TEXTS[language]))
    if "request" in {field.name for field in dataclasses.fields(Check)}:
        check = dataclasses.replace(check, request=request)
    return Candidate(text, "eos", text, False, set(), check)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("五冊までです。", "Japanese"),
        ("二週間", "Japanese"),
        ("古い駅舎で開館しました", "Japanese"),
        ("館長は森田ゆき子さんです。", "Japanese"),
        ("في المحطة", "Arabic"),
        ("بالمحطة القديمة", "Arabic"),  # with a preposition written onto it
        ("مديرة", "Arabic"),  # without the article
        ("افتتحت", "Arabic"),  # without vowel signs
    ],
)
def test_an_answer_from_the_text_is_supported(text, language):
    assert not is_unsupported(answer(text, language))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("田中一郎", "Japanese"),
        ("三千円の会費が必要", "Japanese"),
        ("横浜市立大学", "Japanese"),
        ("أحمد منصور", "Arabic"),
        ("بطاقة جامعية", "Arabic"),
        ("عِنَب", "Arabic"),  # its letters stand in the text, the word does not
    ],
)
def test_an_answer_that_is_made_up_is_not(text, language):
    assert is_unsupported(answer(text, language))


def test_a_loop_without_spaces_is_repetitive():
    assert is_repetitive(answer("静かに読める場所です。" * 6))
    assert is_repetitive(answer("يوم الثلاثاء، " * 8, "Arabic"))
    assert not any(is_repetitive(answer("".join(text), language)) for language, text in TEXTS.items())


@pytest.mark.parametrize(
    "text", ["休館日はいつですか。", "館長は誰ですか", "何冊借りられますか？", "متى تُغلق المكتبة؟"]
)
def test_a_question_is_no_answer(text):
    assert is_question(answer(text))


@pytest.mark.parametrize("text", ["火曜日です。", "静かに読める場所です", "يوم الثلاثاء."])
def test_an_answer_is_no_question(text):
    assert not is_question(answer(text))


def test_an_echo_is_found_without_spaces():
    request = "青葉図書館の休館日は毎週何曜日ですか。"
    assert is_echo(answer("青葉図書館の休館日は毎週何曜日です。", request=request))
    assert not is_echo(answer("青葉図書館", request="青葉図書館と港図書館ではどちらが古いですか。"))
    assert not is_echo(answer("毎週火曜日です。", request=request))


@pytest.mark.parametrize(
    ("reply", "accepted"),
    [
        ("青葉図書館は2019年4月に開館しました。", "２０１９年４月"),
        ("館長は森田ゆき子さんです。", "森田ゆき子"),
        ("休館日は毎週火曜日です。", "火曜日"),
        ("افتُتحت عام ٢٠١٩.", "2019"),
        ("تُغلق المكتبة يوم الثلاثاء.", "الثلاثاء"),
        ("قالتها سلمى حداد.", "سَلمى حدّاد"),
    ],
)
def test_a_reply_contains_the_answer(reply, accepted):
    assert contains(reply, accepted)
    assert exact_match(accepted, accepted)


@pytest.mark.parametrize(("reply", "accepted"), [("水曜日です。", "火曜日"), ("الأربعاء", "الثلاثاء")])
def test_another_answer_is_not_the_same(reply, accepted):
    assert exact_match(reply, accepted) is False


def test_words():
    assert words_of("PDF版は3冊") == ["pdf", "版は", "3", "冊"]
    assert words_of("كِتَابٌ जदिल्ली") == ["كتاب", "जदिल्ली"]
    for text, count in (("青葉図書館", 2), ("the red cat", 3), ("赤い the cat", 2), ("", 0)):
        assert [least for least in range(5) if has_words(text, least)] == list(range(count + 1))
    assert share_in([], "x") == 1 and share_in(["서울입니다"], "서울은 크다") == 1


@pytest.mark.parametrize(
    ("answer", "text", "share"),
    [
        ("gate C", "The gate near the coach station is closed.", 0.5),
        ("gate C", "Gate C is closed.", 1),
        ("gate B2", "Gates b2 and c are closed.", 1),
        ("the cat", "the catalog", 0.5),
        ("talo", "Hän asuu talossa.", 1),
        ("5", "It closes at 15:50.", 0),
        ("犬", "白い犬がいる。", 1),
        ("猫", "白い犬がいる。", 0),
        ("图书馆", "青叶图书馆很大。", 1),
        ("سوق", "في السوق القديم", 1),
    ],
)
def test_a_word_stands_in_a_text_as_a_word(answer, text, share):
    assert share_in(words_of(answer), text) == share
