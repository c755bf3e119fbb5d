"""Pretrain the quickstart's model from scratch: a small Llama that can read and knows no facts.

    python examples/pretrain_tiny/pretrain.py --help

First strings until the model copies, then pairs of names until it finds one name by the other, then lessons with few
and short facts, then with up to eight. Each stage but the last ends when the model answers correctly.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lessons import Batch, Speller, Weights, drill_batch, lesson_batch, pair_batch
from muon import Muon
from reading import read_accuracy, report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

CONSOLE = Console()
QUICKSTART = Path(__file__).parents[1] / "quickstart"


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum. It ends when the share of correct answer tokens exceeds `until`."""

    name: str
    until: float
    facts: tuple[int, ...] = ()  # empty: strings only
    plain: float = 0.0  # share of the lessons without quirks
    drills: float = 0.0  # share of the steps that are strings
    pairs: float = 0.0  # share of the steps that are drills of pairs
    without_passage: float = 0.0  # share of the sequences without a passage
    shares: dict[str, float] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)


FEW_FORMS = {"forward": 0.7, "paraphrase": 0.2, "restatement": 0.1}
ALL_FORMS = {"forward": 0.45, "paraphrase": 0.2, "reversed": 0.2, "restatement": 0.15}
STAGES = (
    Stage("strings", until=0.75),
    Stage("pairs", 0.9, (1, 2, 3), plain=1.0, drills=0.05, pairs=0.7, shares=FEW_FORMS),
    Stage("1 to 3 facts", 0.9, (1, 2, 3, 3), plain=1.0, pairs=0.2, shares=FEW_FORMS),
    Stage("3 to 5 facts", 0.9, (3, 4, 5), plain=0.5, pairs=0.1, shares=ALL_FORMS),
    Stage(
        "up to 8 facts",
        2.0,
        (1, 2, 3, 4, 5, 6, 6, 7, 8, 8),
        without_passage=0.03,
        shares=ALL_FORMS,
        weights=Weights(passage=0.1, question=0.5, restatement=0.7),
    ),
)


class Curriculum:
    """Draws batches and moves to the next stage when the answers are correct."""

    def __init__(self, seed: int, speller: Speller, tokens: int) -> None:
        self.rng = random.Random(seed)
        self.speller = speller
        self.tokens = tokens
        self.number = 0
        self.right = 0.0

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return STAGES[self.number]

    def batch(self) -> tuple[Batch, bool]:
        """Draw a batch, and return whether its accuracy counts for the stage."""
        stage, rng = self.stage, self.rng
        if not stage.facts or rng.random() < stage.drills:
            return drill_batch(rng, self.speller, self.tokens // 120), not stage.facts
        if rng.random() < stage.pairs:
            return pair_batch(rng, self.speller, self.tokens), stage.pairs > 0.5
        facts, plain = rng.choice(stage.facts), rng.random() < stage.plain
        batch = lesson_batch(
            rng, self.speller, facts, self.tokens, stage.shares, stage.weights, stage.without_passage, plain
        )
        return batch, facts == max(stage.facts) and stage.pairs <= 0.5  # only the hardest lessons count for moving on

    def observe(self, right: float) -> bool:
        """Record a step's share of correct answer tokens; return True if a new stage begins."""
        self.right += 0.1 * (right - self.right)
        if self.right < self.stage.until:
            return False
        self.number += 1
        self.right = 0.0
        return True


def build_model(speller: Speller, seed: int) -> LlamaForCausalLM:
    """Build the untrained model."""
    torch.manual_seed(seed)
    tokenizer = speller.tokenizer
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=0.05,
        tie_word_embeddings=True,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model


def weighted_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """Compute the weighted cross-entropy and the share of right tokens among those of weight 1.

    Args:
        logits: (batch, length, vocabulary)
        batch: What was read.
    """
    counted = batch.weights[:, 1:] > 0  # (batch, length - 1)
    picked = logits[:, :-1][counted]  # (tokens, vocabulary)
    targets, weights = batch.ids[:, 1:][counted], batch.weights[:, 1:][counted]
    losses = functional.cross_entropy(picked, targets, reduction="none")
    answers = weights == 1
    right = (picked[answers].argmax(-1) == targets[answers]).float().mean().item()
    return (losses * weights).sum() / weights.sum(), right


def optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, Adam for embeddings and norms."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        Muon(inner, lr=rate, weight_decay=0.01),
        torch.optim.Adam(outer, lr=rate / 5, betas=(0.9, 0.98)),
    ]


