"""The nights of an ordinary run on disk, and which of them are in its checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from sleep_trl.distributed.progress import echo
from sleep_trl.memory import ExpertRecord, Memory, load_experts
from sleep_trl.memory.storage import holds, read_description
from sleep_trl.memory.wide import take_apart
from sleep_trl.planning.begun import start_over
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.output_dir import changed_options
from sleep_trl.runs.files import read_json, write_json
from sleep_trl.runs.folder import RunFolder, night_folder
from sleep_trl.runs.lock import run_lock

EXPERTS = ".memory.experts."  # in the names of their weights
STEPS = "steps.json"  # after which step of the run each night took place, beside the nights


@dataclass
class NightsOfRun:
    """The chain of nights of an ordinary run.

    Args:
        folder (`Path`): where their folders are.
        own (`tuple[int, ...]`): experts that the run itself has, from before its first night.
    """

    folder: Path
    own: tuple[int, ...] = ()

    def folders(self) -> list[Path]:
        """Return the folders of all nights, first to last."""
        nights: list[Path] = []
        while (night := night_folder(self.folder, len(nights) + 1)).is_dir():
            nights.append(night)
        return nights

    def _steps(self) -> dict[str, int]:
        path = self.folder / STEPS
        return dict(read_json(path)) if path.is_file() else {}

    def record_step(self, night: Path, step: int) -> None:
        """Store after which step of the run a night takes place."""
        write_json(self.folder / STEPS, self._steps() | {night.name: step})

    def done(self, step: int) -> list[Path]:
        """Return the finished nights up to a step of the run."""
        steps = self._steps()
        return [n for n in self.folders() if RunFolder(n).is_finished and steps.get(n.name, step + 1) <= step]

    def is_same_night(self, folder: Path, step: int, memory: Memory, inputs: RunInputs | None) -> bool:
        """Return whether a night that is on disk began after this step, with this model and these memories."""
        run = RunFolder(folder)
        if not run.is_begun or self._steps().get(folder.name) != step or not holds(run.before, memory):
            return False
        if run.is_finished:
            return True
        if inputs is None or read_json(run.began)["memories"] != [memory.sha256 for memory in inputs.memories]:
            return False
        return not changed_options(inputs.config, run.config)

    def discard_from(self, number: int) -> None:
        """Remove nights that this run has not had: it was resumed from before them, and is no longer what it was."""
        for night in reversed(self.folders()[number - 1 :]):
            with run_lock(night):
                start_over(night)  # what it took from a wake buffer waits again
            shutil.rmtree(night)
            echo(f"{night} is removed: it began from other weights, memories or options.", style="yellow")

    def experts_of(self, night: Path) -> list[ExpertRecord]:
        """Return the experts of nights as one of them left them, without the run's own."""
        rows = read_description(RunFolder(night).adapter.path)["experts"]
        return [record for record in (ExpertRecord(**row) for row in rows) if record.index not in self.own]

    def adopt(self, memory: Memory, night: Path | None) -> None:
        """Make the experts of nights those that a night left, or none."""
        records = [] if night is None else self.experts_of(night)
        for index in set(memory.records) - {record.index for record in records} - set(self.own):
            memory.reset(index)
        if night is not None and records:
            load_experts(memory, RunFolder(night).adapter.path, records)

    def night_in(self, memory: Memory, state: Mapping[str, torch.Tensor]) -> tuple[bool, Path | None]:
        """Return whether a state dict is that of a folded model, and the last night of those in it, if any."""
        own, folded = set(self.own), None
        if not any(EXPERTS in name for name in state):
            role = memory.hosts[0].form.output
            named = ((host, state.get(f"{host.name}.{role}.weight")) for host in memory.hosts)
            folded = next(((host, weight) for host, weight in named if weight is not None), None)
        if folded is None:
            return False, None
        host, weight = folded
        found = take_apart(host, role, weight, memory.spec.width)[1]["down"]
        shown = [part for part in found if part.numel()]
        if len(shown) <= sum(memory.records[index].is_enabled for index in own):
            return True, None
        for night in reversed(self.folders()):
            if RunFolder(night).is_finished and self._has_experts(night, memory, host.name, shown):
                return True, night
        raise ValueError(
            f"The checkpoint has {len(shown)} experts in each MLP, and no night in {self.folder} left these. Restore "
            f"that folder, or give SleepCallback the output_dir of the run that wrote the checkpoint."
        )

    def _has_experts(self, night: Path, memory: Memory, host: str, shown: list[torch.Tensor]) -> bool:
        enabled = {record.index for record in self.experts_of(night) if record.is_enabled}
        own = {index for index in self.own if memory.records[index].is_enabled}
        order = sorted(enabled | own)
        if len(order) != len(shown):
            return False
        with safe_open(RunFolder(night).adapter.experts, framework="pt") as file:
            return all(
                torch.equal(file.get_tensor(f"experts.{index}.{host}.down").to(part.dtype), part.cpu())
                for index, part in zip(order, shown, strict=True)
                if index in enabled
            )
