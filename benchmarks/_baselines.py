"""The baselines of `ten_nights.py`: one model that keeps learning, night after night, with the cross-entropy loss.

Every night has those rows of a Sleep night that are about its memories: requests and answers that the pretrained model
wrote with the text in its context, so that a model that has forgotten how to read does not get worse data. The number
of steps, the rows per step, the schedule and the evaluation are Sleep's.

    sft            all weights
    replay         all weights; every step has Sleep's shares of general samples and of earlier nights' rows
    lora           LoRA on every linear map (PEFT), merged into the weights at the end of each night
    ewc            all weights, regularized by elastic weight consolidation
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from sleep_trl.config import RunConfig
from sleep_trl.data.fit import sentence_size
from sleep_trl.data.prompts import Prompter
from sleep_trl.data.rows import build_rows
from sleep_trl.data.samples import Sample, write_general
from sleep_trl.data.sources import read_memories, read_skill
from sleep_trl.data.templates import Template
from sleep_trl.data.writing import Writing, tasks_of, write_about
from sleep_trl.evaluation.recall import QAItem, ask
from sleep_trl.models.loading import load_model, load_tokenizer
from sleep_trl.night.generate_data import agree_by_words
from sleep_trl.planning.inputs import SEEDS_APART, RunInputs
from sleep_trl.rollout import TransformersEngine
from sleep_trl.runs.files import read_json, write_json

Rows = list[dict[str, Any]]
Penalty = Callable[[PreTrainedModel], torch.Tensor]


@dataclass(frozen=True)
class Baseline:
    """How a baseline learns.

    Args:
        learning_rate (`float`): peak learning rate of AdamW; schedule and warm-up are Sleep's.
        has_replay (`bool`): whether general samples and earlier nights' rows are replayed.
        lora_rank (`int`): rank of the LoRA; 0 trains all weights.
        ewc_lambda (`float`): weight of EWC's penalty; 0 for none.
    """

    learning_rate: float
    has_replay: bool = False
    lora_rank: int = 0
    ewc_lambda: float = 0.0


BASELINES = {
    "sft": Baseline(learning_rate=1e-3),
    "replay": Baseline(learning_rate=1e-3, has_replay=True),
    "lora": Baseline(learning_rate=3e-3, lora_rank=32),
    "ewc": Baseline(learning_rate=1e-3, ewc_lambda=1e5),  # the best of 1e4, 1e5, 3e5 and 1e6 after five nights
}


# -- a chain ----------------------------------------------------------------------------------------------------------


def live(
    baseline: Baseline, config: RunConfig, memories: Sequence[Path], folder: Path, data: Path
) -> list[dict[str, Any]]:
    """Let a baseline learn night after night, or continue where it stopped.

    Args:
        baseline (`Baseline`):
            How it learns.
        config (`RunConfig`):
            The configuration of a Sleep night: model, data set, steps, evaluation.
        memories (`Sequence[Path]`):
            Files of memories, one per night.
        folder (`Path`):
            Folder for the scores and weights of every night.
        data (`Path`):
            Folder for the teacher's samples of every night, shared by all baselines of a seed.

    Returns:
        `list[dict]`: one item per night, with the `recall` of the nights so far and `skill`; the first item is before
        any night.

    Raises:
        `ValueError`: if the configuration has no `seeding.steps`.
    """
    if config.seeding.steps is None:
        raise ValueError("Baselines learn in as many steps as a night: give the configuration seeding.steps.")
    tokenizer = load_tokenizer(config)
    written = [write_night(config, path, data / f"{path.stem}.json") for path in memories]
    scores = []
    for number in range(len(memories) + 1):
        here, before = folder / f"night-{number:03}", folder / f"night-{number - 1:03}"
        if not (here / "scores.json").exists():
            weights = str(before / "model") if number > 1 else config.model
            model = load_model(config.model_copy(update={"model": weights}))
            importance = Importance.load(before / "ewc.safetensors", model) if baseline.ewc_lambda and number else None
            if number:
                samples, earlier = written[number - 1], [s for night in written[: number - 1] for s in night]
                rows = night_rows(config, tokenizer, samples, earlier if baseline.has_replay else None)
                model = train(baseline, config, model, rows, importance)
            if baseline.ewc_lambda:
                learned = [s for s in written[max(0, number - 1)] if s.part == ("memory" if number else "general")]
                importance = Importance.measure(model, learned, importance)
                importance.save(here / "ewc.safetensors")
            model.save_pretrained(here / "model")
            write_json(here / "scores.json", evaluate(config, model, tokenizer, memories[:number]))
            if number > 1:
                shutil.rmtree(before / "model")
        scores.append(read_json(here / "scores.json"))
    return scores


def evaluate(
    config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memories: Sequence[Path]
) -> dict[str, Any]:
    """Ask the questions of all nights so far without context, and the skill probe, as a Sleep night does."""
    engine = TransformersEngine(model, tokenizer, config.evaluation.batch_size)
    prompter = Prompter(tokenizer, config.chat_template_kwargs)

    def score(items: Sequence[QAItem], with_context: bool) -> float | None:
        settings = config.evaluation
        return ask(
            items,
            engine,
            prompter,
            with_context=with_context,
            metric=settings.metric,
            max_new_tokens=settings.max_new_tokens,
        )

    asked = [
        [QAItem(q.question, q.answers) for m in read_memories(str(path)) for q in m.questions] for path in memories
    ]
    assert config.evaluation.skill is not None
    probe = [QAItem(q.question, q.answers, m.text) for m in read_skill(config.evaluation.skill) for q in m.questions]
    return {"recall": [score(items, False) for items in asked], "skill": score(probe, True)}


# -- data -------------------------------------------------------------------------------------------------------------


def write_night(config: RunConfig, memories: Path, file: Path) -> list[Sample]:
    """Let the pretrained model write samples about a night's memories and general samples, as in a first night."""
    if not file.exists():
        inputs = RunInputs(config.model_copy(update={"memories": str(memories)}))
        model, tokenizer, data = load_model(config), load_tokenizer(config), config.dataset
        engine = TransformersEngine(model, tokenizer, config.evaluation.batch_size)
        prompter = Prompter(tokenizer, config.chat_template_kwargs)
        samples = []
        for number, template in enumerate(map(Template.load, data.templates)):
            writing = Writing(
                data.max_new_tokens,
                data.ask_temperature,
                data.temperature,
                data.top_p,
                seed=config.seed + 1 + SEEDS_APART * number,
                sentence_tokens=sentence_size(inputs.context),
            )
            tasks = [
                task
                for window, count in zip(inputs.reading, inputs.sample_counts[number], strict=True)
                for task in tasks_of(window, count, template, data.cues_per_sentence)
            ]
            agree = agree_by_words if data.check_answers else None
            tries = data.tries_per_sample
            samples += write_about(tasks, template, engine, prompter, writing, agree=agree, tries=tries).samples
        texts = [m.text for m in read_memories(str(data.general_texts))] if data.general_texts else []
        length, seed = data.general_max_new_tokens, config.seed + 101
        samples += write_general(engine, prompter, data.general_samples, length, seed, texts).samples
        write_json(file, [asdict(sample) for sample in samples])
    return [Sample(**row) for row in read_json(file)]


