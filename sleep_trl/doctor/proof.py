"""The proof: a tiny model is taught with the engine that the run would choose, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..config import RolloutConfig
from .case import Case
from .child import ChildFailed, run_python
from .finding import Finding, fault, mistake, skipped

NAME = "proof"
WITHIN = 300.0  # seconds, beside those that a pool may take to start


def prove(case: Case) -> Iterator[Finding]:
    """Let [`sleep_trl.doctor.trial`] run, and pass on what it finds."""
    if case.mistake:
        yield replace(skipped("the options cannot be read"), name=NAME)
        return
    try:
        asked = _wanted(case)
    except ValueError as error:
        yield replace(mistake(str(error)), name=NAME)
        return
    rollout = asked["rollout"]
    deadline = WITHIN + (rollout["start_timeout_s"] if rollout["engine"] == "ray" else 0.0)
    try:
        said = run_python("-m", "sleep_trl.doctor.trial", json.dumps(asked), deadline=deadline)
    except ChildFailed as error:
        told = f"no tiny model can be taught here with rollout.engine {rollout['engine']}: {error}"
        yield replace(fault(told, "Correct what is at fault above, or give --rollout.engine transformers."), name=NAME)
        return
    for finding in json.loads(said.splitlines()[-1]):
        yield Finding(**finding)


def _wanted(case: Case) -> dict[str, Any]:
    """Return what is to be tried out, as plain data: one engine of the kind that the run would choose."""
    if case.config is None:
        return {"rollout": RolloutConfig().model_dump(), "memory": {}}
    chosen = {"engine": case.engine.engine, "inner_engine": case.engine.replica, "num_engines": 1}
    return {
        "rollout": case.config.rollout.model_copy(update=chosen).model_dump(),
        "memory": case.config.memory.model_dump(include={"routing", "top_k"}),
    }
