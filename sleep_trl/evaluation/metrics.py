"""Answer metrics in the style of SQuAD, as pure functions of strings in any script.

Source: the official evaluation script of SQuAD (Rajpurkar et al., arXiv 1606.05250); the best value over the accepted
answers counts. Ours: what carries meaning is not punctuation, see [`answer_tokens`], and particles are allowed for, see
[`match_end`].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .affixes import is_particles, match_end
from .tokens import answer_tokens

WEAK_TEACHER = 0.5  # recall with context below which a teacher cannot teach much


def normalize_answer(text: str) -> str:
    """Return the text of [`answer_tokens`], separated by spaces: two equal ones are the same answer."""
    return " ".join(answer_tokens(text))


def exact_match(prediction: str, answers: str | Sequence[str]) -> bool:
    """Return whether a prediction equals one of the answers after normalization (SQuAD's "EM").

    Ours: particles around the answer do not count, so "서울입니다." equals "서울".

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
    predicted = answer_tokens(prediction)
    return any(_is_equal(predicted, answer_tokens(answer)) for answer in _listed(answers))


def contains(prediction: str, answers: str | Sequence[str]) -> bool:
    """Return whether the prediction contains one of the answers, as consecutive whole tokens.

    Ours, after `has_answer` of DPR (Karpukhin et al., arXiv 2004.04906): "cat" is not in "category", nor "5" in "15".
    Particles written onto the answer do not count. An answer that normalizes to an empty text is only in a prediction
    that does, too.

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
    predicted = answer_tokens(prediction)
    return any(_is_contained(answer_tokens(answer), predicted) for answer in _listed(answers))


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
    predicted = answer_tokens(prediction)
    return max(_overlap(predicted, answer_tokens(answer)) for answer in _listed(answers))


def _overlap(predicted: list[str], answer: list[str]) -> float:
    if not predicted or not answer:
        return float(predicted == answer)
    common = (Counter(predicted) & Counter(answer)).total()
    return 2 * common / (len(predicted) + len(answer))


def _is_equal(predicted: list[str], answer: list[str]) -> bool:
    if predicted == answer:
        return True
    if not answer or not predicted:
        return False
    end = match_end(predicted, 0, answer)
    return end is not None and is_particles(predicted[end:])


def _is_contained(answer: list[str], predicted: list[str]) -> bool:
    if not answer:
        return not predicted
    return any(match_end(predicted, start, answer) is not None for start in range(len(predicted)))


def _listed(answers: str | Sequence[str]) -> Sequence[str]:
    listed = [answers] if isinstance(answers, str) else answers
    if not listed:
        raise ValueError("There is no answer to compare the prediction with. Give at least one.")
    return listed
