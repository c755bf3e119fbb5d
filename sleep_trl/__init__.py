"""sleep-trl: consolidate new memories of a language model into small experts overnight, with TRL.

The names below are imported on first use, so that `import sleep_trl` loads neither torch nor TRL.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .memory import MemorySpec, attach, load_memory
    from .trainers import DreamingConfig, DreamingTrainer, KnowledgeSeedingConfig, KnowledgeSeedingTrainer

__all__ = [
    "DreamingConfig",
    "DreamingTrainer",
    "KnowledgeSeedingConfig",
    "KnowledgeSeedingTrainer",
    "MemorySpec",
    "attach",
    "load_memory",
]

_MODULES = dict.fromkeys(("MemorySpec", "attach", "load_memory"), ".memory")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, ".trainers"), __name__), name)
    globals()[name] = value  # the next access is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
