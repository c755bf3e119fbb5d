"""Judges: they decide whether two texts mean the same. One judge per file; models are loaded on demand."""

from sleep_trl.rewards.judges.classifier import ClassifierJudge
from sleep_trl.rewards.judges.lexical import LexicalJudge
from sleep_trl.rewards.judges.lm import LanguageModelJudge
from sleep_trl.rewards.judges.registry import JUDGES, Judge, check_judge, judge, load_judge, make_judge
from sleep_trl.rewards.judges.sentence_transformer import SentenceTransformerJudge

__all__ = [
    "JUDGES",
    "ClassifierJudge",
    "Judge",
    "LanguageModelJudge",
    "LexicalJudge",
    "SentenceTransformerJudge",
    "check_judge",
    "judge",
    "load_judge",
    "make_judge",
]
