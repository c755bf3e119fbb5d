"""The parts of a night's data set, by what a row is for. Imports no torch: rewards read it too."""

from __future__ import annotations

from typing import Literal, get_args

Part = Literal["memory", "dream", "general", "earlier"]
PARTS: tuple[Part, ...] = get_args(Part)
LEARNED: tuple[Part, ...] = ("memory", "dream")  # the others are self-replay
COUNTED_APART = {"held_out": "general held out to measure agreement"}
"""Names of counts of samples that are no part."""
