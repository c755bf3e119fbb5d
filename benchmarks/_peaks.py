"""Peak memory of one side of `seeding_step.py`: of the process or the device, and of each part of a step."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

MIB = 2**20

before_model: list[float] = []  # the peak, in MiB, just before each model is created


def resident_peak() -> float:
    """Return the peak resident set of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    """Let the kernel forget the peak resident set of this process, for [`peak_since_reset`]."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_since_reset() -> float:
    """Return the peak resident set of this process since [`reset_peak`], in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


class Phases:
    """Peak memory of each part of a step. Resets the peak counter, so not for runs that report their own."""

    def __init__(self, trainer: Any, cuda: bool) -> None:
        self.cuda = cuda
        self.peaks: dict[str, float] = {}
        generates = "generate_on_policy_outputs" if hasattr(trainer, "generate_on_policy_outputs") else "_generate"
        self.watch(trainer, generates, "generation")
        self.watch(trainer, "compute_loss", "loss")
        self.watch(trainer.accelerator, "backward", "backward")

    def reset(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()

    def note(self, name: str) -> None:
        if self.cuda:
            import torch

            peak = torch.cuda.max_memory_allocated() / MIB
        else:
            peak = peak_since_reset()
        self.peaks[name] = max(self.peaks.get(name, 0.0), peak)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Wrap a method so that the peak reached inside it is recorded."""
        inner = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.reset()
            result = inner(*args, **kwargs)
            self.note(name)
            return result

        setattr(owner, method, watched)


def memory(cuda: bool) -> dict[str, float]:
    """Return the peak of the process or the device, and the peak before the model was created, in MiB."""
    if cuda:
        import torch

        return {"peak_mib": torch.cuda.max_memory_allocated() / MIB, "imports_mib": 0.0}
    return {"peak_mib": resident_peak(), "imports_mib": before_model[0]}
