"""`python -m sleep_trl.doctor.trial`: a night in small, with a tiny model and an engine of the kind that a run has.

Takes the options of `rollout` and `memory` as JSON, prints its findings as a line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn.functional import kl_div

from ..config import RolloutConfig
from ..distributed import ray as cluster
from ..memory import Memory, MemorySpec, attach
from ..rollout import Completion, Engine, Sampling
from ..rollout.choice import make_engine
from ..rollout.synced import SyncedEngine
from ..rollout.weights import WeightMismatch
from .finding import Finding, fault, ok
from .tiny import CONTEXT, WORDS, make_model, make_tokenizer

NEW_TOKENS = 16
LENGTHS = (2, 3, 17, 40, 140, CONTEXT - NEW_TOKENS)  # of prompts; the last one leaves just the room for its answer
TOLERANCE = 1e-3  # of log probabilities in float32; a weight that did not travel makes more than 0.1
DIFFERENT = 0.01  # nats from which on teacher and student are two
STEPS, LEARNING_RATE = 8, 1e-2
INSTEAD = "Use --rollout.engine transformers, and report this with the versions above."


@dataclass
class Trial:
    """A tiny model that learns, and what generates with its weights."""

    memory: Memory
    engine: Engine
    about: str
    expert: int

    def sample(self, prompts: Sequence[list[int]], seed: int) -> list[Completion]:
        return self.engine.generate(prompts, Sampling(NEW_TOKENS, seed=seed, logprobs=True))

    def read(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Return the trainer's log probabilities of all tokens in place of each of the answer's, `(answer, vocab)`."""
        ids = torch.tensor([[*prompt, *answer]], device=self.memory.model.device)
        logits = self.memory.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        return logits.float().log_softmax(-1)

    @torch.no_grad()
    def difference(self, prompts: Sequence[list[int]], completions: Sequence[Completion]) -> float:
        """Return by how much the log probabilities of engine and trainer differ at most."""
        return max(
            float((self.read(prompt, c.ids).cpu()[range(len(c.ids)), c.ids] - torch.tensor(c.logprobs)).abs().max())
            for prompt, c in zip(prompts, completions, strict=True)
        )


def make_trial(rollout: RolloutConfig, spec: MemorySpec) -> Trial:
    """Make a model with an expert of an earlier night and one that is to learn."""
    memory = attach(make_model(), spec)
    earlier = memory.activate()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in memory.expert_parameters(earlier):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    memory.commit()
    expert = memory.activate()
    engine, about = make_engine(rollout, memory, make_tokenizer(), len(LENGTHS))
    return Trial(memory, engine, about, expert)


def prompt_of(length: int, first: int = 0) -> list[int]:
    """Return a prompt of this many tokens, all words."""
    return [1, *(3 + (first + 7 * i * i) % WORDS for i in range(length - 1))]


PROMPTS = [prompt_of(length, length) for length in LENGTHS]


def generate(trial: Trial) -> Finding:
    """The engine writes, and its log probabilities are the trainer's."""
    completions = trial.sample(PROMPTS, seed=1)
    difference = trial.difference(PROMPTS, completions)
    told = f"{trial.about}; log probabilities of engine and trainer differ by {difference:.1e} at most"
    return ok(told) if difference <= TOLERANCE else fault(told, INSTEAD)


def hide_context(trial: Trial) -> Finding:
    """Teacher and student are one while both see the context, two once it is hidden; learning brings them closer."""
    memory, context, question = trial.memory, prompt_of(60), prompt_of(6, first=11)[1:]
    with memory.as_teacher():
        (answer,) = trial.engine.generate([context + question], Sampling(NEW_TOKENS, temperature=0.0))
        with torch.no_grad():
            taught = trial.read(context + question, answer.ids)

    def divergence(prompt: list[int]) -> torch.Tensor:
        return kl_div(trial.read(prompt, answer.ids), taught, reduction="batchmean", log_target=True)

    with torch.no_grad():
        shown, hidden = float(divergence(context + question)), float(divergence([1, *question]))
    optimizer = torch.optim.AdamW((p for p in memory.model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        divergence([1, *question]).backward()
        optimizer.step()
    with torch.no_grad():
        learnt = float(divergence([1, *question]))
    told = (
        f"they are {shown:.1e} nats apart with the context in view, {hidden:.2f} once it is hidden, and {learnt:.2f} "
        f"after {STEPS} steps"
    )
    if shown > TOLERANCE or hidden < DIFFERENT or learnt >= hidden:
        return fault(told, "Install the versions that were tested (constraints.txt), and report it if it stays.")
    return ok(told)


def update(trial: Trial) -> Finding:
    """After an expert has learnt, the engine generates with what it has learnt, and holds the trainer's weights."""
    fingerprint = trial.memory.fingerprint(trial.expert)
    if isinstance(trial.engine, SyncedEngine):
        try:
            sent = trial.engine.sync()
            trial.engine.check()
        except WeightMismatch as error:
            return fault(str(error), INSTEAD)
        told = f"{sent:,} bytes were sent, and the engine's fingerprint is the trainer's"
    else:
        told = f"the engine computes with the trainer's own weights, expert {fingerprint[:12]}"
    completions = trial.sample(PROMPTS, seed=2)
    difference = trial.difference(PROMPTS, completions)
    with trial.memory.as_teacher():  # has the weights that the engine had before
        stale = trial.difference(PROMPTS, completions)
    told = f"{told}; log probabilities differ by {difference:.1e}, with what was there before by {stale:.1e}"
    return ok(told) if difference <= TOLERANCE < stale else fault(told, INSTEAD)


def fill_context(trial: Trial) -> Finding:
    """Of a prompt that fills the context nothing is cut: its first word counts, and the answer has all its tokens."""
    prompts = [[1, 3 + first, *PROMPTS[-1][2:]] for first in (5, 300)]
    completions = trial.sample(prompts, seed=3)
    difference = trial.difference(prompts, completions)
    swapped = trial.difference(prompts[::-1], completions)
    whole = all(len(c.ids) == NEW_TOKENS or c.stop_reason == "eos" for c in completions)
    told = (
        f"{len(prompts[0])} + {NEW_TOKENS} of {CONTEXT} tokens; the first word makes a difference of {swapped:.1e}, "
        f"engine and trainer one of {difference:.1e}"
    )
    return ok(told) if whole and difference <= TOLERANCE < swapped else fault(told, INSTEAD)


PARTS: dict[str, Callable[[Trial], Finding]] = {
    "proof: generation": generate,
    "proof: teacher and student": hide_context,
    "proof: weight update": update,
    "proof: nothing truncated": fill_context,
}


def run(rollout: RolloutConfig, memory: dict[str, Any]) -> Iterator[Finding]:
    """Make the trial, and yield what each of its parts finds."""
    trial = make_trial(rollout, MemorySpec(width=16, max_experts=3, **memory))
    for name, part in PARTS.items():
        yield replace(part(trial), name=name)
    trial.engine.close()


def main(given: str) -> None:
    asked = json.loads(given)
    rollout = RolloutConfig.model_validate(asked["rollout"])
    if rollout.engine == "ray" and rollout.ray_address is None:
        cluster.prepare()
    with redirect_stdout(sys.stderr):
        from trl import GRPOTrainer  # noqa: F401  (what a night trains with has to come along)

        findings = [asdict(finding) for finding in run(rollout, asked["memory"])]
    sys.stdout.write(json.dumps(findings) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
