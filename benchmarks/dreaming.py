"""Does dreaming get better at dreaming? The share of dreams that improve their task, round by round.

    python benchmarks/dreaming.py --seeds 3 --output benchmarks/results/dreaming.json

The quickstart's model dreams about the sentences of the first night's memories, 8 dreams each. A dream is learnt by an
isolated LoRA, and its task is the sentence's questions, asked without it: the memories' own and those in other words.
Each variant changes one thing. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

QUICKSTART = ROOT / "examples" / "quickstart"
WINDOW = 20  # tokens of a memory in one task: a sentence

# What is changed, as arguments of DreamingConfig; `routing` and `top` go to the memory.
VARIANTS: dict[str, dict[str, Any]] = {
    "top 3 and 1 by chance, by gradient norm": {},
    "4 by chance": {"selection": "random"},
    "all 8": {"selection": "all"},
    "GRPO instead of ReST-EM": {"improvement": "grpo"},
    "random further expert while dreaming": {"random_expert": True},
}


def make_tasks(count_tokens: Callable[[str], int], most: int | None) -> list[dict[str, Any]]:
    """Return a task for each sentence, with the questions whose answers and names it holds."""
    from sleep_trl.dataset import split_windows

    rows = []
    for line in (QUICKSTART / "memories.jsonl").read_text("utf-8").splitlines():
        memory = json.loads(line)
        asked = memory["questions"] + memory["other_words"]
        for k, text in enumerate(split_windows(memory["text"], count_tokens, WINDOW, 0)):
            about = [q for q in asked if q["answers"][0] in text and names(q["question"]) <= set(words(text))]
            questions = [{"question": q["question"], "answers": q["answers"]} for q in about]
            rows.append({"prompt": text, "task_id": f"{memory['id']}-{k}", "context": text, "questions": questions})
    return rows[:most]


def words(text: str) -> list[str]:
    """Return the words of a text without their punctuation."""
    return [word.strip("?.,") for word in text.split()]


def names(question: str) -> set[str]:
    """Return the names in a question: its capitalized words but the first."""
    return {word for word in words(question)[1:] if word[0].isupper()}


def run(variant: dict[str, Any], seed: int, arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Dream for some rounds; return the share of improving dreams and the mean gain by round, and the seconds."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sleep_trl.dataset import Prompter
    from sleep_trl.dreams import Doubt, InnerLoop, LoraSpec, Questions, Rehearsal
    from sleep_trl.memory import MemorySpec, attach
    from sleep_trl.rollout import TransformersEngine
    from sleep_trl.trainers import DreamingConfig, DreamingTrainer

    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    prompter = Prompter(tokenizer)
    is_routed = variant.get("random_expert", False)
    memory = attach(model, MemorySpec(max_experts=4, routing="topk" if is_routed else "dense", seed=seed))
    for _ in range(4 if is_routed else 1):
        memory.activate()
    tasks = make_tasks(prompter.count_tokens, arguments.tasks)
    options = {"selection": "gradient_norm", "top_k": 3, "random_k": 1, **variant}
    if options.get("improvement") == "grpo":  # as many batches as ReST-EM has
        dreams = len(tasks) * 8
        options |= {"generation_batch_size": dreams, "num_train_epochs": arguments.rounds, "num_iterations": 2}

    def rehearsal(trainer: Any) -> Rehearsal:
        loop = InnerLoop(steps=10, learning_rate=5e-3, seed=seed)
        engine = TransformersEngine(trainer.model, tokenizer, 256)
        return Rehearsal(engine, Questions(prompter, "exact", 8), LoraSpec(rank=8), loop, Doubt("sign"))

    trainer = DreamingTrainer(
        model,
        rehearsal,
        args=DreamingConfig(
            folder,
            rounds=arguments.rounds,
            em_epochs=2,
            num_generations=8,
            per_device_train_batch_size=len(tasks) * 8 // 3,
            max_completion_length=24,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            seed=seed,
            report_to="none",
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Dataset.from_list(tasks),
        processing_class=tokenizer,
        learn=lambda ids: ((tokenizer.bos_token_id, *ids),),
    )
    started = time.perf_counter()
    trainer.train()
    by_round: dict[int, list[float]] = {}
    for record in trainer.trials:
        if record["trial_gain"] is not None:
            by_round.setdefault(record["step"], []).append(record["trial_gain"])
    return {
        "better": [sum(gain > 0 for gain in gains) / len(gains) for gains in by_round.values()],
        "gain": [statistics.mean(gains) for gains in by_round.values()],
        "tried": [len(gains) for gains in by_round.values()],
        "seconds": time.perf_counter() - started,
    }


def render(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: share of improving dreams by round, mean and range over seeds; seconds of a run."""
    rounds = len(next(iter(results.values()))[0]["better"])
    lines = [
        "| variant | " + " | ".join(f"round {k + 1}" for k in range(rounds)) + " | dreams tried a round | seconds |",
        "| --- |" + " ---: |" * (rounds + 2),
    ]
    for name, runs in results.items():
        cells = []
        for k in range(rounds):
            shares = [100 * run["better"][k] for run in runs]
            spread = f" ({min(shares):.0f} to {max(shares):.0f})" if len(shares) > 1 else ""
            cells.append(f"{statistics.mean(shares):.1f}{spread}")
        seconds = statistics.mean(run["seconds"] for run in runs)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {runs[0]['tried'][0]} | {seconds:.0f} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of dreaming and learning")
    parser.add_argument("--tasks", type=int, help="sentences to dream about; default: all 36; a multiple of 3")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="which to run")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--output", type=Path, help="file to which the JSON object is written too")
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds, 6 sentences: does it run?")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.quick:
        arguments.seeds, arguments.rounds, arguments.tasks = 1, 2, 6
    torch.set_num_threads(arguments.threads)
    say: Callable[..., None] = (lambda *_: None) if arguments.json else print
    results: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.variants:
        for seed in range(42, 42 + arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                results.setdefault(name, []).append(run(VARIANTS[name], seed, arguments, folder))
            say(f"{name}, seed {seed}: {[round(share, 3) for share in results[name][-1]['better']]}", flush=True)
    say("\n" + render(results) + "\n")
    line = json.dumps({"rounds": arguments.rounds, "seeds": arguments.seeds, "runs": results})
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
