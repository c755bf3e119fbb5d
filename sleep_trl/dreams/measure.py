"""τ, the measure of a task: what a model that learned a dream is asked, and how its replies are scored (method 3.4).

A measure gives each task a list of scores, one per item (a question, a piece of text), always of the same items in the
same order, so that scores before and after can be paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..data.prompts import Prompter
from ..data.templates import Template
from ..evaluation.recall import METRICS, QAItem
from ..rollout.stopping import first_stop
from .gradients import Text

HELDOUT = "heldout"
"""Key of a memory's text that the dreamer does not see, for the measure `heldout_loss`."""


@dataclass(frozen=True)
class Task:
    """A context to dream about, and what is measured afterwards.

    Args:
        id (`str`):
            Unique among the tasks of a run.
        context (`str`):
            Text that the dreamer sees.
        questions (`tuple[QAItem, ...]`, *optional*):
            Questions for the measures `qa` and, once the model has written them, `quiz`.
        heldout (`str`, *optional*):
            Text that the dreamer does not see, for the measure `heldout_loss`.
    """

    id: str
    context: str
    questions: tuple[QAItem, ...] = ()
    heldout: str | None = None


class Answerer(Protocol):
    """One model, or several in shared batches: row i of a call is answered by the model `owners[i]`."""

    def answer(self, prompts: Sequence[list[int]], owners: Sequence[int], max_new_tokens: int) -> list[str]:
        """Reply to prompts (token ids) by greedy decoding."""
        ...

    def token_losses(self, texts: Sequence[Text], owners: Sequence[int]) -> list[list[float]]:
        """Return the loss, in nats, of each token that counts, in the order of the texts."""
        ...


Judge = Callable[[list[str], list[str], list[str]], Sequence[float]]
"""Whether replies mean the same as accepted answers, each after its question: 1 or 0."""


class Measure(Protocol):
    """Scores tasks, task i with the model of owner i."""

    def __call__(self, tasks: Sequence[Task], answerer: Answerer) -> list[list[float]]: ...


class Questions:
    """Ask a task's questions without its context, by greedy decoding: the measures `qa` and `quiz`.

    Args:
        prompter (`Prompter`):
            Makes the prompts, by the `question_answer` template.
        metric (`str` or `Callable`, *optional*, defaults to `"exact"`):
            `"exact"`, `"contains"`, `"f1"`, or a function of a reply and its accepted answers that returns a score in
            [0, 1].
        max_new_tokens (`int`, *optional*, defaults to `32`):
            Longest reply, in tokens.
        judge (`Callable`, *optional*):
            Scores replies in place of the metric: a judge of meaning, see `sleep_trl.rewards.judges`. A reply is as
            good as the accepted answer that it matches best.
    """

    def __init__(
        self,
        prompter: Prompter,
        metric: str | Callable[[str, list[str]], float] = "exact",
        max_new_tokens: int = 32,
        judge: Judge | None = None,
    ) -> None:
        if isinstance(metric, str) and metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)} or a function, got {metric!r}.")
        self.prompter, self.max_new_tokens, self.judge = prompter, max_new_tokens, judge
        self.metric = METRICS[metric] if isinstance(metric, str) else metric

    def __call__(self, tasks: Sequence[Task], answerer: Answerer) -> list[list[float]]:
        template = Template.load("question_answer")
        asked = [(owner, item) for owner, task in enumerate(tasks) for item in task.questions]
        prompts = [self.prompter(template.respond, request=item.question) for _, item in asked]
        replies = answerer.answer([ids for ids, _, _ in prompts], [owner for owner, _ in asked], self.max_new_tokens)
        replies = [reply[: first_stop(reply, stop)] for reply, (_, _, stop) in zip(replies, prompts, strict=True)]
        scores: list[list[float]] = [[] for _ in tasks]
        for (owner, _), score in zip(asked, self._score(replies, [item for _, item in asked]), strict=True):
            scores[owner].append(score)
        return scores

    def _score(self, replies: Sequence[str], items: Sequence[QAItem]) -> list[float]:
        if self.judge is None:
            return [float(self.metric(reply, list(q.answers))) for reply, q in zip(replies, items, strict=True)]
        pairs = [(reply, q, answer) for reply, q in zip(replies, items, strict=True) for answer in q.answers]
        accepted, asked = [answer for *_, answer in pairs], [f"{q.question} " for _, q, _ in pairs]
        verdicts = iter(self.judge([reply for reply, *_ in pairs], accepted, asked))
        return [max(float(next(verdicts)) for _ in q.answers) for q in items]


class HeldoutLoss:
    """Minus the mean loss on a task's withheld text, piece by piece, in nats per token: the measure `heldout_loss`.

    Args:
        prompter (`Prompter`):
            Tokenizes the text.
        piece (`int`, *optional*, defaults to `16`):
            Tokens in an item. Neighboring tokens are not independent, so items of one token would make the interval too
            narrow.
    """

    def __init__(self, prompter: Prompter, piece: int = 16) -> None:
        if piece < 1:
            raise ValueError(f"piece must be at least 1 token, got {piece}.")
        self.prompter, self.piece = prompter, piece

    def __call__(self, tasks: Sequence[Task], answerer: Answerer) -> list[list[float]]:
        if missing := [task.id for task in tasks if not task.heldout]:
            raise ValueError(f"Task {missing[0]!r} has no withheld text, which heldout_loss measures. Give `heldout`.")
        start, _, _ = self.prompter.general()
        texts = [Text.behind(start, self.prompter.ids(str(task.heldout))) for task in tasks]
        losses = answerer.token_losses(texts, range(len(tasks)))
        return [[-sum(p) / len(p) for p in _pieces(row, self.piece)] for row in losses]


class Custom:
    """A user's measure: a function of a task and of a function that asks the model.

    Args:
        function (`Callable[[Task, Callable[[list[str]], list[str]]], list[float]]`):
            Called for each task with the task and `ask`, which takes prompts and returns greedy replies; returns one
            score per item, always of the same items in the same order.
        prompter (`Prompter`):
            Tokenizes the prompts, without a template.
        max_new_tokens (`int`, *optional*, defaults to `32`):
            Longest reply, in tokens.
    """

    def __init__(
        self,
        function: Callable[[Task, Callable[[list[str]], list[str]]], list[float]],
        prompter: Prompter,
        max_new_tokens: int = 32,
    ) -> None:
        self.function, self.prompter, self.max_new_tokens = function, prompter, max_new_tokens

    def __call__(self, tasks: Sequence[Task], answerer: Answerer) -> list[list[float]]:
        scores = []
        for owner, task in enumerate(tasks):

            def ask(prompts: list[str], owner: int = owner) -> list[str]:
                start, _, _ = self.prompter.general()
                ids = [start + self.prompter.ids(prompt) for prompt in prompts]
                return answerer.answer(ids, [owner] * len(ids), self.max_new_tokens)

            scores.append([float(score) for score in self.function(task, ask)])
        return scores


def _pieces(values: list[float], size: int) -> list[list[float]]:
    return [values[i : i + size] for i in range(0, len(values), size)]
