"""`python -m sleep_trl.doctor.smoke_test JSON`: a night in miniature, with a tiny model and the engine of a run.

Takes the options of `rollout` and `memory` as JSON, and prints its findings as a line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import PartialState
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from ..config import RolloutConfig
from ..distributed import ray as cluster
from ..memory import Memory, MemorySpec, attach
from ..rollout import Completion, Engine, Sampling
from ..rollout.choice import make_engine
from ..rollout.synced import SyncedEngine
from ..rollout.weights import WeightMismatch
from .report import Finding, fault, ok

CONTEXT = 256  # tokens; more than a block of vLLM's prefix cache
WORDS = 509
INIT_STD = 0.12  # of the weights: logits far from uniform, so that a wrong weight shows

NEW_TOKENS = 16
LENGTHS = (2, 3, 17, 40, 140, CONTEXT - NEW_TOKENS)  # of prompts; the last just leaves space for its answer
TOLERANCE = 1e-3  # of log probabilities in float32; a weight that was not sent makes a difference above 0.1
MIN_DIVERGENCE = 0.01  # nats between teacher and student once the context is hidden
STEPS, LEARNING_RATE = 8, 1e-2
REMEDY = "Use --rollout.engine transformers, and report this with the versions above."


@dataclass
class Trial:
    """A tiny model that learns, and an engine that generates with its weights."""

    memory: Memory
    engine: Engine
    engine_description: str
    expert: int

    def sample(self, prompts: Sequence[list[int]], seed: int) -> list[Completion]:
        return self.engine.generate(prompts, Sampling(NEW_TOKENS, seed=seed, logprobs=True))

    def log_probs(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Return the trainer's log probabilities of all tokens at each position of the answer, `(answer, vocab)`."""
        ids = torch.tensor([[*prompt, *answer]], device=self.memory.model.device)
        logits = self.memory.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        return logits.float().log_softmax(-1)

    @torch.no_grad()
    def difference(self, prompts: Sequence[list[int]], completions: Sequence[Completion]) -> float:
        """Return the largest difference between the log probabilities of engine and trainer."""
        return max(
            float(
                (self.log_probs(prompt, c.ids).cpu()[range(len(c.ids)), c.ids] - torch.tensor(c.logprobs)).abs().max()
            )
            for prompt, c in zip(prompts, completions, strict=True)
        )


def make_trial(rollout: RolloutConfig, spec: MemorySpec) -> Trial:
    """Make a model with the expert of an earlier night and one that is about to learn."""
    memory = attach(make_model(), spec)
    earlier = memory.activate()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in memory.expert_parameters(earlier):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    memory.commit()
    expert = memory.activate()
    engine, description = make_engine(rollout, memory, make_tokenizer(), len(LENGTHS))
    return Trial(memory, engine, description, expert)


def make_model() -> PreTrainedModel:
    """Make a tiny Llama with random weights, in float32 on this process's device."""
    config = LlamaConfig(
        vocab_size=WORDS + 3,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,  # of size 64, which every engine supports
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, INIT_STD)
    return model.to(PartialState().device).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer for the vocabulary of the model."""
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    vocabulary = {token: i for i, token in enumerate([*special.values(), *(f"w{n}" for n in range(WORDS))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", unk_token="w0", **special)


def make_prompt(length: int, first: int = 0) -> list[int]:
    """Return a prompt of this many tokens: the start token, then words."""
    return [1, *(3 + (first + 7 * i * i) % WORDS for i in range(length - 1))]


PROMPTS = [make_prompt(length, length) for length in LENGTHS]


def check_generation(trial: Trial) -> Finding:
    """The engine generates, and its log probabilities equal the trainer's."""
    completions = trial.sample(PROMPTS, seed=1)
    difference = trial.difference(PROMPTS, completions)
    message = f"{trial.engine_description}; log probabilities of engine and trainer differ by at most {difference:.1e}"
    return ok(message) if difference <= TOLERANCE else fault(message, REMEDY)


