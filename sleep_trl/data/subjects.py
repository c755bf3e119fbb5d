"""What a request is about: whether it names something, and whether a sentence answers it."""

from __future__ import annotations

import regex

from .words import forms_of, share_in, words_of

_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}'’-]*")
_PAIR = regex.compile(r"[\p{Han}\p{Katakana}ー]{2}|\p{Thai}{2}")
_MIN_LETTERS = 4  # of a word that names what a text is about; 2 in scripts without case, which write names shorter


def is_about(request: str, sentence: str, title: str) -> bool:
    """Whether a request has a word of a sentence that says something and is not in the title of its document: one with
    at least four letters or a digit, and in scripts without case or spaces at least two characters."""
    titled = set(words_of(title))

    def says_something(word: str) -> bool:
        has_case = word.upper() != word
        return len(word) >= (_MIN_LETTERS if has_case else 2) or any(map(str.isdigit, word))

    words = [word for word in words_of(request) if word not in titled and says_something(word)]
    return any(share_in([word], sentence) for word in words)


def _shares_a_name(title: str, request: str) -> bool:
    titled, asked = set(words_of(title)), set(words_of(request))
    long = [word for word in titled if len(word) >= _MIN_LETTERS]
    forms = {form for word in asked for form in forms_of(word)}
    if any(form in forms for word in long for form in forms_of(word)):
        return True
    pairs = {word for word in titled if len(word) == 2 and _PAIR.fullmatch(word)}
    return bool(pairs) and len(pairs & asked) >= min(2, len(pairs))


def name_subject(request: str, title: str) -> str:
    """Put the title of its document before a request that does not name what it is about (ours), so that it can be
    understood without the text and two documents do not share it.

    A request names something if one of its words after the first has a capital letter or a digit, or is a word of the
    title with at least four letters; in scripts without spaces, if it shares two pairs of neighboring characters with
    the title, without Hiragana, which is mostly grammar.
    """
    words = _WORD.findall(request)
    has_name = any(word != word.lower() or any(map(str.isdigit, word)) for word in words[1:])
    if not title or has_name or _shares_a_name(title, request):
        return request
    return f"{title}: {request}"
