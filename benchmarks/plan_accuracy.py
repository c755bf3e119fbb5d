"""Planned against measured peak resident memory of a night, by the tokens of context or the words of the document.

    python benchmarks/plan_accuracy.py --json
    python benchmarks/plan_accuracy.py --words 5000 10000 20000
    python benchmarks/plan_accuracy.py --model FILE.gguf --memories docs.jsonl --contexts 8192

Each night is run by its command in a process of its own, for a few steps with rollouts, and asks at most 64 questions
of a kind, a whole batch. Without --model, the model has random weights, a Llama's form and a vocabulary of 32,768
tokens, and the document is prose that fills the context. What such a model writes is noise, so it is kept as it is.
--window shows the teacher that many tokens at once. With --words, the document is longer than the model's context, and
a night goes through all of it once, so that its seconds of processor time can be compared. `ratio` is what was planned
divided by what was measured. Needs Linux.
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

from _peaks import MIB
from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with

VOCABULARY = 32_768
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
AROUND = 1_200  # tokens of prompt, question and answer around a document
BRIEF = ["--evaluation.max_questions=64", "--seeding.rollout_start=0"]
CONTEXT = 8_192  # tokens that the model of a document in --words can see
ONCE = ["--seeding.passes=1", "--dataset.samples_per_sentence=1", "--dataset.max_new_tokens=32"]
KEPT_AS_IT_IS = ["--no-dataset.check_answers", "--dataset.keep_truncated", "--dataset.general_samples=16"]
ALLOWED = 0.2


def make_model(folder: Path, longest: int) -> Path:
    """Save a chat model with random weights, and a tokenizer that is trained on the shipped prose."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from sleep_trl.data.shipped_sets import read_shipped
    from sleep_trl.distributed.zero3 import expect_no_gpu

    expect_no_gpu()  # before transformers imports DeepSpeed, which would warn on standard output
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


def write_document(file: Path, model: Path, tokens: int | None, words: int | None) -> Path:
    """Write a document of shipped texts with so many tokens or words, and eight questions about it.

    Raises:
        `ValueError`: if the texts have fewer words.
    """
    from transformers import AutoTokenizer

    from sleep_trl.data.shipped_sets import read_shipped

    texts = [memory.text for name in ("prose", "reading") for memory in read_shipped(name)]
    if words:
        rows = [json.loads(line) for line in (ROOT / "examples/almanac/measure.jsonl").read_text("utf-8").splitlines()]
        paragraphs = [text.split(" ") for text in (*texts, *(row["text"] for row in rows))]
        text, missing = "", words
        for paragraph in paragraphs:
            text, missing = text + " ".join(paragraph[:missing]) + "\n\n", max(0, missing - len(paragraph))
        if missing:
            raise ValueError(
                f"There are {words - missing:,} words of text, and --words asks for {words:,}. Give fewer."
            )
    else:
        tokenizer = AutoTokenizer.from_pretrained(model)
        text = tokenizer.decode(tokenizer("\n\n".join(texts), verbose=False)["input_ids"][:tokens])
    questions = [{"question": f"What is said in sentence {n}?", "answers": ["the"]} for n in range(8)]
    file.write_text(json.dumps({"text": text, "questions": questions}) + "\n", "utf-8")
    return file


def measure(options: list[str], folder: Path) -> tuple[float, float]:
    """Run a night and return its peak resident memory in MiB, and its seconds of processor time.

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
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def plan(options: list[str], folder: Path) -> Any:
    """Return what is planned for a night."""
    from sleep_trl.config.command_line import parse
    from sleep_trl.planning.inputs import RunInputs
    from sleep_trl.planning.preflight import make_plan

    return make_plan(RunInputs(parse([*options, "--output_dir", str(folder / "night")])))


def compare(arguments: argparse.Namespace, length: int, folder: Path) -> dict[str, Any]:
    """Return what was planned and measured for a context of so many tokens, or for a document of so many words."""
    folder.mkdir()
    by_words = bool(arguments.words)
    options = ["--dtype", arguments.dtype, "--no-report", *BRIEF]
    options += ONCE if by_words else [f"--seeding.steps={arguments.steps}"]
    if arguments.model:
        options += ["--model", arguments.model, "--memories", str(arguments.memories), f"--max_context={length}"]
    else:
        model = make_model(folder / "model", CONTEXT if by_words else length + AROUND)
        tokens, words = (None, length) if by_words else (length, None)
        document = write_document(folder / "document.jsonl", model, tokens, words)
        options += ["--model", str(model), "--memories", str(document), *KEPT_AS_IT_IS]
    options += [f"--dataset.window={arguments.window}"] if arguments.window else []
    options += shlex.split(arguments.options)
    planned = plan(options, folder).peak
    progress(f"{length:,} {'words' if by_words else 'tokens'}: {planned}")
    measured, seconds = measure(options, folder)
    return {
        "processor_seconds": round(seconds),
        "planned_mib": round(planned.total / MIB),
        "measured_mib": round(measured),
        "ratio": round(planned.total / MIB / measured, 3),
        "phase": planned.largest_phase,
        "phases_mib": {name: round(size / MIB) for name, size in planned.phases.items()},
    }


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[250, 2_000, 8_000], help="tokens of the documents")
    parser.add_argument("--words", type=int, nargs="+", help="words of the documents, in place of --contexts")
    parser.add_argument("--window", type=int, help="tokens that the teacher sees at once; default: the product's")
    parser.add_argument("--model", help="a model, with --memories; --contexts are then its max_context")
    parser.add_argument("--memories", type=Path, help="its documents")
    parser.add_argument("--dtype", default="float32", help="dtype of the base")
    parser.add_argument("--steps", type=int, default=4, help="training steps of each night")
    parser.add_argument("--options", default="", help="further options of the nights")
    arguments = parser.parse_args()
    if bool(arguments.model) != bool(arguments.memories):
        parser.error("--model and --memories go together")
    if arguments.words and arguments.model:
        parser.error("--words makes a model and a document of its own: leave out --model and --memories")
    if arguments.quick:
        arguments.contexts, arguments.steps, arguments.words = arguments.contexts[:1], 1, None
    return arguments


def main() -> None:
    rerun_with(environment())
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        lengths = arguments.words or arguments.contexts
        found = {str(length): compare(arguments, length, Path(folder) / str(length)) for length in lengths}
    name = "words" if arguments.words else "contexts"
    first = "words of the document" if arguments.words else "tokens of context"
    table: list[Row] = [(first, "planned MiB", "measured MiB", "ratio", "at its peak while", "processor seconds")]
    for length, row in found.items():
        sizes = f"{row['planned_mib']:,}", f"{row['measured_mib']:,}", f"{row['ratio']:.2f}"
        table.append((length, *sizes, row["phase"], f"{row['processor_seconds']:,}"))
    settings = {"model": Path(arguments.model).name if arguments.model else "random", "dtype": arguments.dtype}
    settings |= {"window": arguments.window, "steps": arguments.steps, "allowed": ALLOWED}
    is_met = all(abs(row["ratio"] - 1) <= ALLOWED for row in found.values())
    result = {**settings, name: found, "is_met": is_met}
    report("Peak memory of a night: planned and measured", table, result, arguments.json)


if __name__ == "__main__":
    main()
