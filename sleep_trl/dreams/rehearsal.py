"""Rehearsal: learn each dream in isolation and see whether its task gets better (method 3.4, steps 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..rollout import TransformersEngine
from .adapters import LoraSpec
from .batches import Dream
from .farm import train_adapters
from .inner_loop import InnerLoop
from .measures import Measure, Task
from .respondents import Respondents
from .significance import Gain, Test, paired_gain


@dataclass(frozen=True)
class Doubt:
    """When a gain is believed (ours; the paper takes the bare sign of one measurement).

    Args:
        test (`str`, *optional*, defaults to `"bootstrap"`):
            See [`~sleep_trl.dreams.significance.paired_gain`].
        confidence (`float`, *optional*, defaults to `0.95`):
            Of the test and the interval, in (0, 1).
        repeats (`int`, *optional*, defaults to `1`):
            Most often that a dream whose sign is uncertain is learnt again, each time from other first weights and in
            another order; the scores of an item are averaged. Still uncertain, the dream abstains.
    """

    test: Test = "bootstrap"
    confidence: float = 0.95
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}.")


@dataclass(frozen=True)
class Trial:
    """What became of one dream.

    Args:
        id (`str`):
            The dream's.
        gain (`Gain`, *optional*):
            Scores after against before; `None` if the dream could not be tried out.
        error (`str`, *optional*):
            Why it could not.
        learnt (`int`, *optional*, defaults to `0`):
            How often it was learnt.
    """

    id: str
    gain: Gain | None
    error: str | None = None
    learnt: int = 0

    @property
    def reward(self) -> float | None:
        """1 if the task got better, 0 if it got worse or stayed as it was, `None` if that is uncertain or unknown
        (Eq. 5; ours: an uncertain dream abstains and counts as no failure)."""
        if self.gain is None:
            return None
        if self.gain.verdict == "uncertain":
            changed = self.gain.mean != 0 or self.gain.low != 0 or self.gain.high != 0
            return None if changed else 0.0
        return float(self.gain.verdict == "better")


class Rehearsal:
    """Tries out dreams: m adapters are trained together, and scored together on their tasks.

    Args:
        engine (`TransformersEngine`):
            The model and how it generates.
        measure (`Measure`):
            τ.
        spec (`LoraSpec`, *optional*):
            Size and place of the adapters.
        loop (`InnerLoop`, *optional*):
            How a dream is learnt.
        doubt (`Doubt`, *optional*):
            When a gain is believed.
        chunk (`int`, *optional*):
            Adapters held on the device at a time; by default all.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        measure: Measure,
        spec: LoraSpec | None = None,
        loop: InnerLoop | None = None,
        doubt: Doubt | None = None,
        chunk: int | None = None,
    ) -> None:
        self.engine, self.measure, self.chunk = engine, measure, chunk
        self.spec, self.loop, self.doubt = spec or LoraSpec(), loop or InnerLoop(), doubt or Doubt()

    def try_out(self, dreams: Sequence[Dream], tasks: Sequence[Task]) -> list[Trial]:
        """
        Learn dreams and measure what each does for its task.

        Args:
            dreams (`Sequence[Dream]`):
                Dreams with distinct ids.
            tasks (`Sequence[Task]`):
                The task of each dream.

        Returns:
            `list[Trial]`: one for each dream, in the order given. A dream's trial does not depend on the others.

        Raises:
            `ValueError`: if a task has nothing to measure.
        """
        before = self._score_as_is(tasks)
        totals = [[0.0] * len(scores) for scores in before]
        trials = [Trial(dream.id, None) for dream in dreams]
        undecided = list(range(len(dreams)))
        for repeat in range(self.doubt.repeats):
            loop = replace(self.loop, seed=self.loop.seed + repeat)
            chosen = [dreams[i] for i in undecided]
            outcomes = train_adapters(self.engine.model, chosen, self.spec, loop, chunk=self.chunk)
            for i, outcome in zip(undecided, outcomes, strict=True):
                if outcome.adapter is None:
                    trials[i] = Trial(dreams[i].id, None, outcome.error, repeat)
            learnt = [(i, o.adapter) for i, o in zip(undecided, outcomes, strict=True) if o.adapter is not None]
            respondents = Respondents(self.engine, [adapter for _, adapter in learnt])
            after = self.measure([tasks[i] for i, _ in learnt], respondents) if learnt else []
            for (i, _), scores in zip(learnt, after, strict=True):
                totals[i] = [total + score for total, score in zip(totals[i], scores, strict=True)]
                means = [total / (repeat + 1) for total in totals[i]]
                gain = paired_gain(before[i], means, test=self.doubt.test, confidence=self.doubt.confidence)
                trials[i] = Trial(dreams[i].id, gain, None, repeat + 1)
            undecided = [i for i, _ in learnt if trials[i].reward is None]
            if not undecided:
                break
        return trials

    def _score_as_is(self, tasks: Sequence[Task]) -> list[list[float]]:
        """Score each task once with the model as it is, for all dreams about it."""
        distinct = list({task.id: task for task in tasks}.values())
        scores = self.measure(distinct, Respondents(self.engine, [None] * len(distinct)))
        by_task = {task.id: row for task, row in zip(distinct, scores, strict=True)}
        if empty := [name for name, row in by_task.items() if not row]:
            raise ValueError(
                f"Task {empty[0]!r} has nothing to measure: it has no questions. Give it some, or leave it out."
            )
        return [by_task[task.id] for task in tasks]
