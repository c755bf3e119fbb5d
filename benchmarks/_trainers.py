"""One side of `seeding_step.py`: a trainer in a separate process that steps on request.

Each line on standard input is a number of steps to run, answered with their seconds, or `stop`, which ends the training
and is answered with the memory. All sides have the same model (random weights), dtype, optimizer, prompts and
completion length; this file defines how they differ.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from _peaks import Phases, before_model, memory, resident_peak

ROWS = 64
EOS = 2

SIZES = ("hidden", "intermediate", "layers", "vocabulary", "batch", "prompt", "context", "completion", "width")

# -- common to all sides ----------------------------------------------------------------------------------------------


def make_model(args: argparse.Namespace) -> Any:
    """Create a Llama with tied embeddings, with the same random weights on every side."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        vocab_size=args.vocabulary,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    before_model.append(resident_peak())
    torch.manual_seed(0)
    with torch.device("cuda" if args.cuda else "cpu"), default_dtype(torch.bfloat16 if args.cuda else torch.float32):
        model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None  # every completion has the full length
    return model


@contextlib.contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    """Create tensors in `dtype` directly, so that no second copy of the model ever exists."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_tokenizer(args: argparse.Namespace) -> Any:
    """Create a tokenizer with one word for each id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>"])}
    vocabulary |= {f"w{i}": i for i in range(len(vocabulary), args.vocabulary)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def words(args: argparse.Namespace, row: int, count: int, salt: int) -> str:
    """Return `count` words, each one token."""
    span = args.vocabulary - 4
    return " ".join(f"w{4 + (7919 * (row * 1009 + i) + 104729 * salt) % span}" for i in range(count))


def make_rows(args: argparse.Namespace) -> Any:
    """Create prompts, the teacher's prompts (a context, then the same prompt) and references."""
    from datasets import Dataset

    rows = []
    for row in range(ROWS):
        prompt = words(args, row, args.prompt, 1)
        context = words(args, row, args.context, 2)
        reference = words(args, row, args.completion - 1, 3)  # the end-of-sequence token is its last
        rows.append({"prompt": prompt, "teacher_prompt": f"{context} {prompt}".strip(), "reference": reference})
    return Dataset.from_list(rows)


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Return a cheap reward that differs between completions."""
    return [float(len(set(ids)) + ids[0] % 7) for ids in completion_ids]


def shared_arguments(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return the arguments that all trainers have in common."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": args.batch,
        "max_steps": 1_000_000,
        "learning_rate": 1e-5,
        "gradient_checkpointing": args.checkpointing,
        "bf16": False,  # the weights already have their dtype, so there is nothing to autocast
        "use_cpu": not args.cuda,
        "dataloader_pin_memory": args.cuda,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def policy_arguments(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return the further arguments that the trainers derived from GRPO have in common."""
    return {
        **shared_arguments(args, folder),
        "num_generations": 2,
        "max_completion_length": args.completion,
        "generation_kwargs": {"min_new_tokens": args.completion},
    }


# -- the sides --------------------------------------------------------------------------------------------------------


def seeding(args: argparse.Namespace, folder: str, lmbda: float = 1.0, beta: float = 0.0) -> Any:
    """Knowledge Seeding on rollouts only (lambda 1): the same tokens as the peers."""
    from sleep_trl.memory import MemorySpec, attach
    from sleep_trl.trainers import KnowledgeSeedingConfig, KnowledgeSeedingTrainer

    model = make_model(args)
    attach(model, MemorySpec(width=args.width, max_experts=1)).activate()
    return KnowledgeSeedingTrainer(
        model,
        reward,
        args=KnowledgeSeedingConfig(
            **policy_arguments(args, folder), lmbda=lmbda, divergence_beta=beta, rollout_start=0.0
        ),
        train_dataset=make_rows(args),
        processing_class=make_tokenizer(args),
    )


def seeding_jsd(args: argparse.Namespace, folder: str) -> Any:
    """The same with GKD's default divergence (beta 0.5)."""
    return seeding(args, folder, beta=0.5)


def seeding_references(args: argparse.Namespace, folder: str) -> Any:
    """Knowledge Seeding with its defaults (lambda 0.5): also a reference for each prompt."""
    return seeding(args, folder, lmbda=0.5)


def grpo(args: argparse.Namespace, folder: str, lora: bool = False, cls: Any = None) -> Any:
    """GRPO on all weights, or on a LoRA of the same linear maps with as many parameters as the expert."""
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    targets = ["gate_proj", "up_proj", "down_proj"]
    # A layer of an expert has 3 * width * hidden parameters, one of a LoRA of rank r 3 * r * (hidden + intermediate).
    rank = round(args.width * args.hidden / (args.hidden + args.intermediate))
    adapter = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM")
    return (cls or GRPOTrainer)(
        make_model(args),
        reward,
        args=GRPOConfig(**policy_arguments(args, folder)),
        train_dataset=make_rows(args),
        processing_class=make_tokenizer(args),
        peft_config=adapter if lora else None,
    )


def grpo_lora(args: argparse.Namespace, folder: str) -> Any:
    """GRPO with a LoRA."""
    return grpo(args, folder, lora=True)


def grpo_teacher(args: argparse.Namespace, folder: str, lora: bool = False) -> Any:
    """GRPO plus, in each step, one forward pass of a separate teacher over its own prompt and the same completions.

    Only the teacher's backbone runs, without gradients; its logits are not computed and nothing is learned from it.
    Any method with such a teacher does at least this in addition to GRPO.
    """
    import torch
    from trl import GRPOTrainer

    teacher = make_model(args).eval().requires_grad_(False)
    tokenizer = make_tokenizer(args)

    class WithTeacher(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
            prompts = tokenizer([row["teacher_prompt"] for row in inputs], return_tensors="pt", padding=True)
            return output | {
                f"teacher_{key}": prompts[key].to(teacher.device) for key in ("input_ids", "attention_mask")
            }

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            with torch.no_grad():
                ids = torch.cat([inputs["teacher_input_ids"], inputs["completion_ids"]], 1)
                mask = torch.cat([inputs["teacher_attention_mask"], inputs["completion_mask"]], 1)
                teacher.model(input_ids=ids, attention_mask=mask, use_cache=False)
            return super()._compute_loss(model, inputs)

    return grpo(args, folder, lora, WithTeacher)


def grpo_lora_teacher(args: argparse.Namespace, folder: str) -> Any:
    """The same with a LoRA instead of all weights."""
    return grpo_teacher(args, folder, lora=True)


def gkd(args: argparse.Namespace, folder: str, beta: float = 0.0) -> Any:
    """GKD with a separate teacher, on the student's rollouts only (lambda 1), with our divergence (beta 0)."""
    import torch
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    tokenizer = make_tokenizer(args)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        prompts = tokenizer([row["prompt"] for row in rows], return_tensors="pt")
        whole = tokenizer([f"{row['prompt']} {row['reference']} <eos>" for row in rows], return_tensors="pt")
        labels = whole["input_ids"].clone()
        labels[:, : prompts["input_ids"].size(1)] = -100
        return {
            "input_ids": whole["input_ids"],
            "attention_mask": whole["attention_mask"],
            "labels": labels,
            "prompts": prompts["input_ids"],
            "prompt_attention_mask": torch.ones_like(prompts["input_ids"]),
        }

    return GKDTrainer(
        make_model(args),
        make_model(args).requires_grad_(False),
        args=GKDConfig(
            **shared_arguments(args, folder), lmbda=1.0, beta=beta, temperature=1.0, max_new_tokens=args.completion
        ),
        data_collator=collate,
        train_dataset=make_rows(args),
        processing_class=tokenizer,
    )


def gkd_jsd(args: argparse.Namespace, folder: str) -> Any:
    """GKD with its own default divergence (beta 0.5)."""
    return gkd(args, folder, beta=0.5)


SIDES: dict[str, Callable[[argparse.Namespace, str], Any]] = {
    "seeding": seeding,
    "seeding_jsd": seeding_jsd,
    "seeding_references": seeding_references,
    "gkd": gkd,
    "gkd_jsd": gkd_jsd,
    "grpo": grpo,
    "grpo_lora": grpo_lora,
    "grpo_teacher": grpo_teacher,
    "grpo_lora_teacher": grpo_lora_teacher,
}


# -- stepping and measuring -------------------------------------------------------------------------------------------


def step_on_demand(trainer: Any, phases: Phases | None, answer: Callable[[Any], None]) -> None:
    """Train as many steps at a time as standard input requests, and answer with the seconds of each step."""
    import torch
    from transformers import TrainerCallback

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    class Bouts(TrainerCallback):  # type: ignore[misc]
        left = 0
        seconds: list[float] = []  # noqa: RUF012

        def on_step_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
            self.began = now()

        def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
            self.seconds.append(now() - self.began)
            self.left -= 1
            if self.left <= 0:
                control.should_training_stop = not self.wait()

        def on_pre_optimizer_step(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
            if phases is not None:
                phases.reset()

        def on_optimizer_step(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
            if phases is not None:
                phases.note("optimizer")

        def wait(self) -> bool:
            """Answer with the seconds of the last steps and wait for the next request; return False at the end."""
            answer({"seconds": self.seconds})
            self.seconds = []
            line = sys.stdin.readline().strip()
            self.left = 0 if line in ("", "stop") else int(line)
            return self.left > 0

    bouts = Bouts()
    if bouts.wait():
        trainer.add_callback(bouts)
        trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--cuda", action="store_true", help="bfloat16 on the first CUDA device")
    parser.add_argument("--phases", action="store_true", help="record the peak of each part of a step")
    args = parser.parse_args()

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the libraries' output goes to standard error
    with tempfile.TemporaryDirectory() as folder:
        trainer = SIDES[args.side](args, folder)
        phases = Phases(trainer, args.cuda) if args.phases else None
        step_on_demand(trainer, phases, lambda item: print(json.dumps(item), file=answers))
        print(json.dumps({**memory(args.cuda), "phases": phases.peaks if phases else {}}), file=answers)


if __name__ == "__main__":
    main()
