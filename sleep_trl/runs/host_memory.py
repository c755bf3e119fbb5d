"""Main memory that libraries keep for later, and what makes them give it back.

oneDNN compiles each product for its shape and keeps the code, half a MiB a shape; PyTorch's binding keeps it too. Both
hold 1,024 shapes, and in bfloat16 on a CPU texts of all lengths fill them.
"""

from __future__ import annotations

import ctypes
import os

CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""Variables of oneDNN and of PyTorch's binding: the most shapes whose code is kept. A pass uses few, layer by layer."""


def bound_caches() -> None:
    """Let oneDNN keep the code of few shapes, here and in child processes. Variables that are set already are left as
    they are. To be called before the first product."""
    for name, value in CACHES.items():
        os.environ.setdefault(name, value)


def give_back() -> None:
    """Return to the system what has been freed. The C library keeps it otherwise. Without glibc, do nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