def night_rows(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, samples: list[Sample], earlier: list[Sample] | None
) -> Rows:
    """Lay out the rows of a night in training order; if `earlier` is given (it may be empty), with self-replay."""
    data, seeding = config.dataset, config.seeding
    shares: dict[Any, float] = {}
    if earlier is not None:
        shares = {"general": data.general_share, "earlier": data.earlier_share}
        samples = samples + [replace(s, part="earlier") for s in earlier if s.part == "memory"]
    return build_rows(
        samples,
        tokenizer,
        steps=seeding.steps,
        per_step=seeding.prompts_per_step,
        shares=shares,
        prefix_share=data.prefix_share,
        max_completion=seeding.max_completion_length,
        seed=config.seed,
    )


# -- training ---------------------------------------------------------------------------------------------------------


def train(
    baseline: Baseline, config: RunConfig, model: PreTrainedModel, rows: Rows, importance: Importance | None
) -> PreTrainedModel:
    """Train a model on the rows of a night, and return it without adapters."""
    seeding = config.seeding
    torch.manual_seed(config.seed)
    learner: Any = model
    if baseline.lora_rank:
        from peft import LoraConfig, get_peft_model

        targets = "all-linear"
        learner = get_peft_model(
            model, LoraConfig(r=baseline.lora_rank, lora_alpha=baseline.lora_rank, target_modules=targets)
        )
    learner.train()
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], baseline.learning_rate)
    schedule = get_scheduler(seeding.lr_scheduler_type, optimizer, seeding.warmup_steps, seeding.steps)
    for batch in batches(rows, seeding.prompts_per_step):
        loss = reference_loss(learner, batch)
        if importance is not None:
            loss = loss + baseline.ewc_lambda / 2 * importance.penalty(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), seeding.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    trained: PreTrainedModel = learner.merge_and_unload() if baseline.lora_rank else model
    return trained.eval()


