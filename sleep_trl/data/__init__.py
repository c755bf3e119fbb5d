"""The teacher's data set."""

from .prompts import Prompter
from .rows import build_rows, split_shares
from .samples import Sample, Window, Written, write_about, write_earlier, write_general
from .templates import BUILT_IN, Template
from .windows import split_all, split_sentences, split_windows

__all__ = [
    "BUILT_IN",
    "Prompter",
    "Sample",
    "Template",
    "Window",
    "Written",
    "build_rows",
    "split_all",
    "split_sentences",
    "split_shares",
    "split_windows",
    "write_about",
    "write_earlier",
    "write_general",
]