def check_teaching(trial: Trial) -> Finding:
    """Teacher and student agree while both see the context, and differ once it is hidden from the student; training
    reduces the difference."""
    memory, context, question = trial.memory, make_prompt(60), make_prompt(6, first=11)[1:]
    with memory.as_teacher():
        (answer,) = trial.engine.generate([context + question], Sampling(NEW_TOKENS, temperature=0.0))
        with torch.no_grad():
            teacher = trial.log_probs(context + question, answer.ids)

    def divergence(prompt: list[int]) -> torch.Tensor:
        return kl_div(trial.log_probs(prompt, answer.ids), teacher, reduction="batchmean", log_target=True)

    with torch.no_grad():
        shown, hidden = float(divergence(context + question)), float(divergence([1, *question]))
    optimizer = torch.optim.AdamW((p for p in memory.model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        divergence([1, *question]).backward()
        optimizer.step()
    with torch.no_grad():
        trained = float(divergence([1, *question]))
    message = (
        f"their divergence is {shown:.1e} nats with the context in view, {hidden:.2f} once it is hidden, and "
        f"{trained:.2f} after {STEPS} steps"
    )
    if shown > TOLERANCE or hidden < MIN_DIVERGENCE or trained >= hidden:
        return fault(message, "Install the tested versions (constraints.txt). If this stays, please report it.")
    return ok(message)


def check_weight_update(trial: Trial) -> Finding:
    """Once an expert has been trained, the engine has the trainer's weights and generates with them."""
    fingerprint = trial.memory.fingerprint(trial.expert)
    if isinstance(trial.engine, SyncedEngine):
        try:
            sent = trial.engine.sync()
            trial.engine.check()
        except WeightMismatch as error:
            return fault(str(error), REMEDY)
        weights = f"{sent:,} bytes were sent, and the fingerprints of engine and trainer are equal"
    else:
        weights = f"the engine uses the trainer's own weights, expert {fingerprint[:12]}"
    completions = trial.sample(PROMPTS, seed=2)
    difference = trial.difference(PROMPTS, completions)
    with trial.memory.as_teacher():  # has the weights that the engine had before
        stale = trial.difference(PROMPTS, completions)
    message = f"{weights}; log probabilities differ by {difference:.1e}, and by {stale:.1e} with the former weights"
    return ok(message) if difference <= TOLERANCE < stale else fault(message, REMEDY)


def check_truncation(trial: Trial) -> Finding:
    """Nothing of a prompt that fills the context is cut: its first word matters, and the answer has all its tokens."""
    prompts = [[1, 3 + first, *PROMPTS[-1][2:]] for first in (5, 300)]
    completions = trial.sample(prompts, seed=3)
    difference = trial.difference(prompts, completions)
    swapped = trial.difference(prompts[::-1], completions)
    is_complete = all(len(c.ids) == NEW_TOKENS or c.stop_reason == "eos" for c in completions)
    message = (
        f"{len(prompts[0])} + {NEW_TOKENS} of {CONTEXT} tokens; log probabilities differ by {swapped:.1e} with another "
        f"first word, and by {difference:.1e} between engine and trainer"
    )
    return ok(message) if is_complete and difference <= TOLERANCE < swapped else fault(message, REMEDY)


CHECKS: dict[str, Callable[[Trial], Finding]] = {
    "smoke test: generation": check_generation,
    "smoke test: teacher and student": check_teaching,
    "smoke test: weight update": check_weight_update,
    "smoke test: nothing truncated": check_truncation,
}


def run(rollout: RolloutConfig, memory: dict[str, Any]) -> Iterator[Finding]:
    """Run all checks on one trial, in order: the later ones need the training of the earlier ones."""
    trial = make_trial(rollout, MemorySpec(width=16, max_experts=3, **memory))
    for name, check in CHECKS.items():
        yield replace(check(trial), name=name)
    trial.engine.close()


def main(argument: str) -> None:
    options = json.loads(argument)
    rollout = RolloutConfig.model_validate(options["rollout"])
    if rollout.engine == "ray" and rollout.ray_address is None:
        cluster.prepare()
    with redirect_stdout(sys.stderr):
        from trl import GRPOTrainer  # noqa: F401  (a night trains with it, so it must import)

        findings = [asdict(finding) for finding in run(rollout, options["memory"])]
    sys.stdout.write(json.dumps(findings) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
