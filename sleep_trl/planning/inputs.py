"""What a run works with, derived from its configuration without loading a weight.

Preflight, the night and doctor all read it from here, so that a night does what was planned. Every property is derived
when it is first read, and raises `ValueError` for a mistake in the run, so that doctor can examine one after another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import jinja2
from accelerate.utils import broadcast_object_list

from ..config.sections import Batches
from ..data.columns import ExtraColumns, extra_columns
from ..data.documents import MemoryText
from ..data.files import LeftOut
from ..data.fit import Lengths
from ..data.parts import Part
from ..data.rows import count_steps, split_shares
from ..data.samples import Window
from ..data.sources import Reading, read_skill, read_texts
from ..data.titles import find_titles, with_title
from ..data.windows import find_statements, split_all
from ..memory import ExpertRecord
from ..memory.storage import read_description
from ..runs.files import read_jsonl
from ..runs.folder import RunFolder
from ..runs.ledger import LedgerEntry, read_ledger
from .consolidation import Consolidation, due_consolidations, due_updates, missing_blocks
from .extent import Extent, estimate_sizes, measure, wanted_samples
from .fit import Fit
from .former_runs import began_in_0_1
from .model_inputs import ModelInputs
from .night_source import night_memories
from .relearning import Relearning, plan_relearning, prompts_without
from .selection import apportion
from .splits import Splits

SEEDS_APART = 4  # generations of a sample
WINDOW = 256  # tokens of a memory that the teacher sees at once, by default (ours)


class RunInputs(ModelInputs):
    """Everything that follows from a run's configuration, its files and its model's config.

    Args:
        config (`RunConfig`):
            The run.
    """

    def from_first_process(self) -> RunInputs:
        """Return the inputs with the memories and the dtype of the first process: a wake buffer may grow between two
        readers, and two measurements may differ. All processes have to call it."""
        reading, dtype = broadcast_object_list([self.reading_of_memories, self.dtype])
        if (reading, dtype) == (self.reading_of_memories, self.dtype):
            return self
        inputs = RunInputs(self.config.model_copy(update={"dtype": dtype.name}))
        inputs.reading_of_memories, inputs.dtype = reading, dtype
        return inputs

    # -- the memories -------------------------------------------------------------------------------------------------

    @cached_property
    def reading_of_memories(self) -> Reading:
        """What there is to learn, and what could not be read."""
        return night_memories(self.config)

    @property
    def available(self) -> list[MemoryText]:
        """What there is to learn; empty if the night removes entries."""
        return self.reading_of_memories.memories

    @property
    def left_out(self) -> list[LeftOut]:
        """Files, rows and folders of the memories that were not read."""
        return self.reading_of_memories.left_out

    @cached_property
    def columns(self) -> ExtraColumns:
        """Columns of the memories that rewards get in addition."""
        return extra_columns(self.available)

    @cached_property
    def fit(self) -> Fit:
        """What the night takes of them, and what waits for another one."""
        return Fit(
            self.config,
            self.available,
            rows=self.expected_rows,
            rows_after=self._rows_of({**self._shares, "earlier": self.config.dataset.earlier_share}),
            read_earlier=lambda: self.earlier,
            read_splits=lambda: self.splits,
            estimate_sizes=lambda memories: estimate_sizes(self, memories),
        )

    @property
    def memories(self) -> list[MemoryText]:
        """The memories that the night learns: all, or as many as fit `seeding.steps` and the chunk of level 0."""
        return self.fit.taken

    @cached_property
    def titles(self) -> dict[str, str]:
        """What names each memory in prompts, by its id; empty where the tokenizer cannot spell it."""
        if not self.config.dataset.titles:
            return {memory.id: "" for memory in self.available}
        titles = find_titles(self.available)
        can_spell = self.prompter.can_spell(list(titles.values()))
        return {name: title if known else "" for (name, title), known in zip(titles.items(), can_spell, strict=True)}

    @cached_property
    def skill(self) -> list[MemoryText]:
        """The user's passages with questions that measure the base skill."""
        return read_skill(self.config.evaluation.skill) if self.config.evaluation.skill else []

    @cached_property
    def prose(self) -> list[MemoryText]:
        """The user's texts on which the perplexity is measured."""
        return read_texts(self.config.evaluation.perplexity, "evaluation.perplexity")

    @cached_property
    def general(self) -> list[MemoryText]:
        """The user's texts with which general samples begin."""
        return read_texts(self.config.dataset.general_texts, "dataset.general_texts")

    @cached_property
    def plain(self) -> list[MemoryText]:
        """The user's texts that are read as they are."""
        return read_texts(self.config.dataset.plain_texts, "dataset.plain_texts")

    @property
    def general_seed(self) -> int:
        """Seed of the general samples: each teacher has one for each template, and theirs come first."""
        data, teachers = self.config.dataset, max(1, len(self.config.teacher_model))
        return self.config.seed + 1 + SEEDS_APART * (len(data.templates) * teachers if self.memories else 0)

    @cached_property
    def tokens(self) -> int:
        """Tokens of all memories."""
        return self.fit.tokens

    @cached_property
    def lengths(self) -> Lengths:
        """The most tokens that the texts of the run have."""
        try:
            title = max(self.prompter.count_all(list(self.titles.values())), default=0)
            return Lengths.of(self.config, self.prompter, self.context, title)
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(
                f"A prompt cannot be made from dataset.templates or the model's chat template: {error}. "
                f"Check the templates and --chat_template_kwargs."
            ) from None

    @cached_property
    def largest_window(self) -> int:
        """The most tokens of a memory that fit the context along with prompt, request and answer."""
        return self.lengths.largest_window(self.context)

    @cached_property
    def window(self) -> int:
        """Tokens of a memory that the teacher sees at once."""
        asked = self.config.dataset.window
        if asked is not None and asked > self.largest_window:
            raise ValueError(
                f"dataset.window: {asked} tokens of a memory do not fit a context of {self.context} tokens along with "
                f"prompt and answer; at most {self.largest_window} do. Lower --dataset.window."
            )
        return asked or min(WINDOW, self.largest_window)

    @cached_property
    def overlap(self) -> int:
        """Tokens by which neighboring windows overlap: as many as asked for, at most half a window."""
        return min(self.config.dataset.window_overlap, self.window // 2)

    @cached_property
    def splits(self) -> Splits:
        """Tokens and windows of everything there is to learn."""
        return Splits(self.available, self.prompter.count_all, self.window, self.overlap)

    @cached_property
    def windows(self) -> list[list[str]]:
        """Each memory as the teacher reads it."""
        return [self.splits.windows(memory.id) for memory in self.memories]

    @cached_property
    def reading(self) -> list[Window]:
        """All windows as the teacher reads them, under the title of their memory."""
        return self.under_titles(self.memories, self.windows)

    def under_titles(self, memories: Sequence[MemoryText], windows: Sequence[Sequence[str]]) -> list[Window]:
        """Return the windows of memories as the teacher reads them."""
        return [
            Window(memory.id, title, with_title(title, text), index, tuple(find_statements(text)))
            for memory, texts in zip(memories, windows, strict=True)
            for index, text in enumerate(texts)
            for title in [self.titles[memory.id]]
        ]

    @cached_property
    def contexts(self) -> dict[str, list[str]]:
        """Each memory with questions, by its id, in pieces as long as the context allows."""
        asked = [memory for memory in self.memories if memory.questions]
        return self.contexts_of(asked, [self.splits.tokens(memory.id) for memory in asked])

    def contexts_of(self, memories: Sequence[MemoryText], totals: Sequence[int] | None = None) -> dict[str, list[str]]:
        """Return memories, by their ids, in pieces as long as the context allows, for questions with the text in view.
        `totals` are their lengths in tokens, if they are known."""
        texts = [memory.text for memory in memories]
        pieces = split_all(texts, self.prompter.count_all, self.largest_window, self.overlap, totals)
        return {
            memory.id: [with_title(self.titles[memory.id], piece) for piece in of_memory]
            for memory, of_memory in zip(memories, pieces, strict=True)
        }

    # -- the length of the night --------------------------------------------------------------------------------------

    @cached_property
    def rows_by_part(self) -> dict[Part, int]:
        """Prompts of each part in a step, if every part of the data set has samples."""
        return split_shares(self.config.seeding.prompts_per_step, self._shares)

    @property
    def _shares(self) -> dict[Part, float]:
        data, continued = self.config.dataset, self.config.continue_from is not None
        return {
            "general": data.general_share if data.general_samples else 0.0,
            "earlier": data.earlier_share if continued else 0.0,
        }

    @property
    def expected_rows(self) -> int:
        """Rows about memories in all steps, at least; only if `seeding.steps` is given."""
        return self._rows_of(self._shares)

    def _rows_of(self, shares: dict[Part, float]) -> int:
        seeding = self.config.seeding
        return seeding.steps * split_shares(seeding.prompts_per_step, shares)["memory"] if seeding.steps else 0

    @cached_property
    def sample_counts(self) -> list[list[int]]:
        """Samples that the teacher writes by each template about each window: as many as `dataset` asks for, and no
        more than `seeding.steps` has rows for."""
        wanted = wanted_samples(self.config.dataset, self.reading)
        total = sum(map(sum, wanted))
        if self.config.seeding.steps is None or began_in_0_1(self.config) or total <= self.expected_rows:
            return wanted
        by_window = [
            apportion(counts, max(1, self.expected_rows * sum(counts) // total), turn)
            for turn, counts in enumerate(zip(*wanted, strict=True))
        ]
        return [list(counts) for counts in zip(*by_window, strict=True)]

    @cached_property
    def extent(self) -> Extent:
        """How much there is to learn, for the plan."""
        return measure(self)

    @property
    def expected_samples(self) -> int:
        """Samples about memories, at most. A night that removes entries has the prompts of those that it relearns."""
        if (relearning := self.relearning) is None:
            return self.extent.samples
        assert self.config.continue_from is not None
        prompts = prompts_without(
            read_jsonl(RunFolder(self.config.continue_from).adapter.prompts), relearning.forgotten
        )
        return sum(row["entry"] in relearning.holds for row in prompts)

    @property
    def expected_steps(self) -> int:
        """Optimizer steps of the night: `seeding.steps`, or an estimate, until the samples are written."""
        seeding = self.config.seeding
        return seeding.steps or count_steps(self.expected_samples, seeding.passes, self.rows_by_part["memory"])

    # -- the memory and its ledger ------------------------------------------------------------------------------------

    @cached_property
    def earlier(self) -> list[LedgerEntry]:
        """The ledger as the night begins."""
        return read_ledger(RunFolder(self.config.continue_from).ledger) if self.config.continue_from else []

    @cached_property
    def experts(self) -> dict[int, ExpertRecord]:
        """The experts of the run that is continued, by their index."""
        if self.config.continue_from is None:
            return {}
        rows = read_description(RunFolder(self.config.continue_from).adapter.path)["experts"]
        return {record.index: record for record in (ExpertRecord(**row) for row in rows)}

    @cached_property
    def relearning(self) -> Relearning | None:
        """What a night that removes entries does, instead of learning memories."""
        if not (names := self.config.source.forget):
            return None
        if self.config.continue_from is None:
            raise ValueError(
                f"memories: {self.config.memories} removes entries of a run. Name that run with --continue_from."
            )
        return plan_relearning(names, self.earlier, self.experts)

    @cached_property
    def consolidations(self) -> list[Consolidation]:
        """What is consolidated before the night learns its own memories."""
        if self.relearning is not None or self.config.continue_from is None:
            return []
        missing = missing_blocks(self.config.levels, (vars(record) for record in self.experts.values()))
        size = self.capacity.max_experts - len(missing)
        return due_consolidations(self.config.levels, self.earlier, self.experts, size, self._tokens_for_levels)

    @cached_property
    def updates(self) -> tuple[int, ...]:
        """Levels whose block takes its step in this night (Eq. 2), slow to fast."""
        return tuple(due_updates(self.config.levels, self.earlier, self._tokens_for_levels))

    @property
    def _tokens_for_levels(self) -> int:
        """Tokens of all memories, which are counted only if levels have chunks to fill."""
        return self.tokens if self.config.levels.chunks else 0

    @property
    def new_experts(self) -> int:
        """Experts that the night activates: its own, that of each consolidation, and each updated block."""
        due = len(self.consolidations)
        return 1 + due + min(due, len(self.updates))

    # -- the launch ---------------------------------------------------------------------------------------------------

    @cached_property
    def batches(self) -> Batches:
        """How the rollouts of a step are split over the launched processes."""
        return self.config.seeding.batches(int(os.environ.get("WORLD_SIZE", 1)))
