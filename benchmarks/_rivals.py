"""What Sleep is compared with in `real_night.py`: the same model with a LoRA of rank 32, trained by TRL. Where not said
otherwise by `SFTTrainer`, with cross-entropy on what the night's teacher wrote.

    lora           the samples about the memories
    lora_replay    these and the night's general samples, in Sleep's shares
    lora_text      the documents themselves, as plain text
    sdft           by `SDFTTrainer`, on its own answers to the samples' prompts; the teacher sees the document

A step has as many rows as a step of Sleep has prompts, the schedule and the gradient's limit are Sleep's, and the
learning rate is each rival's own. Every model takes the same `Exam`, asked by the product's own functions.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from sleep_trl.data.rows import build_rows
from sleep_trl.data.samples import Sample
from sleep_trl.data.templates import Template
from sleep_trl.evaluation.perplexity import mean_loss
from sleep_trl.evaluation.probes import perplexity_probe, reading_probe
from sleep_trl.evaluation.recall import QAItem, ask, window_with_answer
from sleep_trl.memory import load_memory
from sleep_trl.memory.hosts import find_hosts
from sleep_trl.models.loading import load_model
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.rollout import TransformersEngine

RANK = 32
TIMED_STEPS = 5

Grade = dict[str, Any]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Rival:
    """How a rival learns.

    Args:
        learning_rate (`float`): peak learning rate of AdamW.
        has_replay (`bool`): whether general samples are replayed.
        reads_texts (`bool`): whether it reads the documents in place of the samples.
        is_on_policy (`bool`): whether it learns by self-distillation from its own answers, and not from the samples.
    """

    learning_rate: float
    has_replay: bool = False
    reads_texts: bool = False
    is_on_policy: bool = False


# Not tuned yet: that takes --split choose --learning-rates 3e-4 1e-3 3e-3.
RIVALS = {
    "lora": Rival(1e-3),
    "lora_replay": Rival(1e-3, has_replay=True),
    "lora_text": Rival(1e-3, reads_texts=True),
    "sdft": Rival(1e-3, is_on_policy=True),
}


# -- the exam ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exam:
    """The questions and texts that every model is measured with.

    Args:
        inputs (`RunInputs`): of the night, for its prompts and settings.
        plain (`list[QAItem]`): the documents' questions.
        other_words (`list[QAItem]`): the same in other words.
        reading (`list[QAItem]`): the night's reading questions, asked with the passage.
        prose (`list[list[int]]`): the night's texts for the perplexity, as windows of tokens.
    """

    inputs: RunInputs
    plain: list[QAItem]
    other_words: list[QAItem]
    reading: list[QAItem]
    prose: list[list[int]]

    @staticmethod
    def of(inputs: RunInputs, documents: Sequence[dict[str, Any]], most: int | None = None) -> Exam:
        """Make the exam of a night about documents. The base skill is measured as in the night, by at most `most`
        questions and texts, or none where the model cannot read them."""
        contexts = inputs.contexts_of(inputs.memories)
        plain, other = (
            [
                QAItem(q["question"], answers, window_with_answer(texts, answers))
                for row in documents
                for texts in [contexts.get(row.get("id"), [row["text"]])]
                for q in row[key]
                for answers in [tuple(q["answers"])]
            ]
            for key in ("questions", "other_words")
        )
        reading = reading_probe(
            inputs.skill,
            "",
            inputs.prompter,
            inputs.largest_window,
            inputs.config.evaluation.max_questions,
            inputs.config.seed,
        )
        prose = perplexity_probe(inputs.prose, "", inputs.tokenizer, inputs.context)
        return Exam(inputs, plain, other, reading.items[:most], prose.items[:most])

    @cached_property
    def base(self) -> Any:
        """The model before the night."""
        return load_model(self.inputs.config)

    def grade(self, model: Any) -> Grade:
        """Return a model's recall (`after`), its recall in `other_words`, the mean loss of a token of the answers to
        both in nats (`answer_loss`, finer than recall), its `reading`, and its `perplexity`."""
        loss = mean_loss(model, self.prose)
        return {
            "after": self._score(model, self.plain, False),
            "other_words": self._score(model, self.other_words, False),
            "answer_loss": self.answer_loss(model),
            "reading": self._score(model, self.reading, True),
            "perplexity": None if loss is None else math.exp(loss),
        }

    def _score(self, model: Any, items: list[QAItem], with_context: bool) -> float | None:
        config = self.inputs.config
        return ask(
            items,
            TransformersEngine(model, self.inputs.tokenizer, config.evaluation.batch_size),
            self.inputs.prompter,
            with_context=with_context,
            metric=config.evaluation.metric,
            max_new_tokens=config.evaluation.max_new_tokens,
        )

    @torch.no_grad()
    def answer_loss(self, model: Any) -> float:
        """Return the mean loss of a token of the first accepted answers, asked without the text."""
        template, total, count = Template.load("question_answer"), 0.0, 0
        for item in (*self.plain, *self.other_words):
            prompt = self.inputs.prompter.question(template, item.question)
            answer = answer_ids(self.inputs, item.answers[0])
            ids = torch.tensor([prompt + answer], device=model.device)
            logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
            total += float(cross_entropy(logits, ids[0, len(prompt) :], reduction="sum"))
            count += len(answer)
        return total / count

    def grade_base(self) -> Grade:
        """Grade the model before the night, and also in other words with the text in context: what it can read."""
        model = load_model(self.inputs.config)
        return self.grade(model) | {"other_words_with_context": self._score(model, self.other_words, True)}

    def grade_grown(self, adapter: Path) -> Grade:
        """Grade the model with the night's experts."""
        model = load_model(self.inputs.config)
        load_memory(model, adapter)
        return self.grade(model)


