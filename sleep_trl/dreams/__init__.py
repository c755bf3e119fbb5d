"""Dreams: what the model writes for itself, how it is chosen, tried out and rewarded (method 3.4)."""

from ..batched_lora.adapters import Adapter, LoraSpec
from ..batched_lora.api import train_adapters, view
from ..batched_lora.batches import LoraJob
from ..batched_lora.export import export_adapter
from ..batched_lora.inner_loop import InnerLoop, Outcome
from ..batched_lora.ray_workers import Workers
from .answerers import Answerers
from .evaluator import DreamEvaluator, SignificanceTest, Trial
from .gradients import Text, gradient_scores, reference_gradient
from .measure import Custom, HeldoutLoss, Measure, Questions, Task
from .quiz import write_quiz
from .select import Selected, Selection, select
from .significance import Gain, paired_gain

__all__ = [
    "Adapter",
    "Answerers",
    "Custom",
    "DreamEvaluator",
    "Gain",
    "HeldoutLoss",
    "InnerLoop",
    "LoraJob",
    "LoraSpec",
    "Measure",
    "Outcome",
    "Questions",
    "Selected",
    "Selection",
    "SignificanceTest",
    "Task",
    "Text",
    "Trial",
    "Workers",
    "export_adapter",
    "gradient_scores",
    "paired_gain",
    "reference_gradient",
    "select",
    "train_adapters",
    "view",
    "write_quiz",
]
