"""Which prompts of earlier nights a night answers: no more than its steps use, so that a late night costs little more
than the second."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ..data.rows import available_shares, count_steps, shares_of, split_shares, take_turns
from ..data.samples import Sample
from ..planning.inputs import RunInputs
from ..runs.ledger import owners

Row = dict[str, Any]


def choose_prompts(inputs: RunInputs, prompts: Sequence[Row], samples: Sequence[Sample], seed: int) -> list[Row]:
    """Choose all prompts of entries that are relearned or consolidated, and of the others as many as are replayed.

    Among the others, nights and the memories of a night take turns.

    Args:
        inputs (`RunInputs`):
            Of the night.
        prompts (`Sequence[dict]`):
            Rows of `prompts.jsonl` that the night may use.
        samples (`Sequence[Sample]`):
            What has been written for the night.
        seed (`int`):
            Seed for choosing.

    Returns:
        `list[dict]`: the chosen rows, in their order.
    """
    config, seeding = inputs.config, inputs.config.seeding
    shares = {**available_shares(samples, shares_of(config)), "earlier": config.dataset.earlier_share}
    counts = split_shares(seeding.prompts_per_step, shares)
    needed: set[str] = set()  # entries
    most_steps = config.dream.steps if config.dream.rounds else 0

    def train_on(memory_samples: int, steps: int | None) -> None:
        nonlocal most_steps
        most_steps = max(most_steps, steps or count_steps(memory_samples, seeding.passes, counts["memory"]))

    def relearn(entries: set[str], steps: int | None) -> None:
        needed.update(entries)
        train_on(sum(row["entry"] in entries for row in prompts), steps)

    if inputs.relearning is not None:
        relearn(set(inputs.relearning.holds), seeding.steps)
    else:
        train_on(sum(sample.part == "memory" for sample in samples), seeding.steps)
    owned = owners(inputs.earlier)
    for consolidation in inputs.consolidations:
        entries = {name for name, owner in owned.items() if owner.expert in consolidation.senders}
        relearn(entries, consolidation.steps(config))
    others = [number for number, row in enumerate(prompts) if row["entry"] not in needed]
    shuffled = random.Random(seed).sample(others, len(others))
    in_turn = take_turns(
        shuffled, lambda n: (prompts[n]["entry"], prompts[n]["memory_id"]), lambda n: prompts[n]["entry"]
    )
    chosen = set(in_turn[: most_steps * counts["earlier"]])
    return [row for number, row in enumerate(prompts) if number in chosen or row["entry"] in needed]