def answer_ids(inputs: RunInputs, answer: str) -> list[int]:
    """Return the token ids of an answer and its end, as a reply of the model has them."""
    return [*inputs.prompter.ids(answer if inputs.prompter.has_chat else f" {answer}"), inputs.tokenizer.eos_token_id]


# -- learning ---------------------------------------------------------------------------------------------------------


def learn(name: str, exam: Exam, samples: Sequence[Sample], steps: int, learning_rate: float, targets: str) -> Grade:
    """Fine-tune the model by a rival's recipe and grade it.

    Args:
        name (`str`):
            The rival's name in [`RIVALS`].
        exam (`Exam`):
            What it is graded by.
        samples (`Sequence[Sample]`):
            What it learns, see [`samples_of`].
        steps (`int`):
            Optimizer steps.
        learning_rate (`float`):
            Peak learning rate.
        targets (`str`):
            Where its LoRA is: `"mlp"` or `"all-linear"`.

    Returns:
        `dict`: the grade, `steps`, `learning_rate`, and `seconds` of the training.
    """
    rival, model = RIVALS[name], load_model(exam.inputs.config)
    times = fine_tune(model, exam.inputs, rival, rival_rows(rival, exam.inputs, samples, steps), learning_rate, targets)
    return exam.grade(model) | {"steps": steps, "learning_rate": learning_rate, "seconds": sum(times)}


def time_step(exam: Exam, night: Path, name: str = "lora") -> float:
    """Return the median seconds of a rival's step."""
    rival = RIVALS[name]
    rows = rival_rows(rival, exam.inputs, samples_of(night), TIMED_STEPS + 1)
    times = fine_tune(load_model(exam.inputs.config), exam.inputs, rival, rows, rival.learning_rate, "mlp")
    return statistics.median(times[1:])


def samples_of(night: Path) -> list[Sample]:
    """Return what the teacher of a night wrote, and its self-replay."""
    written = json.loads((night / "phases" / "write_dataset.json").read_text("utf-8"))["result"]
    return [Sample(**row) for row in written["samples"]]


