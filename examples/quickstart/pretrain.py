"""Pretrain the quickstart's model from nothing: a small Llama that can read, and knows nothing.

    python examples/quickstart/pretrain.py --help

First drills until the model copies, then lessons of few and short facts, then of up to eight. A stage ends when the
model gets its answers right, so the numbers of steps below are only the outer limits.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lessons import Batch, Speller, Weights, drill_batch, lesson_batch
from muon import Muon
from reading import read_accuracy, report
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

CONSOLE = Console()


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum; it ends when the share of right answer tokens passes `until`."""

    name: str
    until: float
    facts: tuple[int, ...] = ()  # empty: drills only
    plain: float = 0.0  # share of the lessons without quirks
    drills: float = 0.0  # share of the steps that are drills
    untold: float = 0.0  # share of the sequences without a passage
    shares: dict[str, float] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)


FEW_FORMS = {"forward": 0.7, "paraphrase": 0.2, "restatement": 0.1}
ALL_FORMS = {"forward": 0.45, "paraphrase": 0.2, "reversed": 0.2, "restatement": 0.15}
STAGES = (
    Stage("drills", until=0.85),
    Stage("1 to 3 facts", 0.9, (1, 2, 3, 3), plain=1.0, drills=0.25, shares=FEW_FORMS),
    Stage("3 to 5 facts", 0.9, (3, 4, 5), plain=0.5, drills=0.1, shares=ALL_FORMS),
    Stage("up to 8 facts", 2.0, (1, 2, 3, 4, 5, 6, 6, 7, 8, 8), untold=0.03, shares=ALL_FORMS),
)


class Curriculum:
    """Draws batches and moves on to the next stage when the answers are right."""

    def __init__(self, seed: int, speller: Speller, tokens: int) -> None:
        self.rng = random.Random(seed)
        self.speller = speller
        self.tokens = tokens
        self.number = 0
        self.right = 0.0

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return STAGES[self.number]

    def batch(self) -> tuple[Batch, bool]:
        """Draw a batch; the second value says whether it is a lesson."""
        stage, rng = self.stage, self.rng
        if not stage.facts or rng.random() < stage.drills:
            return drill_batch(rng, self.speller, self.tokens // 85), not stage.facts
        facts, plain = rng.choice(stage.facts), rng.random() < stage.plain
        batch = lesson_batch(
            rng, self.speller, facts, self.tokens, stage.shares, stage.weights, stage.untold, plain
        )
        return batch, facts == max(stage.facts)  # only the hardest lessons count for moving on

    def observe(self, right: float) -> bool:
        """Take note of a step's share of right answer tokens; True if a new stage begins."""
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


def schedule(step: int, steps: int, warmup: int = 50, decay: float = 0.5) -> float:
    """The learning rate's factor: warm-up, then constant, then a cosine over the last part."""
    start = int(steps * (1 - decay))
    if step < warmup:
        return (step + 1) / warmup
    if step < start:
        return 1.0
    return 0.02 + 0.98 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start))) / 2


def save(model: LlamaForCausalLM, speller: Speller, output: Path) -> None:
    """Write model and tokenizer."""
    model.save_pretrained(output)
    speller.tokenizer.save_pretrained(output)


def train(arguments: argparse.Namespace) -> LlamaForCausalLM:
    """Train, print the accuracy now and then, and keep the best model on disk."""
    speller = Speller()
    model = build_model(speller, arguments.seed)
    CONSOLE.print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    tuners = optimizers(model, arguments.rate)
    rates = [tuner.param_groups[0]["lr"] for tuner in tuners]
    curriculum = Curriculum(arguments.seed, speller, arguments.tokens)
    best, started = 0.9, time.time()
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE) as progress:
        task = progress.add_task("", total=arguments.steps)
        for step in range(arguments.steps):
            for tuner, rate in zip(tuners, rates, strict=True):
                tuner.param_groups[0]["lr"] = rate * schedule(step, arguments.steps)
            batch, counts = curriculum.batch()
            loss, right = weighted_loss(model(input_ids=batch.ids, use_cache=False).logits, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for tuner in tuners:
                tuner.step()
                tuner.zero_grad()
            if counts and curriculum.observe(right):
                CONSOLE.print(f"step {step}: {curriculum.stage.name}")
            progress.update(
                task,
                advance=1,
                description=f"{curriculum.stage.name}: loss {loss.item():.3f}, right {curriculum.right:.2f}",
            )
            if (step + 1) % arguments.every == 0:
                read = read_accuracy(model, speller, facts=6, passages=40, seed=step)
                CONSOLE.print(
                    f"step {step + 1}, {time.time() - started:.0f} s, {curriculum.stage.name}, "
                    f"loss {loss.item():.3f}, right {curriculum.right:.3f}; of 6 facts: "
                    + ", ".join(f"{form} {share:.3f}" for form, share in read.items())
                )
                if read["forward"] >= best:
                    best = read["forward"]
                    save(model, speller, arguments.output)
    save(model, speller, arguments.output)
    CONSOLE.print(f"Trained for {time.time() - started:.0f} s")
    return model


def main() -> None:
    """Pretrain, save and measure."""
    parser = argparse.ArgumentParser(description="Pretrain the quickstart's model from nothing.")
    here = Path(__file__).parent
    parser.add_argument("--output", type=Path, default=here / "model", help="folder of the model")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps")
    parser.add_argument("--tokens", type=int, default=6000, help="tokens a step, roughly")
    parser.add_argument("--rate", type=float, default=0.02, help="Muon's learning rate; Adam's is a fifth")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and lessons")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--every", type=int, default=100, help="steps between two measurements")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report(train(arguments), Speller(), CONSOLE)


if __name__ == "__main__":
    main()
