"""Turn samples into training rows: a random prefix of each sample becomes part of the prompt, and every optimizer step
gets the same shares of memory and self-replay."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from ..config import RunConfig
from .parts import Part
from .samples import Sample

T = TypeVar("T")

COLUMNS = (
    "prompt",
    "prompt_ids",
    "teacher_prompt_ids",
    "reference",
    "reference_ids",
    "prefix_text",
    "part",
    "memory_id",
    "template",
    "stop",
    "max_completion_length",
)
MARGIN = 8  # tokens by which a rollout may be longer than its reference; what goes on imitates nothing (ours)


def split_shares(per_step: int, shares: dict[Part, float]) -> dict[Part, int]:
    """
    Divide the prompts of a step among the parts of the data set.

    Args:
        per_step (`int`):
            Prompts in a step.
        shares (`dict`):
            Share of each part except `"memory"`, which gets the rest and at least one prompt.

    Returns:
        `dict`: prompts of each part; they add up to `per_step`. A part with a share above 0 gets at least one prompt
        as long as the memory keeps one.
    """
    counts: dict[Part, int] = {}
    left = per_step - 1
    for part, share in shares.items():
        counts[part] = min(left, max(1, round(per_step * share))) if share > 0 else 0
        left -= counts[part]
    return {"memory": left + 1, **counts}


def count_steps(samples: int, passes: float, per_step: int) -> int:
    """Return the steps in which each of the samples gets `passes` rows, with `per_step` rows for them in a step."""
    return max(1, math.ceil(samples * passes / per_step))


def shares_of(config: RunConfig) -> dict[Part, float]:
    """Return the share of rows that a run gives to each part except the memory."""
    data = config.dataset
    return {"dream": config.dream.share, "general": data.general_share, "earlier": data.earlier_share}


def steps_of(samples: Sequence[Sample], config: RunConfig) -> int:
    """Return the steps in which a run trains on these samples: `seeding.steps`, or what `seeding.passes` comes to."""
    seeding = config.seeding
    counts = split_shares(seeding.prompts_per_step, available_shares(samples, shares_of(config)))
    memory_samples = sum(sample.part == "memory" for sample in samples)
    return seeding.steps or count_steps(memory_samples, seeding.passes, counts["memory"])


def available_shares(samples: Iterable[Sample], shares: dict[Part, float]) -> dict[Part, float]:
    """Return the shares of the parts that have samples; the others leave theirs to the memory."""
    parts = {sample.part for sample in samples}
    return {part: share if part in parts else 0.0 for part, share in shares.items()}


def take_turns(items: Iterable[T], *keys: Callable[[T], Hashable]) -> list[T]:
    """Order items so that the groups of each key take turns; earlier keys divide finer.

    With windows and documents as keys, every window comes once before any comes twice, and among the windows that come
    for the n-th time, every document comes once before any comes twice. Otherwise the order is kept.
    """
    ordered = list(items)
    for key in reversed(keys):
        seen: Counter[Hashable] = Counter()
        ranks = []
        for item in ordered:
            ranks.append(seen[key(item)])
            seen[key(item)] += 1
        ordered = [item for _, item in sorted(zip(ranks, ordered, strict=True), key=lambda pair: pair[0])]
    return ordered


def build_rows(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    per_step: int,
    shares: dict[Part, float],
    prefix_share: float,
    first_rollout: int = 0,
    max_completion: int,
    seed: int,
) -> list[dict[str, Any]]:
    """
    Lay out the rows of a whole night, step by step.

    Args:
        samples (`Sequence[Sample]`):
            Samples of all parts.
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes prefixes.
        steps (`int`):
            Optimizer steps.
        per_step (`int`):
            Prompts in a step.
        shares (`dict`):
            Share of `"dream"`, `"general"` and `"earlier"` rows; a part without samples leaves its share to the memory.
        prefix_share (`float`):
            Share of `"memory"` and `"earlier"` rows that begin inside a sample, after a random prefix of it (LTI,
            method 3.3); the others begin at its start (ours: that is where a fact is asked for). Rows of a dream always
            begin inside it, since its prompt alone asks for nothing. Samples of one token stay whole.
        first_rollout (`int`, *optional*, defaults to `0`):
            Step before which samples stay whole: a prefix is for rollouts, which go on from it.
        max_completion (`int`):
            Maximum length of a rollout, in tokens. General rows begin at most this many tokens into their sample, and
            early enough for a full rollout: nearly all of the sample is used, and prompts stay short.
        seed (`int`):
            Seed for the order of rows and the length of prefixes.

    Returns:
        `list[dict]`: `steps * per_step` rows for [`KnowledgeSeedingTrainer`], in training order.

    Raises:
        `ValueError`: if there is no sample about a memory.
    """
    rng = random.Random(seed)
    pools = {part: [s for s in samples if s.part == part] for part in ("memory", *shares)}
    if not pools["memory"]:
        raise ValueError(
            "There are no samples about the memories to learn from. Look at the counts of dropped samples in the log."
        )
    counts = split_shares(per_step, available_shares(samples, shares))
    streams = {part: _shuffled(pools[part], rng, steps * count) for part, count in counts.items() if count}
    rows = []
    for number in range(steps):
        share = prefix_share if number >= first_rollout else 0.0
        step = [
            _row(next(streams[part]), tokenizer, share, max_completion, rng)
            for part, count in counts.items()
            for _ in range(count)
        ]
        rng.shuffle(step)
        rows += step
    return rows


def _shuffled(pool: list[Sample], rng: random.Random, rows: int) -> Iterator[Sample]:
    """Iterate over a pool forever, reshuffled each time. If there are fewer rows than samples, windows and documents
    take turns, so that each gets its rows."""
    while True:
        order = rng.sample(pool, len(pool))
        yield from order if rows >= len(pool) else take_turns(order, _window_of, _memory_of)


def _window_of(sample: Sample) -> Hashable:
    return sample.memory_id, sample.window


def _memory_of(sample: Sample) -> Hashable:
    return sample.memory_id


def _row(
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
    prefix_share: float,
    max_completion: int,
    rng: random.Random,
) -> dict[str, Any]:
    cut, length = 0, len(sample.reference_ids)
    if sample.part == "general":
        cut = rng.randint(0, max(0, min(length - max_completion, max_completion)))
    elif sample.part == "dream" or rng.random() < prefix_share:
        cut = rng.randrange(1, length) if length > 1 else 0
    prefix, rest = sample.reference_ids[:cut], sample.reference_ids[cut:]
    return {
        "prompt": sample.prompt + tokenizer.decode(prefix),
        "prompt_ids": sample.prompt_ids + prefix,
        "teacher_prompt_ids": sample.teacher_prompt_ids + prefix,
        "reference": tokenizer.decode(rest, skip_special_tokens=True),
        "reference_ids": rest,
        "prefix_text": tokenizer.decode(prefix, skip_special_tokens=True),
        "part": sample.part,
        "memory_id": sample.memory_id,
        "template": sample.template,
        "stop": sample.stop,
        "max_completion_length": len(rest) + MARGIN,
    }
