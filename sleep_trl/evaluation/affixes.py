"""Find an answer in a reply where a script writes no spaces, or writes particles onto a word.

Ours: a Korean answer "서울" stands in "서울입니다", an Arabic "القاهرة" in "بالقاهرة". Only particles, copulas and
prefixed prepositions are allowed for, so "서울" is not in "서울대학교" ("Seoul University").
"""

from __future__ import annotations

from collections.abc import Sequence

import regex

# Written onto a Korean word; B after a final consonant, V after a vowel (ㄹ counts as a vowel before 로).
_CASE = "에서|에게|한테|께서|께|에|까지|부터|의|도|만|보다|처럼|마다|하고|밖에|조차"
_COPULA = "입니다|입니까|이에요|이다|이고|이며|인|이죠|이지요"
_KOREAN_B = regex.compile(
    rf"(?:(?:은|이|을|과|으로|이나|이랑|{_CASE})(?:는|은|도|만|서)?|{_COPULA}|이야|이었다|이었습니다|이었어요|이라고|이라는|이네요|이요)?"
)
_KOREAN_V = regex.compile(
    rf"(?:(?:는|가|를|와|로|나|랑|{_CASE})(?:는|은|도|만|서)?|{_COPULA}|예요|야|였다|였습니다|였어요|라고|라는|죠|네요|요)?"
)
# Prefixed to a word: and, then; in, like, to; the article.
_ARABIC = regex.compile(r"[وف]?(?:[بكل]?(?:ال)?|لل)")
_HEBREW = regex.compile("ו?ש?[בכלמ]?ה?")
# After a word: "it is Tokyo." in Japanese, "in Mumbai" in Hindi.
_JAPANESE = regex.compile(
    "(?:[はがをにでへとの]|から|まで)?(?:です|だ|である|でした|だった|ですね|ですよ|でございます)?"
)
_HINDI = frozenset("में से को का की के पर ने तक है हैं था थे थी".split())
_SHORTEST_STEM = 3  # letters, from which a Semitic prefix is told apart from the word's own first letter


def match_end(predicted: Sequence[str], start: int, answer: Sequence[str]) -> int | None:
    """Return where an answer that begins at a token ends, up to affixes, or `None` if it does not stand there.

    Args:
        predicted (`Sequence[str]`):
            Tokens of the reply, from [`answer_tokens`].
        start (`int`):
            Index of the token.
        answer (`Sequence[str]` of length at least 1):
            Tokens of the answer.
    """
    if all(map(_is_hangul, answer)):
        return _hangul_end(predicted, start, "".join(answer))
    end = start + len(answer)
    if end > len(predicted):
        return None
    first, *middle, last = predicted[start:end] if len(answer) > 1 else (predicted[start], predicted[start])
    if list(answer[1:-1]) != middle or not _is_stem(answer[0], first):
        return None
    if len(answer) > 1 and last != answer[-1] and not (_is_hangul(last) and _is_inflected(answer[-1], last)):
        return None
    return end


def is_particles(tokens: Sequence[str]) -> bool:
    """Return whether tokens after an answer add no meaning: nothing, a copula, a postposition."""
    joined = "".join(tokens)
    korean = len(tokens) == 1 and (_KOREAN_B.fullmatch(joined) or _KOREAN_V.fullmatch(joined))
    return all(token in _HINDI for token in tokens) or bool(korean or _JAPANESE.fullmatch(joined))


def _is_hangul(token: str) -> bool:
    return "\uac00" <= token[0] <= "\ud7a3"


def _hangul_end(predicted: Sequence[str], start: int, answer: str) -> int | None:
    """Spaces between Korean words are optional, so words are joined until they are as long as the answer."""
    joined, end = "", start
    while end < len(predicted) and len(joined) < len(answer) and _is_hangul(predicted[end]):
        joined += predicted[end]
        end += 1
    return end if _is_inflected(answer, joined) else None


def _is_inflected(stem: str, word: str) -> bool:
    """Return whether a Korean word is a stem with a particle that fits its last sound."""
    if not word.startswith(stem) or not _is_hangul(stem[-1]):
        return False
    final = (ord(stem[-1]) - 0xAC00) % 28  # index of the final consonant, 0 for none, 8 for ㄹ
    particle = word[len(stem) :]
    fits = (_KOREAN_B if final else _KOREAN_V).fullmatch(particle)
    return bool(fits) or (final == 8 and particle in ("로", "로는", "로도"))


def _is_stem(stem: str, word: str) -> bool:
    if stem == word:
        return True
    if len(stem) < _SHORTEST_STEM or not word.endswith(stem):
        return False
    prefix, script = word[: -len(stem)], stem[0]
    if "\u0620" <= script <= "\u064a":
        return bool(_ARABIC.fullmatch(prefix))
    return "\u05d0" <= script <= "\u05ea" and bool(_HEBREW.fullmatch(prefix))
