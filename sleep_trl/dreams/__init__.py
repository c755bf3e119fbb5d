"""Dreams: what the model writes for itself, how it is chosen, tried out and rewarded (method 3.4)."""

from .adapters import Adapter, LoraSpec
from .batches import Dream
from .export import export_adapter
from .farm import train_adapters, view
from .gradients import Text, gradient_scores, reference_gradient
from .inner_loop import InnerLoop, Outcome
from .measures import Custom, HeldoutLoss, Measure, Questions, Task
from .quiz import write_quiz
from .rehearsal import Doubt, Rehearsal, Trial
from .respondents import Respondents
from .selection import Selected, Selection, select
from .significance import Gain, paired_gain
from .workers import Workers

__all__ = [
    "Adapter",
    "Custom",
    "Doubt",
    "Dream",
    "Gain",
    "HeldoutLoss",
    "InnerLoop",
    "LoraSpec",
    "Measure",
    "Outcome",
    "Questions",
    "Rehearsal",
    "Respondents",
    "Selected",
    "Selection",
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
