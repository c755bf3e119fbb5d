"""Normalize an answer to tokens, in any script: what `exact`, `contains`, `f1` and the lexical judge compare.

Source: the official evaluation script of SQuAD (Rajpurkar et al., arXiv 1606.05250): lower case, no punctuation, no
English articles. Chinese and Japanese characters count as one token each, as in MLQA (Lewis et al., arXiv 1910.07475).
Ours, because SQuAD's script makes "-5" equal to "5" and "C++" to "C": a character that carries meaning is not
punctuation. Signs, decimal points, ranges, operators, currencies and units stay; a hyphen or an asterisk stays only
where it is one of those.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache

import regex

Rule = tuple[str, str | Callable[[regex.Match[str]], str]]

_ARTICLES = ("a", "an", "the")
_MINUS = "\ue000"  # private use: a hyphen that is a sign, an operator or a range
_PER = "\ue001"  # a slash inside a unit
_START, _END = r"(?<![\p{L}\p{M}\p{N}])", r"(?![\p{L}\p{M}\p{N}])"
_LETTER = rf"{_START}\p{{L}}{_END}"  # an operand: a letter of its own, or a number
_OPENING = r"(?<![\p{L}\p{M}\p{N})\]])"  # here a hyphen is a sign

# Before the letters' case is removed.
_CASED: list[Rule] = [
    ("[\u00ad\u200b-\u200f\u2060\ufeff]", ""),  # invisible
    ("[\u2010\u2011]", "-"),
    (r"(?<=[\p{L}\p{N})])[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda match: "^" + unicodedata.normalize("NFKC", match[0])),
    ("\u2212", "-"),
    (r"(?<=\d)(?=[¼-¾⅐-⅞])", " "),
    ("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))", ""),  # thousands
    ("İ", "i"),
    (r"(?<=\d\s?)M(?=(?:Wh?|V|A|Pa|J|N|Ω)\b)", " mega"),  # 5 MW is not 5 mW
    ("[©®™]", ""),
    ("×", "*"),
    ("÷", "/"),
    ("≥", ">="),
    ("≤", "<="),
    ("≠", "!="),
    (r"(?m)^#+\s", ""),  # a heading
    (r"(?<!\d\s)\b(?i:minus|moins|menos|минус)\s+(?=\d)", _MINUS),
    (r"[-–—]\s?(\p{Sc})\s?(?=\d)", rf"\1 {_MINUS}"),
    (r"(?<=\d)(\s?)[-–—]\1(?=\d)", _MINUS),  # a range
    (rf"(?<={_LETTER}\s|\d\s|\)\s)-(?=\s(?:{_LETTER}|\d|\())", _MINUS),  # x - y
    (rf"(?<={_LETTER}|\d)-(?={_LETTER})", f" {_MINUS} "),  # x-y
    (rf"(?<={_START}\p{{Ll}})-(?=\d)", f" {_MINUS} "),  # x-1, not F-16
    (rf"(?<={_START}\p{{L}})--{_END}", _MINUS * 2),  # i--
    (rf"(?<={_START}\p{{L}})-{_END}", _MINUS),  # A-
    (rf"{_OPENING}[-–](?=\.?\d|{_LETTER})", _MINUS),  # -5
    (r"(?<=\p{L})-(?=[\p{L}\p{N}])", ""),
    ("[-–—―]+", " "),
]
# After it.
_FOLDED: list[Rule] = [
    ("⁄", "/"),
    ("[\u064b-\u0652\u0670\u0640\u0591-\u05bd\u05bf\u05c1\u05c2]", ""),  # vowel signs of Arabic and Hebrew, tatweel
    (r"(?<=^|\s)و\s+(?=\p{Arabic})", "و"),  # "and", written onto the next word
    (r"\d", lambda match: str(unicodedata.decimal(match[0]))),
    (r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)", lambda match: match[0].replace(",", "")),
    (r"(?<!\d)\d{1,3}(?:['’]\d{3})+(?!\d)", lambda match: regex.sub("['’]", "", match[0])),
    (r"(?<![\p{L}\p{N}.])\.(?=\d)", "0."),
    (r"['’ʼ`´]|(?<=\p{L})\.(?=\p{L})", ""),
    (
        r"(?<=\d)(?=(?:[kcmµμn]?m|[kmµμ]?g|m?l|[kmgt]b|k?wh?|[kmg]?hz|min|[ap]m|ft|mph|km/h|m/s)"
        r"(?:\^\d)?(?![\p{L}\p{M}\p{N}]))",
        " ",
    ),  # 5km
    (r"(?<=\d\s?[\p{L}°]{1,4})/(?=\p{L}{1,3}(?!\p{L}))", _PER),  # km/h
    (rf"({_LETTER})\s?/\s?({_LETTER})", r"\1 / \2"),
    (r"(?<=\d)\s?/\s?(?=\d)", "/"),
    (r"(?<!\s|\d)/|/(?!\s|\d)", " "),
    (rf"(?<=\d|\)|{_LETTER})\s?(\*\*?)\s?(?=\d|\(|{_LETTER})", r" × "),
    (r"\*", ""),
    (r"(?<=\s)&(?=\s)", "and"),
    (r"(?<=[\p{L}\p{N})])\+(?=[\p{L}\p{N}(])", " + "),
    (rf"(?<={_START}\p{{L}})\(([^()]*)\)", r"⟨ \1 ⟩"),  # O(n)
]

_PLAIN = regex.compile(r"""[A-Za-z\s.,;:!?'"]*""")
_BY_CHARACTER = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # scripts without spaces
_WORD = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_BY_CHARACTER}\p{{Katakana}}ー\p{{Hangul}}]]+"
_NUMERALS = "〇零一二三四五六七八九十百千万萬亿億兆"  # one token in a row: 三 is not in 十三, nor 3 in 3万
_TOKEN = regex.compile(
    rf"""
      (?:{_OPENING}[+{_MINUS}])?{_WORD}
        (?:(?:(?<=\d)[.,:/{_MINUS}](?=\d)|_+|\^[+{_MINUS}]?|&|{_PER}){_WORD})*
        (?:\+\+|{_MINUS}{{1,2}}|\#|\+)?⟨?
        (?:(?<=\d)[{_NUMERALS}]+)?
    | [{_NUMERALS}]+
    | [\p{{Katakana}}ー]+
    | \p{{Hangul}}+
    | [{_BY_CHARACTER}]\p{{M}}*
    | °\s?[cf](?!\p{{L}})
    | !=+ | [=<>]+ | && | \|\|
    | [+/%‰&\#@§~^⟩×{_MINUS}]
    | [[\p{{S}}]--[`´¨¯¸|~^+=<>]]
    """,
    regex.VERBOSE | regex.VERSION1,
)


