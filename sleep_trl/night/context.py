"""What a night works with: the model with its memory, and the memories cut to what it can see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import RunConfig
from ..config.counting import counted
from ..data.documents import MemoryText
from ..data.prompts import Prompter
from ..data.thoughts import WithoutThoughts
from ..distributed.progress import echo
from ..distributed.zero3 import serve
from ..memory import Memory, MemorySpec, OtherBase, attach, load_experts, load_memory
from ..memory.accumulated_gradients import Accumulated
from ..models.loading import Checkpoint, load_model
from ..planning.consolidation import missing_blocks
from ..planning.inputs import RunInputs
from ..planning.relearning import Relearning
from ..rollout import Engine, TransformersEngine
from ..rollout.choice import make_engine
from ..runs.finished import give_base
from ..runs.folder import RunFolder
from ..runs.ledger import LedgerEntry


@dataclass
class NightContext:
    """What a night works with: its inputs, and what was loaded for them.

    Args:
        inputs (`RunInputs`): what follows from the configuration alone.
        model (`PreTrainedModel`): the model that grows.
        memory (`Memory`): the experts attached to it.
        engine (`Engine`): what generates with it.
        teachers (`list[TransformersEngine]`): models that teach the memories in its place, if any.
        accumulated (`Accumulated`): what the levels have accumulated since their last boundary (Eq. 2).
        before (`Path`, *optional*): a folder with the experts as the night began, if there were any.
    """

    inputs: RunInputs
    model: PreTrainedModel
    memory: Memory
    engine: Engine
    teachers: list[TransformersEngine]
    accumulated: Accumulated
    before: Path | None

    @property
    def config(self) -> RunConfig:
        return self.inputs.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.inputs.tokenizer

    @property
    def prompter(self) -> Prompter:
        return self.inputs.prompter

    @property
    def memories(self) -> list[MemoryText]:
        return self.inputs.memories

    @property
    def earlier(self) -> list[LedgerEntry]:
        return self.inputs.earlier

    @property
    def relearning(self) -> Relearning | None:
        return self.inputs.relearning

    def restore(self) -> None:
        """Make the memory what it was when the night began."""
        for index in list(self.memory.records):
            self.memory.reset(index)
        if self.before is not None:
            load_experts(self.memory, self.before)
        self.accumulated = _accumulated(self.config)

    def begin_blocks(self) -> None:
        """Give each level a block as a first night does: no entry can be taken out of an old one (Eq. 2)."""
        for level in missing_blocks(self.config.levels, self.memory.describe()["experts"]):
            self.memory.add_block(level)
        self.accumulated = Accumulated()

    def answering(self, engine: Engine) -> Engine:
        """Return an engine without the thoughts in what it writes, unless `dataset.keep_thoughts` is on."""
        return engine if self.config.dataset.keep_thoughts else WithoutThoughts(engine, self.tokenizer)

    def serve(self) -> None:
        """Let the models write, also if their weights are sharded."""
        for model in (self.model, *(teacher.model for teacher in self.teachers)):
            serve(model)


def prepare(inputs: RunInputs, memory: Memory | None = None) -> NightContext:
    """Load the model and what teaches in its place, attach its memory (or that of the run that is continued), and start
    what generates. All processes have to call it.

    Args:
        inputs (`RunInputs`):
            Of the night.
        memory (`Memory`, *optional*):
            That of a model that is loaded already.
    """
    inputs = inputs.from_first_process()
    config = inputs.config
    before = RunFolder(config.continue_from).adapter.path if config.continue_from else None
    if memory is not None:
        before = RunFolder(config.output_dir).before
    else:
        echo(f"Loading {config.model} in {inputs.dtype.name} ({inputs.dtype.reason})")
        model = load_model(config)
        if before is not None:
            try:
                memory = load_memory(model, before, inputs.capacity.max_experts)
            except OtherBase as error:
                raise OtherBase(f"{error} {give_base(RunFolder(before.parent))}") from None
        else:
            memory = attach(model, MemorySpec(**config.memory.model_dump(), seed=config.seed))
    for level in missing_blocks(config.levels, memory.describe()["experts"]):
        memory.add_block(level)
    teachers = [load_model(config, name) for name in config.teacher_model]
    windows, size = sum(map(len, inputs.windows)), inputs.window
    if inputs.overlap < config.dataset.window_overlap and windows > len(inputs.memories):
        echo(f"Windows of {size} tokens overlap by {inputs.overlap} tokens, not {config.dataset.window_overlap}")
    echo(f"Read {counted(len(inputs.memories), 'memory')} in {counted(windows, 'window')} of at most {size} tokens")
    batch_size = config.evaluation.batch_size
    base = Checkpoint.of(config)
    engine, which = make_engine(config.rollout, memory, inputs.tokenizer, batch_size, inputs.new_experts, base)
    echo(which)
    ctx = NightContext(
        inputs=inputs,
        model=memory.model,
        memory=memory,
        engine=engine,
        teachers=[TransformersEngine(teacher, inputs.tokenizer, batch_size) for teacher in teachers],
        accumulated=_accumulated(config),
        before=before,
    )
    ctx.serve()
    return ctx


def _accumulated(config: RunConfig) -> Accumulated:
    """Return what the levels had accumulated when the night began."""
    return Accumulated.load(RunFolder(config.continue_from).adapter.path) if config.continue_from else Accumulated()