def batches(rows: Rows, size: int) -> Iterator[Rows]:
    """Yield the rows of each step."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def reference_loss(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Return the mean cross-entropy of the references' tokens after their prompts."""
    sequences = [row["prompt_ids"] + row["reference_ids"] for row in rows]
    length = max(map(len, sequences))
    ids = torch.zeros(len(rows), length, dtype=torch.long)  # (rows, length)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
        labels[i, len(row["prompt_ids"]) : len(sequence)] = ids[i, len(row["prompt_ids"]) : len(sequence)]
    logits = model(input_ids=ids, attention_mask=mask).logits  # (rows, length, vocabulary)
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class Importance:
    """Elastic weight consolidation (Kirkpatrick et al., 2017, arXiv 1612.00796), with a single anchor and a sum of
    diagonal Fisher matrices (online EWC: Schwarz et al., 2018, arXiv 1805.06370, without decay).

    Args:
        anchor (`dict[str, Tensor]`): weights after the last night.
        fisher (`dict[str, Tensor]`): importance of each of them.
    """

    def __init__(self, anchor: dict[str, torch.Tensor], fisher: dict[str, torch.Tensor]) -> None:
        self.anchor, self.fisher = anchor, fisher

    @staticmethod
    def measure(model: PreTrainedModel, samples: Sequence[Sample], earlier: Importance | None) -> Importance:
        """Measure importance on samples (mean squared gradient), and add the earlier importance."""
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        fisher = {name: torch.zeros_like(p) for name, p in named.items()}
        for sample in samples:
            model.zero_grad()
            reference_loss(model, [asdict(sample)]).backward()
            for name, p in named.items():
                if p.grad is not None:
                    fisher[name] += p.grad.square() / len(samples)
        model.zero_grad()
        if earlier is not None:
            fisher = {name: value + earlier.fisher[name] for name, value in fisher.items()}
        return Importance({name: p.detach().clone() for name, p in named.items()}, fisher)

    def penalty(self, model: PreTrainedModel) -> torch.Tensor:
        """Return the sum of squared distances from the anchor, weighted by importance."""
        named = dict(model.named_parameters())
        return torch.stack(
            [(f * (named[name] - self.anchor[name]).square()).sum() for name, f in self.fisher.items()]
        ).sum()

    def save(self, file: Path) -> None:
        """Write anchor and importance."""
        file.parent.mkdir(parents=True, exist_ok=True)
        parts = {"anchor": self.anchor, "fisher": self.fisher}
        save_file({f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}, file)

    @staticmethod
    def load(file: Path, model: PreTrainedModel) -> Importance:
        """Read what [`save`] wrote."""
        tensors = load_file(file, device=str(model.device))
        parts = [
            {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{part}.")}
            for part in ("anchor", "fisher")
        ]
        return Importance(*parts)