def answer_tokens(text: str) -> list[str]:
    """Normalize a text to the tokens that the metrics compare.

    Args:
        text (`str`):
            Any text.

    Returns:
        `list[str]`: words without case, numbers with sign and decimals, operators and symbols; single characters
        in scripts without spaces. Empty if the text is only punctuation. Ours: a text of articles only keeps them,
        since "A" can be an answer (SQuAD's script makes it empty), and so does a formula.
    """
    return list(_cached_tokens(text))


@lru_cache(maxsize=4096)  # a reward compares many replies with the same reference
def _cached_tokens(text: str) -> list[str]:
    if _PLAIN.fullmatch(text):  # most English, thirty times faster
        tokens = regex.findall("[a-z]+", regex.sub(r"'|(?<=[a-z])\.(?=[a-z])", "", text.lower()))
    else:
        tokens = _find_tokens(text)
    kept = [token for i, token in enumerate(tokens) if token not in _ARTICLES or _is_operand(tokens, i)]
    return kept or tokens


def _find_tokens(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", _apply(_CASED, text)).casefold()
    text = _apply(_FOLDED, unicodedata.normalize("NFKC", text))
    return [_plain(token) for token in _TOKEN.findall(text)]


def _apply(rules: list[Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = regex.sub(pattern, replacement, text)
    return text


def _plain(token: str) -> str:
    return token.replace(_MINUS, "-").replace(_PER, "/").replace(" ", "").replace("⟨", "(").replace("⟩", ")")


def _is_operand(tokens: list[str], index: int) -> bool:
    beside = tokens[max(index - 1, 0) : index] + tokens[index + 1 : index + 2]
    return any(regex.fullmatch(r"[-+/=<>!×^~&|]+", token) for token in beside)
