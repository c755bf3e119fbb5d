"""Answer metrics in the style of SQuAD, as pure functions of strings in any script.

Source: the official evaluation script of SQuAD (Rajpurkar et al., arXiv 1606.05250): lower case, no
punctuation, no English articles, single spaces; the best value over the accepted answers counts.
Ours: Unicode forms are unified, punctuation of every script is removed, and Chinese and Japanese
characters count as one token each, as in MLQA (Lewis et al., arXiv 1910.07475).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SCRIPTS_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKENS = re.compile(rf"[{_SCRIPTS_WITHOUT_SPACES}]|[^\s{_SCRIPTS_WITHOUT_SPACES}]+")


def normalize_answer(text: str) -> str:
    """Normalize a text: remove case, punctuation, English articles and extra white space.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str`: the normalized text, which is empty if the text is only punctuation. Ours: a text of articles
        only keeps them, since "A" can be an answer (SQuAD's script makes it empty).
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = "".join(c for c in text if not _is_punctuation(c))
    without_articles = _ARTICLES.sub(" ", text).split()
    return " ".join(without_articles or text.split())


def exact_match(prediction: str, answers: str | Sequence[str]) -> bool:
    """Return whether a prediction equals one of the answers after normalization (SQuAD's "EM").

    Args:
        prediction (`str`):
            The reply.
        answers (`str` or `Sequence[str]`):
            The accepted answer or answers.

    Returns:
        `bool`: whether one matches.

    Raises:
        `ValueError`: if there is no answer.
    """
    predicted = normalize_answer(prediction)
    return any(predicted == normalize_answer(answer) for answer in _listed(answers))


def contains(prediction: str, answers: str | Sequence[str]) -> bool:
    """Return whether the prediction contains one of the answers, as consecutive whole tokens.

    Ours, after `has_answer` of DPR (Karpukhin et al., arXiv 2004.04906): "cat" is not in
    "category". An answer that normalizes to an empty text is only in a prediction that does, too.

    Args:
        prediction (`str`):
            The reply.
        answers (`str` or `Sequence[str]`):
            The accepted answer or answers.

    Returns:
        `bool`: whether one is contained.

    Raises:
        `ValueError`: if there is no answer.
    """
    predicted = _tokens(prediction)
    return any(_is_sublist(_tokens(answer), predicted) for answer in _listed(answers))


def f1(prediction: str, answers: str | Sequence[str]) -> float:
    """Return the harmonic mean of token precision and recall, for the best answer (SQuAD's "F1").

    Args:
        prediction (`str`):
            The reply.
        answers (`str` or `Sequence[str]`):
            The accepted answer or answers.

    Returns:
        `float`: in [0, 1]. If one side has no tokens, 1 if the other has none either, else 0 (SQuAD 2.0).

    Raises:
        `ValueError`: if there is no answer.
    """
    predicted = _tokens(prediction)
    return max(_overlap(predicted, _tokens(answer)) for answer in _listed(answers))


def _overlap(predicted: list[str], answer: list[str]) -> float:
    if not predicted or not answer:
        return float(predicted == answer)
    common = (Counter(predicted) & Counter(answer)).total()
    return 2 * common / (len(predicted) + len(answer))


def _is_sublist(answer: list[str], predicted: list[str]) -> bool:
    if not answer:
        return not predicted
    starts = range(len(predicted) - len(answer) + 1)
    return any(predicted[i : i + len(answer)] == answer for i in starts)


def _tokens(text: str) -> list[str]:
    return _TOKENS.findall(normalize_answer(text))


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _listed(answers: str | Sequence[str]) -> Sequence[str]:
    listed = [answers] if isinstance(answers, str) else answers
    if not listed:
        raise ValueError("There is no answer to compare the prediction with. Give at least one.")
    return listed
