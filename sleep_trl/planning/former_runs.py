"""What a night that version 0.1 began, and that is resumed, still does as 0.1 did."""

from __future__ import annotations

from ..config import RunConfig
from ..runs.files import read_json
from ..runs.folder import RunFolder

STEPS = 100  # default of seeding.steps in 0.1, whatever the number of memories


def began_in_0_1(config: RunConfig) -> bool:
    """Whether a run is resumed that 0.1 began. It wrote about all memories, whatever fitted the steps."""
    run = RunFolder(config.output_dir)
    if not (config.resume and run.is_begun):
        return False
    return "passes" not in read_json(run.config).get("seeding", {"passes": None})


def with_former_defaults(config: RunConfig) -> RunConfig:
    """Return a run with the default of `seeding.steps` with which 0.1 began it."""
    if config.seeding.steps is not None or not began_in_0_1(config):
        return config
    return config.model_copy(update={"seeding": config.seeding.model_copy(update={"steps": STEPS})})
