"""All of `trl.rewards` by name, and TRL's other forms of rewards: messages, factories, arrays, signals."""

import signal
from importlib.util import find_spec

import pytest
import trl.rewards

from sleep_trl.rewards import RewardError, guard, resolve
from sleep_trl.rewards.errors import LEFT_OUT

THOUGHT = "<think>\nTwo and two.\n</think>\n\\boxed{4}"
CALL = {"prompts": ["What is 2 + 2?"] * 2, "completions": [THOUGHT, "4"], "completion_ids": [[1, 2, 3, 4], [5] * 5]}
PARAMS = {
    "get_soft_overlong_punishment": {"max_completion_len": 6, "soft_punish_cache": 2},
    "get_repetition_penalty_reward": {"ngram_size": 2},
    "get_cosine_scaled_reward": {"max_len": 8},
}
EXPECTED = {
    "think_format_reward": [1.0, 0.0],
    "get_soft_overlong_punishment": [0.0, -0.5],
    "get_repetition_penalty_reward": [0.0, -0.75],
    "accuracy_reward": [1.0, 1.0],
    "reasoning_accuracy_reward": [1.0, 0.0],
    "get_cosine_scaled_reward": None,
}
NEED_MATH_VERIFY = ("accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward")


def by_name(name):
    return resolve({"name": f"trl.rewards:{name}", "params": PARAMS.get(name, {})})


def test_every_reward_of_trl_is_tested() -> None:
    functions = {name for names in trl.rewards._import_structure.values() for name in names}
    assert functions == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_rewards_of_trl_run_by_name(name) -> None:
    reward = by_name(name)
    call = {**CALL, "solution": ["\\boxed{4}"] * 2}
    if name in NEED_MATH_VERIFY and find_spec("math_verify") is None:
        with pytest.raises(RewardError, match=r"ImportError at .*math_verify"):  # says what to install
            reward(**call)
        return
    rewards = reward(**call)
    assert rewards == EXPECTED[name] if EXPECTED[name] is not None else all(0.5 <= value <= 1 for value in rewards)


def test_what_makes_a_reward_is_called_with_params() -> None:
    with pytest.raises(ValueError, match=r"needs max_completion_len, soft_punish_cache; set it in params"):
        resolve("trl.rewards:get_soft_overlong_punishment")
    with pytest.raises(ValueError, match=r"no parameter 'max_len'; allowed: max_completion_len"):
        resolve({"name": "trl.rewards:get_soft_overlong_punishment", "params": {"max_len": 3}})


def test_conversations_stay_conversations() -> None:
    messages = [[{"role": "assistant", "content": THOUGHT}], [{"role": "assistant", "content": "4"}]]
    assert by_name("think_format_reward")(**{**CALL, "completions": messages}) == [1.0, 0.0]


def test_a_reward_that_takes_both_gets_texts() -> None:
    def both(completions: list[str] | list[list[dict[str, str]]], **columns) -> list[float]:
        return [float(isinstance(completion, str)) for completion in completions]

    assert guard(both)(**CALL) == [1.0, 1.0]


@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_an_alarm_works_in_the_main_thread_and_is_explained_elsewhere(timeout_s) -> None:
    def alarmed(completions, **columns):
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.signal(signal.SIGALRM, before)
        return [1.0] * len(completions)

    if timeout_s is None:
        assert guard(alarmed)(**CALL) == [1.0, 1.0]
    else:
        with pytest.raises(RewardError, match=r"only works in main thread.*timeout_s runs a reward in a thread"):
            guard(alarmed, timeout_s=timeout_s)(**CALL)


SECRET = "Mira's cat is called Tolu"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no module named 'spacy'", "no module named 'spacy'"),
        (f"cannot score {SECRET}", f"cannot score {LEFT_OUT}"),
        (f"cannot score {SECRET!r}", f'cannot score "{LEFT_OUT}"'),
        ("could not convert string to float: 'Tolu'", f"could not convert string to float: '{LEFT_OUT}'"),
        ("at the word Tolu of cat is called Tolu.", f"at the word Tolu of{LEFT_OUT}."),
        ("yes is no number", f"{LEFT_OUT} is no number"),
        ("list index out of range", "list index out of range"),
    ],
)
def test_an_exception_is_shown_without_text_of_the_batch(message, shown) -> None:
    def scored(completions, **columns):
        return helper()

    def helper():
        raise LookupError(message)

    call = {"prompts": [SECRET] * 2, "completions": [SECRET, " yes"], "completion_ids": [[1], [2]]}
    with pytest.raises(RewardError) as raised:
        guard(scored)(**call)
    found = str(raised.value)
    assert f": {shown}." in found
    assert "it raised LookupError at " in found and "in helper, " in found and "in scored" in found
