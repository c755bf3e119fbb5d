"""DreamEvaluator: learn each dream in isolation and measure whether its task improves (method 3.4, steps 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..batched_lora import LoraJob, LoraSpec, LoraTraining, Workers, divide_jobs, train_adapters
from ..rollout import TransformersEngine
from .answerers import Answerers
from .measure import Measure, Task
from .significance import Gain, Test, paired_gain


@dataclass(frozen=True)
class SignificanceTest:
    """When a gain counts as real (ours; the paper takes the bare sign of one measurement).

    Args:
        test (`str`, *optional*, defaults to `"bootstrap"`):
            See [`~sleep_trl.dreams.significance.paired_gain`].
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence of the test and of the interval, in (0, 1).
        repeats (`int`, *optional*, defaults to `1`):
            How often a dream is learned at most while its sign is uncertain, each time from other first weights and in
            another order; an item's scores are averaged. A dream that is still uncertain then abstains.
    """

    test: Test = "bootstrap"
    confidence: float = 0.95
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}.")


@dataclass(frozen=True)
class Trial:
    """The outcome of one dream.

    Args:
        id (`str`):
            Id of the dream.
        gain (`Gain`, *optional*):
            Change of the scores; `None` if the dream could not be tried out.
        error (`str`, *optional*):
            Why it could not be tried out.
        learned (`int`, *optional*, defaults to `0`):
            How many times it was learned.
    """

    id: str
    gain: Gain | None
    error: str | None = None
    learned: int = 0

    @property
    def reward(self) -> float | None:
        """1 if the task improved, 0 if it got worse or did not change, `None` if that is uncertain or unknown
        (Eq. 5; ours: an uncertain dream abstains and does not count as a failure)."""
        if self.gain is None:
            return None
        if self.gain.verdict == "uncertain":
            changed = self.gain.mean != 0 or self.gain.low != 0 or self.gain.high != 0
            return None if changed else 0.0
        return float(self.gain.verdict == "better")


@dataclass(frozen=True)
class Attempt:
    """One dream learned once: the score of each item, or why there are none."""

    scores: list[float] | None
    error: str | None = None


@dataclass(frozen=True)
class Attempting:
    """Learns and scores dreams with a model, in this process or on a worker."""

    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    measure: Measure
    spec: LoraSpec
    training: LoraTraining

    def __call__(self, model: PreTrainedModel, chunk: Sequence[tuple[LoraJob, Task]]) -> list[Attempt]:
        results = train_adapters(model, [dream for dream, _ in chunk], self.spec, self.training)
        learned = [i for i, result in enumerate(results) if result.adapter is not None]
        engine = TransformersEngine(model, self.tokenizer, self.batch_size)
        answerers = Answerers(engine, [results[i].adapter for i in learned])
        scores = self.measure([chunk[i][1] for i in learned], answerers) if learned else []
        attempts = [Attempt(None, result.error) for result in results]
        for i, row in zip(learned, scores, strict=True):
            is_whole = all(map(math.isfinite, row))
            attempts[i] = Attempt(row) if is_whole else Attempt(None, f"dream {results[i].id!r}: scores {row}")
        return attempts


class DreamEvaluator:
    """Tries out dreams: trains their adapters together, and scores them together on their tasks.

    Args:
        engine (`TransformersEngine`):
            The model, and how it generates.
        measure (`Measure`):
            The measure τ of a task.
        spec (`LoraSpec`, *optional*):
            Rank of the adapters and the layers that have one.
        training (`LoraTraining`, *optional*):
            How the adapters are trained.
        significance (`SignificanceTest`, *optional*):
            When a gain counts as real.
        chunk (`int`, *optional*):
            Dreams learned and scored at a time, which bounds the memory; by default all.
        workers (`Workers`, *optional*):
            Processes that work on the chunks; by default this one, chunk by chunk. The results are the same.

    Raises:
        `ValueError`: if there are workers and no `chunk` to divide dreams by.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        measure: Measure,
        spec: LoraSpec | None = None,
        training: LoraTraining | None = None,
        significance: SignificanceTest | None = None,
        chunk: int | None = None,
        workers: Workers | None = None,
    ) -> None:
        if workers is not None and chunk is None:
            raise ValueError("Workers need chunks of dreams to share. Give `chunk`, the number of dreams in each.")
        self.engine, self.measure, self.chunk, self.workers = engine, measure, chunk, workers
        self.spec, self.training = spec or LoraSpec(), training or LoraTraining()
        self.significance = significance or SignificanceTest()

    def try_out(self, dreams: Sequence[LoraJob], tasks: Sequence[Task]) -> list[Trial]:
        """
        Learn dreams and measure how each changes its task's scores.

        Args:
            dreams (`Sequence[LoraJob]`):
                Dreams with distinct ids.
            tasks (`Sequence[Task]`):
                The task of each dream.

        Returns:
            `list[Trial]`: one for each dream, in the order given. A dream's trial does not depend on the others.

        Raises:
            `ValueError`: if a task has nothing to measure.
        """
        before = self.score_as_is(tasks)
        totals = [[0.0] * len(scores) for scores in before]
        trials = [Trial(dream.id, None) for dream in dreams]
        undecided = list(range(len(dreams)))
        for repeat in range(self.significance.repeats):
            attempts = self.attempt([dreams[i] for i in undecided], [tasks[i] for i in undecided], repeat)
            for i, attempt in zip(undecided, attempts, strict=True):
                if attempt.scores is None:
                    trials[i] = Trial(dreams[i].id, None, attempt.error, repeat)
                    continue
                totals[i] = [total + score for total, score in zip(totals[i], attempt.scores, strict=True)]
                means = [total / (repeat + 1) for total in totals[i]]
                gain = paired_gain(
                    before[i], means, test=self.significance.test, confidence=self.significance.confidence
                )
                trials[i] = Trial(dreams[i].id, gain, None, repeat + 1)
            undecided = [i for i in undecided if trials[i].gain is not None and trials[i].reward is None]
            if not undecided:
                break
        return trials

    def attempt(self, dreams: Sequence[LoraJob], tasks: Sequence[Task], repeat: int = 0) -> list[Attempt]:
        """
        Learn and score each dream once, chunk by chunk.

        Args:
            dreams (`Sequence[LoraJob]`):
                Dreams with distinct ids.
            tasks (`Sequence[Task]`):
                The task of each dream.
            repeat (`int`, *optional*, defaults to `0`):
                Number of the repetition; each has its own seed.

        Returns:
            `list[Attempt]`: one for each dream, in the order given.
        """
        training = replace(self.training, seed=self.training.seed + repeat)
        work = Attempting(self.engine.tokenizer, self.engine.batch_size, self.measure, self.spec, training)
        parts = divide_jobs(dreams, self.chunk)
        chunks = [[(dreams[i], tasks[i]) for i in part] for part in parts]
        if self.workers is None:
            done = [work(self.engine.model, chunk) for chunk in chunks]
        else:
            done = self.workers.run(self.engine.model, work, chunks)
        found = {
            i: attempt
            for part, attempts in zip(parts, done, strict=True)
            for i, attempt in zip(part, attempts, strict=True)
        }
        return [found[i] for i in range(len(dreams))]

    def score_as_is(self, tasks: Sequence[Task]) -> list[list[float]]:
        """Score each task with the unchanged model. A task that occurs several times is scored once.

        Raises:
            `ValueError`: if a task has nothing to measure, or a score is not a finite number.
        """
        distinct = list({task.id: task for task in tasks}.values())
        scores = self.measure(distinct, Answerers(self.engine, [None] * len(distinct)))
        by_task = {task.id: row for task, row in zip(distinct, scores, strict=True)}
        if empty := [name for name, row in by_task.items() if not row]:
            raise ValueError(
                f"Task {empty[0]!r} has nothing to measure: it has no questions. Give it some, or leave it out."
            )
        if unscored := [name for name, row in by_task.items() if not all(map(math.isfinite, row))]:
            raise ValueError(
                f"Task {unscored[0]!r} has a score that is not a finite number, with the model as it is. Check the "
                f"measure, and the model's weights."
            )
        return [by_task[task.id] for task in tasks]
