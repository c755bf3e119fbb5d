"""What a night works with: the model with its memory, and the memories cut to what it can see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import RunConfig
from ..data.documents import MemoryText
from ..data.fit import window_size
from ..data.prompts import Prompter
from ..data.windows import split_all
from ..distributed.progress import echo
from ..distributed.zero3 import serve
from ..memory import Memory, MemorySpec, attach, load_experts, load_memory
from ..memory.accumulated_gradients import Accumulated
from ..models.loading import context_limit, load_model, load_tokenizer
from ..planning.consolidation import Consolidation, due_consolidations, due_updates, missing_blocks
from ..planning.night_source import night_memories
from ..planning.relearning import Relearning, plan_relearning
from ..rollout import Engine, TransformersEngine
from ..rollout.choice import make_engine
from ..runs.ledger import LedgerEntry, read_ledger


@dataclass
class NightContext:
    """What a night works with."""

    config: RunConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    memory: Memory
    engine: Engine
    teachers: list[TransformersEngine]  # models that teach in its place, if any
    prompter: Prompter
    memories: list[MemoryText]
    windows: list[list[str]]  # of each memory, as the teacher reads it
    contexts: list[list[str]]  # of each memory, as long as the context allows, for questions with context
    context: int  # tokens that the model, and whoever teaches in its place, can see
    tokens: int  # of all memories
    earlier: list[LedgerEntry]
    consolidations: list[Consolidation]  # that come before the night's own memories
    relearning: Relearning | None  # in place of memories
    accumulated: Accumulated  # by the levels, since their last boundary

    @property
    def adapter(self) -> Path:
        return self.config.output_dir / "adapter"

    def restore(self) -> None:
        """Make the memory what it was when the night began."""
        for index in list(self.memory.records):
            self.memory.reset(index)
        if self.config.continue_from:
            load_experts(self.memory, self.config.continue_from / "adapter")
        self.accumulated = _accumulated(self.config)

    def begin_blocks(self) -> None:
        """Give each level a block as a first night does: no entry can be taken out of an old one (Eq. 2)."""
        for level in missing_blocks(self.config.levels, self.memory.describe()["experts"]):
            self.memory.add_block(level)
        self.accumulated = Accumulated()

    def serve(self) -> None:
        """Let the models write, also if their weights are sharded."""
        for model in (self.model, *(teacher.model for teacher in self.teachers)):
            serve(model)


def prepare(config: RunConfig) -> NightContext:
    """Load the model, attach its memory (or the memory of the run that is continued), and cut the memories."""
    echo(f"Loading {config.model}")
    model, tokenizer = load_model(config), load_tokenizer(config)
    earlier: list[LedgerEntry] = []
    if config.continue_from:
        adapter = config.continue_from / "adapter"
        ctx = config.memory.max_experts if "max_experts" in config.memory.model_fields_set else None
        memory = load_memory(model, adapter, max_experts=ctx)
        earlier = read_ledger(config.continue_from / "ledger.jsonl")
    else:
        memory = attach(model, MemorySpec(**config.memory.model_dump(), seed=config.seed))
    for level in missing_blocks(config.levels, memory.describe()["experts"]):
        memory.add_block(level)
    prompter = Prompter(tokenizer, config.chat_template_kwargs)
    [memories] = broadcast_object_list([night_memories(config)])  # a wake buffer may grow between two readers
    teachers = [load_model(config, name) for name in config.teacher_model]
    context = min(context_limit(reader, config) for reader in (model, *teachers))
    largest = window_size(config, prompter, context)
    size = min(config.dataset.window or largest, largest)
    texts, overlap = [memory.text for memory in memories], min(config.dataset.window_overlap, size // 2)
    windows = split_all(texts, prompter.count_tokens, size, overlap)
    if overlap < config.dataset.window_overlap and any(len(pieces) > 1 for pieces in windows):
        echo(f"Windows of {size} tokens overlap by {overlap} tokens, not {config.dataset.window_overlap}")
    contexts = split_all(texts, prompter.count_tokens, largest, overlap)
    pieces = sum(map(len, windows))
    echo(f"Read {len(memories)} memories in {pieces} windows of at most {size} tokens")
    tokens = sum(map(prompter.count_tokens, texts))
    names = config.source.forget
    relearning = plan_relearning(names, earlier, memory.records) if names else None
    held = earlier, memory.records, memory.spec.max_experts
    due = [] if relearning else due_consolidations(config.levels, *held, tokens)
    new = 1 + len(due) + min(len(due), len(due_updates(config.levels, earlier, tokens)))  # an updated block is new too
    engine, which = make_engine(config.rollout, memory, tokenizer, config.evaluation.batch_size, new)
    echo(which)
    engines = [TransformersEngine(teacher, tokenizer, config.evaluation.batch_size) for teacher in teachers]
    found = NightContext(
        config=config,
        model=model,
        tokenizer=tokenizer,
        memory=memory,
        engine=engine,
        teachers=engines,
        prompter=prompter,
        memories=memories,
        windows=windows,
        contexts=contexts,
        context=context,
        tokens=tokens,
        earlier=earlier,
        consolidations=due,
        relearning=relearning,
        accumulated=_accumulated(config),
    )
    found.serve()
    return found


def _accumulated(config: RunConfig) -> Accumulated:
    """Return what the levels had accumulated when the night began."""
    return Accumulated.load(config.continue_from / "adapter") if config.continue_from else Accumulated()
