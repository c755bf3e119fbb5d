"""Planned against measured peak resident memory of a night, by the tokens of context.

    python benchmarks/plan_accuracy.py --json
    python benchmarks/plan_accuracy.py --model FILE.gguf --memories docs.jsonl --contexts 8192

Each night is run by its command in a process of its own, for a few steps with rollouts, and asks at most 64 questions
of a kind, a whole batch. Without --model, the model has random weights, a Llama's form and a vocabulary of 32,768
tokens, and the document is prose that fills the context. What such a model writes is noise, so it is kept as it is.
--window shows the teacher that many tokens at once. `ratio` is what was planned divided by what was measured. Needs
Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with

MIB = 2**20
VOCABULARY = 32_768
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
AROUND = 1_200  # tokens of prompt, question and answer around a document
BRIEF = ["--evaluation.max_questions=64", "--seeding.rollout_start=0"]
KEPT_AS_IT_IS = ["--no-dataset.check_answers", "--dataset.keep_truncated", "--dataset.general_samples=16"]
ALLOWED = 0.2


def make_model(folder: Path, longest: int) -> Path:
    """Save a chat model with random weights, and a tokenizer that is trained on the shipped prose."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from sleep_trl.data.shipped_sets import read_shipped

    trained = ByteLevelBPETokenizer()
    texts = [memory.text for name in ("prose", "reading", "general_prompts") for memory in read_shipped(name)]
    trained.train_from_iterator(texts, VOCABULARY, special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False)
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, padding_side="left", **special)
    config = LlamaConfig(
        **SHAPE,
        **HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=longest,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_document(file: Path, model: Path, tokens: int) -> Path:
    """Write a document of shipped prose with so many tokens, and eight questions about it."""
    from transformers import AutoTokenizer

    from sleep_trl.data.shipped_sets import read_shipped

    tokenizer = AutoTokenizer.from_pretrained(model)
    prose = "\n\n".join(memory.text for memory in read_shipped("prose"))
    text = tokenizer.decode(tokenizer(prose, verbose=False)["input_ids"][:tokens])
    questions = [{"question": f"What is said in sentence {n}?", "answers": ["the"]} for n in range(8)]
    file.write_text(json.dumps({"text": text, "questions": questions}) + "\n", "utf-8")
    return file


def measure(options: list[str], folder: Path) -> float:
    """Run a night and return its peak resident memory in MiB.

    Raises:
        `RuntimeError`: if the night fails, with the end of its output.
    """
    command = [sys.executable, str(ROOT / "launch" / "sleep.py"), *options, "--output_dir", str(folder / "night")]
    log = folder / "night.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment())
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(
            f"The night failed: {shlex.join(command)}\n{log.read_text('utf-8', errors='replace')[-2000:]}"
        )
    return usage.ru_maxrss / 1024


def plan(options: list[str], folder: Path) -> Any:
    """Return what is planned for a night."""
    from sleep_trl.config.command_line import parse
    from sleep_trl.planning.inputs import RunInputs
    from sleep_trl.planning.preflight import make_plan

    return make_plan(RunInputs(parse([*options, "--output_dir", str(folder / "night")])))


def compare(arguments: argparse.Namespace, context: int, folder: Path) -> dict[str, Any]:
    """Return what was planned and measured for a context."""
    folder.mkdir()
    options = ["--dtype", arguments.dtype, "--no-report", f"--seeding.steps={arguments.steps}", *BRIEF]
    if arguments.model:
        options += ["--model", arguments.model, "--memories", str(arguments.memories), f"--max_context={context}"]
    else:
        model = make_model(folder / "model", context + AROUND)
        document = write_document(folder / "document.jsonl", model, context)
        options += ["--model", str(model), "--memories", str(document), *KEPT_AS_IT_IS]
    options += [f"--dataset.window={arguments.window}"] if arguments.window else []
    options += shlex.split(arguments.options)
    planned = plan(options, folder).peak
    progress(f"{context} tokens: {planned}")
    measured = measure(options, folder)
    return {
        "planned_mib": round(planned.total / MIB),
        "measured_mib": round(measured),
        "ratio": round(planned.total / MIB / measured, 3),
        "phase": planned.largest_phase,
        "phases_mib": {name: round(size / MIB) for name, size in planned.phases.items()},
    }


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[250, 2_000, 8_000], help="tokens of the documents")
    parser.add_argument("--window", type=int, help="tokens that the teacher sees at once; default: the product's")
    parser.add_argument("--model", help="a model, with --memories; --contexts are then its max_context")
    parser.add_argument("--memories", type=Path, help="its documents")
    parser.add_argument("--dtype", default="float32", help="dtype of the base")
    parser.add_argument("--steps", type=int, default=4, help="training steps of each night")
    parser.add_argument("--options", default="", help="further options of the nights")
    arguments = parser.parse_args()
    if bool(arguments.model) != bool(arguments.memories):
        parser.error("--model and --memories go together")
    if arguments.quick:
        arguments.contexts, arguments.steps = arguments.contexts[:1], 1
    return arguments


def main() -> None:
    rerun_with(environment())
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        found = {str(c): compare(arguments, c, Path(folder) / str(c)) for c in arguments.contexts}
    table: list[Row] = [("tokens of context", "planned MiB", "measured MiB", "ratio", "at its peak while")]
    for context, row in found.items():
        table.append(
            (context, f"{row['planned_mib']:,}", f"{row['measured_mib']:,}", f"{row['ratio']:.2f}", row["phase"])
        )
    settings = {"model": Path(arguments.model).name if arguments.model else "random", "dtype": arguments.dtype}
    settings |= {"window": arguments.window, "steps": arguments.steps, "allowed": ALLOWED}
    is_met = all(abs(row["ratio"] - 1) <= ALLOWED for row in found.values())
    result = {**settings, "contexts": found, "is_met": is_met}
    report("Peak memory of a night: planned and measured", table, result, arguments.json)


if __name__ == "__main__":
    main()
