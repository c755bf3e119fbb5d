"""The names of the files in a run's folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PHASES = "phases"
WITH_TEXTS = ("prompts.jsonl", "questions.jsonl", "report.html")
FORMER_INGESTED = "heard.jsonl"  # its name in runs of 0.1
NIGHT = re.compile(r"night-(\d+)")  # a night's folder in that of a chain


def holds_texts(path: Path) -> bool:
    """Return whether a file of a run holds texts of memories, so that only its owner may read it."""
    return path.name in WITH_TEXTS or PHASES in (path.parent.name, path.parent.parent.name)


def night_folder(chain: Path, number: int) -> Path:
    """Return the folder of a chain's night; the first is number 1."""
    return chain / f"night-{number:03}"


@dataclass(frozen=True)
class AdapterFolder:
    """The experts of a run and their replay data: `adapter/`, or any folder written by `save_memory`.

    Args:
        path (`Path`): the folder.
    """

    path: Path

    @property
    def description(self) -> Path:
        """The memory's spec and its experts, as JSON."""
        return self.path / "memory.json"

    @property
    def experts(self) -> Path:
        """The experts' weights."""
        return self.path / "experts.safetensors"

    @property
    def prompts(self) -> Path:
        """Prompts of all nights, replayed by later nights."""
        return self.path / "prompts.jsonl"

    @property
    def questions(self) -> Path:
        """Questions of all nights, asked again by later nights."""
        return self.path / "questions.jsonl"

    @property
    def accumulated(self) -> Path:
        """Gradients accumulated by levels since their last boundary (Eq. 2)."""
        return self.path / "accumulated.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run (its `output_dir`).

    Args:
        path (`Path`): the folder, which need not exist.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration the run was started with, as JSON."""
        return self.path / "config.json"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def model(self) -> Path:
        """The grown model as a folded checkpoint; missing if its experts are routed."""
        return self.path / "model"

    @property
    def partial_model(self) -> Path:
        """Where a model is folded that will replace `model`."""
        return self.path / "model.partial"

    @property
    def partial(self) -> list[Path]:
        """What was not written to its end."""
        return sorted(self.path.glob("*.partial"))

    @property
    def replaced_model(self) -> Path:
        """Where a model is moved that is being replaced."""
        return self.path / "model.replaced"

    @property
    def dream_adapter(self) -> Path:
        """The LoRA that learned the dreams, if they were not learned by an expert."""
        return self.path / "dream_adapter"

    @property
    def checkpoints(self) -> Path:
        """The trainer's checkpoints in Knowledge Seeding."""
        return self.path / "checkpoints"

    def checkpoints_of(self, phase: str) -> Path:
        """Checkpoints of another phase in which something is trained."""
        return self.path / f"checkpoints-{phase}"

    @property
    def all_checkpoints(self) -> list[Path]:
        """The folders of checkpoints of all phases that exist."""
        return sorted(self.path.glob("checkpoints*"))

    @property
    def adapter(self) -> AdapterFolder:
        return AdapterFolder(self.path / "adapter")

    @property
    def phases(self) -> Path:
        """Results of phases, one file for each."""
        return self.path / PHASES

    @property
    def given(self) -> Path:
        """The options that were given when the night was begun, without defaults, as JSON."""
        return self.phases / "given.json"

    @property
    def began(self) -> Path:
        """Hashes of what the night began with, as JSON."""
        return self.phases / "began.json"

    @property
    def before(self) -> Path:
        """The experts of a model in memory as its night began."""
        return self.phases / "before"

    @property
    def dropping(self) -> Path:
        """What is being dropped, as JSON, until that is done."""
        return self.path / "dropping.json"

    @property
    def seeded(self) -> Path:
        """The expert after Knowledge Seeding."""
        return self.phases / "seeded"

    @property
    def tracker(self) -> Path:
        """The name of the night's run in trackers, as JSON."""
        return self.phases / "tracker.json"

    @property
    def tensorboard(self) -> Path:
        """What tensorboard shows."""
        return self.path / "tensorboard"

    @property
    def ingested(self) -> Path:
        """The records a night from a wake buffer started with."""
        former = self.phases / FORMER_INGESTED
        return former if former.is_file() else self.phases / "ingested.jsonl"

    @property
    def is_begun(self) -> bool:
        """Whether a night was started here."""
        return self.config.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether a night was finished here."""
        return self.results.is_file()

    @property
    def is_committed(self) -> bool:
        """Whether a night was finished here and has a ledger. Its ledger is complete before its results are written."""
        return self.results.is_file() and self.ledger.is_file()

    def missing(self, *files: Path) -> list[str]:
        """Return the names, relative to the folder, of those of these files that do not exist."""
        return [file.relative_to(self.path).as_posix() for file in files if not file.is_file()]
