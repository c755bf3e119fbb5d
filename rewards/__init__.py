"""Rewards for rollouts and dreams, and the judges they use. Importing this does not load torch."""

from sleep_trl.config.reward import RewardSpec
from sleep_trl.rewards.errors import RewardError
from sleep_trl.rewards.guard import GuardedReward, RewardFunc, guard
from sleep_trl.rewards.imitation import ImitationReward, imitation_reward, levenshtein_reward
from sleep_trl.rewards.judges import JUDGES, Judge, judge, make_judge
from sleep_trl.rewards.registry import REWARDS, check, resolve, reward
from sleep_trl.rewards.rehearsal import Faithfulness

__all__ = [
    "JUDGES",
    "REWARDS",
    "Faithfulness",
    "GuardedReward",
    "ImitationReward",
    "Judge",
    "RewardError",
    "RewardFunc",
    "RewardSpec",
    "check",
    "guard",
    "imitation_reward",
    "judge",
    "levenshtein_reward",
    "make_judge",
    "resolve",
    "reward",
]
