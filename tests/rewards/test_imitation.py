"""The imitation reward (Eq. 3 and 4), held to values worked out by hand."""

from typing import Any

import pytest

from sleep_trl.rewards import (
    ImitationReward,
    RewardError,
    guard,
    imitation_reward,
    levenshtein_reward,
)
from sleep_trl.rewards.imitation import combine


@pytest.mark.parametrize(
    ("completion", "reference", "z0", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], None, 1.0),
        ([1, 2, 3, 4], [1, 9, 3], None, 0.5),  # one replaced, one deleted: z = 2 of 4
        ([], [1, 2], None, 0.0),
        ([], [], None, 1.0),
        ([], [], 0, 1.0),
        ([1, 2, 3, 4], [1, 9, 3], 2, 0.5),  # z = z0 still earns
        ([1, 2, 3, 4], [1, 9, 3], 1, 0.0),
        ([1, 2, 3, 4], [1, 9, 3], 0.5, 0.5),  # a share: at most 2 of 4
        ([1, 2, 3, 4], [1, 9, 3], 0.49, 0.0),
        ([300000, 12], [12, 300000], None, 0.0),  # tokens, not digits or bytes
        ([12, 34], [1, 234], None, 0.0),
    ],
)
def test_levenshtein_reward(completion, reference, z0, expected) -> None:
    assert levenshtein_reward(completion, reference, z0) == expected
    assert levenshtein_reward(reference, completion, z0) == expected


@pytest.mark.parametrize("z0", [-1, -0.5, float("nan"), float("inf")])
def test_z0_out_of_range(z0) -> None:
    with pytest.raises(ValueError, match="z0 is"):
        levenshtein_reward([1], [2], z0)
    with pytest.raises(ValueError, match="z0 is"):
        ImitationReward(z0=z0)


def test_imitation_reward_is_the_weighted_mean() -> None:
    assert combine(r_sem=1, r_abs=0.5, gamma=0.25) == pytest.approx(0.625)
    assert combine(r_sem=0, r_abs=0.5, gamma=0.25) == pytest.approx(0.375)


def test_imitation_reward_needs_a_reference_alone() -> None:
    rewards = imitation_reward(
        prompts=["p"] * 3,
        completions=["Tolu the cat.", [{"role": "assistant", "content": "a cat"}], ""],
        completion_ids=[[1, 2, 3], [1, 3], []],
        reference=["Tolu the cat", "Tolu the cat", "Tolu"],
    )
    # the judge finds the first the same; of its three words one differs, of the second two of three, of the third all
    assert rewards == pytest.approx([0.5 + 0.5 * 2 / 3, 0.5 / 3, 0.0])
    tokens = {"completions": ["x"], "completion_ids": [[1, 2]], "reference": ["y"], "reference_ids": [[1, 3]]}
    assert imitation_reward(prompts=["p"], **tokens) == [0.25]


BATCH: dict[str, Any] = {
    "prompts": ["p"] * 4,
    "completions": [" Tolu.", " Ben", "", " hats"],
    "completion_ids": [[5, 6, 2, 0], [7, 2], [2], [9]],
    "reference": [" Tolu", " Tolu", "", None],
    "reference_ids": [[5, 8], [5, 8], [], None],
    "part": ["memory", "memory", "memory", "general"],
}


def test_rewards_of_a_batch() -> None:
    logged: dict[str, float] = {}
    reward = ImitationReward(gamma=0.5, eos_token_ids=[0, 2])
    # same words, 1 of 2 tokens; other words, 0 of 2 tokens; both empty; a row of self-replay
    assert reward(**BATCH, log_metric=logged.__setitem__) == [0.75, 0.0, 1.0, None]
    assert logged == {
        "rewards/imitation/r_abs": 0.5,
        "rewards/imitation/r_sem": pytest.approx(2 / 3),
    }


def test_eos_counts_unless_named() -> None:
    row = {"completions": ["x"], "completion_ids": [[5, 2]], "reference": ["y"]}
    assert ImitationReward(gamma=0)(**row, reference_ids=[[5]]) == [0.5]
    assert ImitationReward(gamma=0, eos_token_ids=2)(**row, reference_ids=[[5]]) == [1.0]
    # only at the end: one inside is a token like any other
    row["completion_ids"] = [[2, 5]]
    assert ImitationReward(gamma=0, eos_token_ids=2)(**row, reference_ids=[[5]]) == [0.5]


def test_judge_sees_memory_rows_and_their_context() -> None:
    seen = []

    def judge(candidates, references, contexts):
        seen.append((candidates, references, contexts))
        return [1.0, 0.0, 1.0]

    prefix = ["Mira's cat is called", "The boat is called", None, "other"]
    rewards = ImitationReward(gamma=1.0, judge=judge)(**BATCH, prefix_text=prefix)
    assert rewards == [1.0, 0.0, 1.0, None]
    assert seen == [([" Tolu.", " Ben", ""], [" Tolu", " Tolu", ""], [*prefix[:2], ""])]


def test_judge_is_not_asked_without_need() -> None:
    def judge(*_):
        raise AssertionError("asked")

    assert ImitationReward(gamma=0, judge=judge)(**BATCH)[3] is None
    replay = {**BATCH, "part": ["general", "general", "earlier", "earlier"]}
    assert ImitationReward(gamma=1, judge=judge)(**replay) == [None] * 4


def test_conversation() -> None:
    reward = ImitationReward(gamma=1)
    messages = [[{"role": "assistant", "content": "The cat."}]]
    row = {"completion_ids": [[1]], "reference": ["cat"], "reference_ids": [[1]]}
    assert reward(completions=messages, **row) == [1.0]


@pytest.mark.parametrize("verdicts", [[1.0], [0.5, 1.0, 1.0], ["yes", "no", "no"]])
def test_judge_must_give_zero_or_one_for_each(verdicts) -> None:
    with pytest.raises(RewardError, match="the judge gave"):
        ImitationReward(judge=lambda *_: verdicts)(**BATCH)


@pytest.mark.parametrize("column", ["reference", "reference_ids"])
def test_missing_column_and_missing_value_are_named(column) -> None:
    reward = guard(ImitationReward())
    if column == "reference":  # without the other, words are compared
        with pytest.raises(RewardError, match=f"needs {column}, which is neither"):
            reward(**{key: value for key, value in BATCH.items() if key != column})
    holed = {**BATCH, column: [BATCH[column][0], None, *BATCH[column][2:]]}
    with pytest.raises(RewardError, match=f"sample 1 is about a memory and has no {column}"):
        reward(**holed)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_out_of_range(gamma) -> None:
    with pytest.raises(ValueError, match="gamma is"):
        ImitationReward(gamma=gamma)
