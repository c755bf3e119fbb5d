"""Which completions are dropped before training, and why. Drops are counted by reason in results.json and printed.

To add a filter, write a function that returns whether a completion is dropped, add it to `FILTERS` under the reason to
report, and test it in tests/data/test_filters.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TypeVar

import regex

from ..rollout import Completion
from .drops import DroppedText, Drops
from .words import has_words, share_in, words_of

Item = TypeVar("Item")
NGRAM = 4  # words
_QUESTION = regex.compile(r"(?:[?？؟՞⸮]|(?:です|ます|でした|ました|ません|でしょう)か[。.]?)[»”’\"'」』)）]*$")
SHORTEST_ECHO = 4  # words: "red", asked "Is it red or green?", is an answer
MAX_REPEATED = 0.5  # share of repeated 4-grams above which a text is a loop


@dataclass(frozen=True)
class Check:
    """What a sample is checked against: another answer of the teacher, and the student's without the text.

    Args:
        agree (`Callable[[str, str], bool]`):
            Whether two answers say the same.
        again (`str`):
            The teacher's second answer.
        without_text (`str`):
            The student's answer.
        text (`str`):
            What the answer has to stand in: the sentence that was asked about and the one before, or what the teacher
            read.
        request (`str`, *optional*):
            What was asked.
    """

    agree: Callable[[str, str], bool]
    again: str
    without_text: str
    text: str
    request: str = ""


@dataclass(frozen=True)
class Candidate:
    """A completion that may become a sample.

    Args:
        text (`str`):
            What was written.
        stop_reason (`str`):
            Why it ends; `"length"` if it was cut at the token limit.
        identity (`object`):
            What two duplicates have in common, such as prompt and text.
        may_be_truncated (`bool`):
            Whether a completion that was cut at the token limit is kept.
        kept (`Set[object]`):
            Identities of the completions kept so far.
        check (`Check`, *optional*):
            Other answers to the same request, once there are any.
    """

    text: str
    stop_reason: str
    identity: object
    may_be_truncated: bool
    kept: Set[object]
    check: Check | None = None


def is_empty(candidate: Candidate) -> bool:
    return not candidate.text


def is_truncated(candidate: Candidate) -> bool:
    return candidate.stop_reason == "length" and not candidate.may_be_truncated


def is_repetitive(candidate: Candidate) -> bool:
    """Most 4-grams of words occur earlier in the text (a degenerate loop)."""
    words = words_of(candidate.text)
    ngrams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return bool(ngrams) and 1 - len(set(ngrams)) / len(ngrams) > MAX_REPEATED


def is_duplicate(candidate: Candidate) -> bool:
    return candidate.identity in candidate.kept


def is_inconsistent(candidate: Candidate) -> bool:
    """The teacher, asked again, says something else: it guesses, or the request has no clear answer."""
    return candidate.check is not None and not candidate.check.agree(candidate.text, candidate.check.again)


def is_unsupported(candidate: Candidate) -> bool:
    """Most words that the answer adds to the request, or all its words if it adds none, do not stand in what was asked
    about: small models make them up, or take them from another sentence, and do so again."""
    if candidate.check is None:
        return False
    asked, words = set(words_of(candidate.check.request)), words_of(candidate.text)
    return share_in([word for word in words if word not in asked] or words, candidate.check.text) < 0.5


def is_question(candidate: Candidate) -> bool:
    """The answer asks something: small models repeat the request."""
    return candidate.check is not None and bool(_QUESTION.search(candidate.text.rstrip()))


def is_echo(candidate: Candidate) -> bool:
    """All words of an answer that is not short stand in the request: small models say it again as a statement."""
    if candidate.check is None:
        return False
    words, asked = words_of(candidate.text), words_of(candidate.check.request)
    return has_words(candidate.text, SHORTEST_ECHO) and set(words).issubset(asked)


def is_known(candidate: Candidate) -> bool:
    """The student gives the answer without the text: there is nothing to learn."""
    return candidate.check is not None and candidate.check.agree(candidate.text, candidate.check.without_text)


FILTERS: Mapping[str, Callable[[Candidate], bool]] = {
    "empty": is_empty,
    "truncated": is_truncated,
    "repetitive": is_repetitive,
    "duplicate": is_duplicate,
    "inconsistent": is_inconsistent,
    "unsupported": is_unsupported,
    "question": is_question,
    "echo": is_echo,
    "known": is_known,
}
"""Filters by reason, in order: a completion counts for the first one that drops it."""


def apply_filters(
    pairs: Iterable[tuple[Item, Completion]],
    identity: Callable[[Item, Completion], object],
    *,
    checks: Sequence[Check] | None = None,
    keep_truncated: bool = False,
    describe: Callable[[Item, Completion], DroppedText] | None = None,
    instead: Callable[[Item, str], tuple[Item, Completion] | None] | None = None,
    seen: set[object] | None = None,
) -> tuple[list[tuple[Item, Completion]], Drops]:
    """Drop the completions that teach nothing.

    Args:
        pairs (`Iterable[tuple[Item, Completion]]`):
            Completions, each with what it belongs to.
        identity (`Callable[[Item, Completion], object]`):
            What two duplicates have in common.
        checks (`Sequence[Check]`, *optional*):
            What each completion is checked against.
        keep_truncated (`bool`, *optional*, defaults to `False`):
            Whether completions that were cut at the token limit are kept.
        describe (`Callable[[Item, Completion], DroppedText]`, *optional*):
            What the report shows of a completion that is dropped. Default: nothing.
        instead (`Callable[[item, str], tuple | None]`, *optional*):
            What takes the place of a completion that is dropped for a reason, if anything does. It is not checked.
        seen (`set`, *optional*):
            Identities that are duplicates already; those of what is kept are added.

    Returns:
        `tuple[list, Drops]`: the pairs that are kept, in order, and the number of those dropped by reason.
    """
    kept: list[tuple[Item, Completion]] = []
    identities: set[object] = set() if seen is None else seen
    dropped = Drops()
    for number, (item, completion) in enumerate(pairs):
        key, check = identity(item, completion), checks[number] if checks else None
        candidate = Candidate(completion.text, completion.stop_reason, key, keep_truncated, identities, check)
        reason = next((reason for reason, drops in FILTERS.items() if drops(candidate)), None)
        if reason and instead and (other := instead(item, reason)):
            (item, completion), key = other, identity(*other)
            reason = "duplicate" if key in identities else None
        if reason:
            dropped[reason] += 1
            if describe:
                dropped.examples.append(replace(describe(item, completion), reason=reason))
        else:
            identities.add(key)
            kept.append((item, completion))
    return kept, dropped + Drops()  # no more examples than are kept