def schedule(step: int, last: int | None, steps: int, warmup: int = 50) -> float:
    """The learning rate's factor: warm-up, constant, and a cosine over the second half of the last stage.

    Args:
        step: Current step.
        last: Step at which the last stage began; None before it.
        steps: Length of the last stage.
        warmup: Length of the warm-up.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = 0.0 if last is None else (step - last) / steps
    return 1.0 if done < 0.5 else 0.02 + 0.98 * (1 + math.cos(math.pi * (2 * done - 1))) / 2


def save(model: LlamaForCausalLM, speller: Speller, output: Path) -> None:
    """Write model and tokenizer."""
    model.save_pretrained(output)
    speller.tokenizer.save_pretrained(output)


class Training:
    """A run from untrained weights to the last step of the last stage."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.speller = Speller()
        self.model = build_model(self.speller, arguments.seed)
        self.tuners = optimizers(self.model, arguments.rate)
        self.rates = [tuner.param_groups[0]["lr"] for tuner in self.tuners]
        self.curriculum = Curriculum(arguments.seed, self.speller, arguments.tokens)
        self.step = 0
        self.stage_began = 0
        self.best = 0.9  # nothing worse is saved before the end
        self.started = time.time()

    def run(self) -> LlamaForCausalLM:
        """Train through all stages.

        Raises:
            RuntimeError: If a stage is not learned within its limit.
        """
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=CONSOLE) as progress:
            while not self._is_over():
                number = self.curriculum.number
                task = progress.add_task(self.curriculum.stage.name, total=self._limit())
                while self.curriculum.number == number and not self._is_over():
                    text = f"{self.curriculum.stage.name}: right {self.curriculum.right:.2f}"
                    self._learn()
                    progress.update(task, advance=1, description=text)
        save(self.model, self.speller, self.arguments.output)
        CONSOLE.print(f"Trained {self.step} steps in {time.time() - self.started:.0f} s")
        return self.model

    def _is_last(self) -> bool:
        return self.curriculum.number == len(STAGES) - 1

    def _limit(self) -> int:
        return self.arguments.steps if self._is_last() else self.arguments.limit

    def _is_over(self) -> bool:
        return self._is_last() and self.step - self.stage_began >= self.arguments.steps

    def _learn(self) -> None:
        """Take one step, measure every few steps, and raise if a stage takes too long."""
        last = self.stage_began if self._is_last() else None
        factor = schedule(self.step, last, self.arguments.steps)
        for tuner, rate in zip(self.tuners, self.rates, strict=True):
            tuner.param_groups[0]["lr"] = rate * factor
        batch, counts = self.curriculum.batch()
        loss, right = weighted_loss(self.model(input_ids=batch.ids, use_cache=False).logits, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for tuner in self.tuners:
            tuner.step()
            tuner.zero_grad()
        self.step += 1
        if self.step % self.arguments.every == 0:
            self._measure()
        if counts and self.curriculum.observe(right):
            self.stage_began = self.step
        elif not self._is_last() and self.step - self.stage_began >= self.arguments.limit:
            raise RuntimeError(
                f"Stage {self.curriculum.stage.name!r} is not learned after {self.arguments.limit} steps. "
                "Try another --seed or a higher --limit."
            )

    def _note(self, text: str) -> None:
        CONSOLE.print(f"step {self.step}, {time.time() - self.started:.0f} s: {text}")

    def _measure(self) -> None:
        """Print the accuracy, and save the model if it is the best so far."""
        read = read_accuracy(self.model, self.speller, facts=6, passages=20, seed=self.step)
        shares = ", ".join(f"{form} {share:.3f}" for form, share in read.items())
        self._note(f"{self.curriculum.stage.name}, right {self.curriculum.right:.3f}; of 6 facts: {shares}")
        if read["forward"] >= self.best:
            self.best = read["forward"]
            save(self.model, self.speller, self.arguments.output)


def main() -> None:
    """Pretrain, save and measure."""
    parser = argparse.ArgumentParser(description="Pretrain the quickstart's model from scratch.")
    parser.add_argument("--output", type=Path, default=QUICKSTART / "model", help="folder of the model")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the last stage")
    parser.add_argument("--limit", type=int, default=1500, help="most steps of an earlier stage")
    parser.add_argument("--tokens", type=int, default=4500, help="approximate number of tokens per step")
    parser.add_argument("--rate", type=float, default=0.02, help="Muon's learning rate; Adam's is a fifth")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and lessons")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--every", type=int, default=100, help="steps between two measurements")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report(Training(arguments).run(), Speller(), CONSOLE)


if __name__ == "__main__":
    main()
