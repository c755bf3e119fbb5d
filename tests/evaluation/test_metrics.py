"""Answer metrics, held to values worked out by hand."""

import random

import pytest

from sleep_trl.evaluation import contains, exact_match, f1, normalize_answer
from sleep_trl.evaluation.tokens import _find_tokens, answer_tokens

# Texts that are not the same, since a sign, a decimal point, an operator or a unit counts.
DIFFERENT = [
    ("-5", "5"),
    ("−5", "5"),
    ("minus 5", "5"),
    ("+2", "-2"),
    ("-$5", "$5"),
    ("3.5", "35"),
    (".5", "5"),
    ("1,5", "15"),
    ("v3.5", "v35"),
    ("v2.0.1", "v2.0.10"),
    ("Python 3.11", "Python 3.1"),
    ("10-15", "1015"),
    ("3:30", "330"),
    ("1/2", "12"),
    ("C++", "C"),
    ("C#", "C"),
    ("A+", "A-"),
    ("A+", "A"),
    ("i++", "i--"),
    ("a >= b", "a > b"),
    ("x != 0", "x == 0"),
    ("x - y", "x + y"),
    ("x-y", "xy"),
    ("x - y", "x y"),
    ("x^2", "x2"),
    ("x²", "x2"),
    ("m²", "m"),
    ("a / b", "b / a"),
    ("6 * 7", "6 7"),
    ("&&", "||"),
    ("O(n log n)", "O(n)"),
    ("$5", "€5"),
    ("50%", "50"),
    ("5 km", "5 m"),
    ("5 km/h", "5 km"),
    ("20 °C", "20 °F"),
    ("5 MW", "5 mW"),
    ("schön", "schon"),
]
SAME = [
    ("-7", "−7"),
    ("(-7)", "-7."),
    ("minus 7", "-7"),
    ("0.5", ".5"),
    ("1,000", "1000"),
    ("1\u202f000", "1000"),
    ("5km", "5 km"),
    ("5 MW", "5MW"),
    ("20 °C", "20℃"),
    ("50 %", "50%"),
    ("x²", "x^2"),
    ("½", "1/2"),
    ("3½", "3 1/2"),
    ("H₂O", "H2O"),
    ("1914–1918", "1914-1918"),
    ("6 × 7", "6*7"),
    ("a ≥ b", "a >= b"),
    ("x+y", "x + y"),
    ("F-16", "F16"),
    ("**Paris**", "Paris"),
    ("`Paris`", "Paris"),
    ("Paris - the capital", "Paris, the capital"),
    ("Paris — capital", "Paris capital"),
    ("# Paris", "paris"),
    ("Marks & Spencer", "Marks and Spencer"),
    ("U.S.", "US"),
    ("İzmir", "izmir"),
    ("٣", "3"),
    ("१५ मई", "15 मई"),
    ("ثَلاثة", "ثلاثة"),
    ("南京 长江 大桥", "南京长江大桥"),
    ("แม่น้ำ เจ้าพระยา", "แม่น้ำเจ้าพระยา"),
    ("남산 타워", "남산타워"),
    # with particles
    ("서울입니다.", "서울"),
    ("도서관에서", "도서관"),
    ("서울로", "서울"),
    ("Tokyo입니다", "Tokyo"),
    ("東京です。", "東京"),
    ("मुंबई में", "मुंबई"),
    ("بالقاهرة", "القاهرة"),
    ("والقاهرة", "القاهرة"),
    ("בחיפה", "חיפה"),
    ("أحمد و سارة", "أحمد وسارة"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The   Cat,\tsat. ", "cat sat"),
        ("well-known", "wellknown"),  # as in SQuAD, punctuation is deleted, not replaced
        ("theory of a thing", "theory of thing"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("ＡＢＣ", "abc"),  # full width
        ("cafe\u0301", "caf\u00e9"),  # an accent of its own
        ("«Привет!»", "привет"),
        ("¿Qué?", "qué"),
        ("A", "a"),  # ours: an article alone is an answer
        ("...", ""),
    ],
)
def test_normalize_answer(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_what_carries_meaning_counts(first: str, second: str) -> None:
    for prediction, answer in ((first, second), (second, first)):
        assert not exact_match(prediction, answer)
        assert f1(prediction, answer) < 1 or sorted(first) == sorted(second)  # F1 knows no order
    assert not contains(first, second) or (first, second) in ADDED


# In these the second has a token less, which a reply may contain: "The value is 50 %" contains "50".
ADDED = {("50%", "50")}


@pytest.mark.parametrize(("first", "second"), SAME)
def test_the_same_in_another_notation(first: str, second: str) -> None:
    assert exact_match(first, second) and contains(first, second)


def test_exact_match() -> None:
    assert exact_match("The Eiffel Tower!", "eiffel tower")
    assert exact_match("two", ["2", "Two."])
    assert not exact_match("eiffel tower in paris", "eiffel tower")
    assert not exact_match("a", "the")


def test_contains_whole_tokens_in_a_row() -> None:
    assert contains("It is the red cat.", ["dog", "red cat"])
    assert not contains("a category", "cat")
    assert not contains("red and cat", "red cat")
    assert not contains("red", "red cat")
    assert contains("答えは東京です", "東京")
    assert not contains("anything", "?")
    assert contains("!", "?")


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("한국의 수도는 서울이에요", "서울"),
        ("민수가 도서관에 갔다", "도서관"),
        ("3개", "3"),
        ("中国的首都是北京。", "北京"),
        ("日本で一番高い山は富士山です。", "富士山"),
        ("เมืองหลวงของประเทศไทยคือกรุงเทพมหานคร", "กรุงเทพมหานคร"),
        ("भारत की राजधानी नई दिल्ली है।", "नई दिल्ली"),
        ("عاصمة مصر هي القاهرة.", "القاهرة"),
        ("كتبها المعلم في البيت", "في البيت"),
        ("It cost $5.", "5"),
        ("It runs at -5 °C.", "-5 °C"),
    ],
)
def test_contains_in_any_script(prediction: str, answer: str) -> None:
    assert contains(prediction, answer)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("15", "5"),
        ("It is 10-15.", "5"),
        ("It is minus 5.", "5"),
        ("서울대학교에서", "서울"),  # Seoul University
        ("나이", "나"),  # "age"; the particle 이 follows a consonant
        ("강가", "강"),  # "riverside"; the particle 가 follows a vowel
        ("民十三个", "三个"),
        ("3万", "3"),
        ("タマゴ", "タマ"),
        ("ولد", "لد"),
        ("कोलकाता", "कोल"),
        ("ثلاثون", "ثلاثة"),
    ],
)
def test_part_of_a_word_or_number_is_not_contained(prediction: str, answer: str) -> None:
    assert not contains(prediction, answer)


def test_f1() -> None:
    # 2 common of 3 predicted and 4 accepted tokens: 2 * 2 / 7
    assert f1("red cat ran", "red fat cat slept") == pytest.approx(4 / 7)
    assert f1("red red", "red") == pytest.approx(2 / 3)  # a token counts as often as it is accepted
    assert f1("red cat", ["dog", "red cat"]) == 1.0
    assert f1("", "cat") == 0.0
    assert f1("", "...") == 1.0
    assert f1("東京", "東方") == 0.5


@pytest.mark.parametrize("metric", [exact_match, contains, f1])
def test_no_answer_is_an_error(metric) -> None:
    with pytest.raises(ValueError, match="at least one"):
        metric("cat", [])


def test_plain_english_is_read_the_same_the_fast_way() -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice("abM 'B.,;:!?\"\n") for _ in range(rng.randrange(20)))
        tokens = _find_tokens(text)
        assert answer_tokens(text) == ([token for token in tokens if token != "a"] or tokens)