def rival_rows(rival: Rival, inputs: RunInputs, samples: Sequence[Sample], steps: int) -> Rows:
    """Lay out a rival's rows in training order, as its trainer takes them: tokenized, but for `SDFTTrainer`."""
    config, per_step = inputs.config, inputs.config.seeding.prompts_per_step
    if rival.reads_texts:
        return _text_rows(inputs, steps * per_step)
    rows = build_rows(
        [sample for sample in samples if sample.part == "memory" or (rival.has_replay and sample.part == "general")],
        inputs.tokenizer,
        steps=steps,
        per_step=per_step,
        shares={"general": config.dataset.general_share} if rival.has_replay else {},
        prefix_share=0,
        max_completion=config.seeding.max_completion_length,
        seed=config.seed,
    )
    if rival.is_on_policy:
        return _requests(inputs, samples, rows)
    return [
        {
            "input_ids": row["prompt_ids"] + row["reference_ids"],
            "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["reference_ids"]),
        }
        for row in rows
    ]


def _requests(inputs: RunInputs, samples: Sequence[Sample], rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the requests of samples in the order of their rows, each with the text that its teacher saw."""
    prompter, by_prompt = inputs.prompter, {tuple(sample.prompt_ids): sample for sample in samples}
    windows = {(window.memory_id, window.index): window for window in inputs.reading}
    requests = Rows()
    for sample in (by_prompt[tuple(row["prompt_ids"])] for row in rows):
        window = windows[sample.memory_id, sample.window]
        respond = Template.load(sample.template).respond
        text = prompter.text(respond, source=window.source, request=sample.request)
        prompt = [{"role": "user", "content": text}] if prompter.has_chat else text
        requests.append({"prompt": prompt, "privileged_context": window.text})
    return requests


def _text_rows(inputs: RunInputs, count: int) -> Rows:
    """Return windows of the documents, reshuffled in each pass, each with its title and an end."""
    texts = [
        [*inputs.prompter.ids(f"{memory.source}\n{window}"), inputs.tokenizer.eos_token_id]
        for memory, windows in zip(inputs.memories, inputs.windows, strict=True)
        for window in windows
    ]
    rng, order = random.Random(inputs.config.seed), list[list[int]]()
    while len(order) < count:
        order += rng.sample(texts, len(texts))
    return [{"input_ids": ids, "completion_mask": [0] + [1] * (len(ids) - 1)} for ids in order[:count]]


def fine_tune(
    model: Any, inputs: RunInputs, rival: Rival, rows: Rows, learning_rate: float, targets: str
) -> list[float]:
    """Train a LoRA inside the model by a rival's trainer, on rows in order, and return the seconds of each step."""
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter())

    seeding, watch = inputs.config.seeding, Watch()
    linears = "all-linear" if targets == "all-linear" else list(find_hosts(model)[0].form.linears)
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "output_dir": folder,
            "max_steps": len(rows) // seeding.prompts_per_step,
            "per_device_train_batch_size": seeding.prompts_per_step,
            "learning_rate": learning_rate,
            "lr_scheduler_type": seeding.lr_scheduler_type,
            "warmup_steps": seeding.warmup_steps,
            "max_grad_norm": seeding.max_grad_norm,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": not torch.accelerator.is_available(),
            "seed": inputs.config.seed,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        trainer = (_on_policy if rival.is_on_policy else _supervised)(
            arguments,
            inputs,
            model=model,
            train_dataset=Dataset.from_list(rows),
            processing_class=inputs.tokenizer,
            peft_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linears, task_type="CAUSAL_LM"),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)  # standard output has the benchmark's own lines alone
        trainer.train()
    return [end - start for start, end in zip(watch.marks, watch.marks[1:], strict=False)]


def _supervised(arguments: dict[str, Any], inputs: RunInputs, **others: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    del inputs
    config = SFTConfig(**arguments, train_sampling_strategy="sequential", completion_only_loss=True, max_length=None)
    return SFTTrainer(args=config, **others)


def _on_policy(arguments: dict[str, Any], inputs: RunInputs, **others: Any) -> Any:
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    seeding = inputs.config.seeding
    config = SDFTConfig(
        **arguments,
        gradient_accumulation_steps=seeding.num_generations,  # a step has as many prompts as the others have rows
        num_generations=seeding.num_generations,
        max_completion_length=seeding.max_completion_length,
        max_prompt_length=None,
        teacher_prompt_template="{privileged_context}\n\n{prompt}",
        shuffle_dataset=False,
    )
    return SDFTTrainer(args=config, **others)
