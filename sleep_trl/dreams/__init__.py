"""Dreams: what the model writes for itself, how it is chosen, tried out and rewarded (method 3.4)."""

from .answerers import Answerers
from .evaluator import DreamEvaluator, SignificanceTest, Trial
from .gradients import Text, gradient_scores, reference_gradient
from .measure import Custom, HeldoutLoss, Measure, Questions, Task
from .quiz import write_quiz
from .select import Selected, Selection, select
from .significance import Gain, paired_gain

__all__ = [
    "Answerers",
    "Custom",
    "DreamEvaluator",
    "Gain",
    "HeldoutLoss",
    "Measure",
    "Questions",
    "Selected",
    "Selection",
    "SignificanceTest",
    "Task",
    "Text",
    "Trial",
    "gradient_scores",
    "paired_gain",
    "reference_gradient",
    "select",
    "write_quiz",
]
