"""sleep-trl: consolidate new memories of a language model into small experts overnight, with TRL.

The names below are imported on first use, so that `import sleep_trl` loads neither torch nor TRL.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"  # pyproject.toml reads it here

if not os.path.isdir(os.path.join(__path__[0], "trainers")):  # a clone without symbolic links, as on Windows
    __path__.append(os.path.dirname(os.path.abspath(__path__[0])))

if TYPE_CHECKING:
    from .launch.sleep_callback import SleepCallback
    from .memory import Memory, MemorySpec, attach, fold, load_memory, save_memory
    from .trainers import DreamingConfig, DreamingTrainer, KnowledgeSeedingConfig, KnowledgeSeedingTrainer

__all__ = [
    "DreamingConfig",
    "DreamingTrainer",
    "KnowledgeSeedingConfig",
    "KnowledgeSeedingTrainer",
    "Memory",
    "MemorySpec",
    "SleepCallback",
    "__version__",
    "attach",
    "fold",
    "load_memory",
    "save_memory",
]

_HOMES = {
    "SleepCallback": ".launch.sleep_callback",
    **dict.fromkeys(
        ("DreamingConfig", "DreamingTrainer", "KnowledgeSeedingConfig", "KnowledgeSeedingTrainer"), ".trainers"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, ".memory"), __name__), name)
    globals()[name] = value  # the next access is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
