"""Does dreaming get better at dreaming? The share of dreams that improve their task, round by round.

    python benchmarks/dreaming.py --seeds 3 --output benchmarks/results/dreaming.json

The quickstart's model dreams about the sentences of the first night's memories, 8 dreams each. An isolated LoRA learns
each dream and is asked the questions about the sentence without the sentence, in the memories' words and in other
words. Each variant changes one thing. A random extra expert needs trained experts: the routed memory has three, one
from each of three other nights, and one per token. In the end every dreamer dreams about a night that it never saw, and
all of these dreams are tried out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from _report import ROOT, Row, Runs, cell, report_study, run_study, study_parser
from _synthetic_world import QUICKSTART, memories_of, routed_memory, sentence_tasks

sys.path.insert(0, str(ROOT))

DREAMS = 8  # for each sentence
BATCHES = 3  # of a round
SLEPT_NIGHTS, DREAMT_NIGHT, FRESH_NIGHT = (2, 3, 4), 1, 5

# Arguments of DreamingConfig; `is_routed` is for the memory.
USUAL: dict[str, Any] = {"is_routed": False, "selection": "gradient_norm", "learning_rate": 1e-2}
VARIANTS: dict[str, dict[str, Any]] = {
    "ReST-EM, 3 by gradient norm and 1 at random": {},
    "no selection: 4 at random": {"selection": "random"},
    "no selection: all 8": {"selection": "all"},
    "GRPO instead of ReST-EM": {"improvement": "grpo"},
    "GRPO, learning rate 3e-3": {"improvement": "grpo", "learning_rate": 3e-3},
    "no dreaming: nothing is learned": {"learning_rate": 0.0},
    "routed memory of three nights": {"is_routed": True},
    "routed memory, nothing is learned": {"is_routed": True, "learning_rate": 0.0},
    "routed memory, random expert": {"is_routed": True, "random_expert": True},
}


def make_model(is_routed: bool, seed: int, arguments: argparse.Namespace) -> Any:
    """Return the quickstart's model with a memory whose next expert is in training."""
    from transformers import AutoModelForCausalLM

    from sleep_trl import MemorySpec, attach, load_memory

    slept = routed_memory(arguments.memory, SLEPT_NIGHTS, arguments.night_steps) if is_routed else None
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model", dtype=torch.float32)
    memory = load_memory(model, slept) if slept else attach(model, MemorySpec(max_experts=1, seed=seed))
    memory.activate()
    return model


def make_trainer(options: dict[str, Any], seed: int, arguments: argparse.Namespace, folder: str) -> Any:
    """Create a trainer, with the sentences to dream about and those of a night that it never sees."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from sleep_trl import DreamingConfig, DreamingTrainer
    from sleep_trl.data.prompts import Prompter

    options = USUAL | options
    model = make_model(options.pop("is_routed"), seed, arguments)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    count_all = Prompter(tokenizer).count_all
    tasks, fresh = (
        Dataset.from_list(sentence_tasks(memories_of(night), count_all, arguments.sentences))
        for night in (DREAMT_NIGHT, FRESH_NIGHT)
    )
    dreams = len(tasks) * DREAMS
    if options.get("improvement") == "grpo":  # as many dreams and steps as ReST-EM
        options |= {"generation_batch_size": dreams, "num_train_epochs": arguments.rounds, "num_iterations": 2}

    return DreamingTrainer(
        model,
        args=DreamingConfig(
            folder,
            rounds=arguments.rounds,
            em_epochs=2,
            num_generations=DREAMS,
            select_top_k=3,
            select_random_k=1,
            per_device_train_batch_size=dreams // BATCHES,
            per_device_eval_batch_size=dreams,
            max_completion_length=24,
            lora_learning_rate=5e-3,
            metric="exact",
            max_answer_length=8,
            test="sign",
            trial_batch_size=256,
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
        train_dataset=tasks,
        eval_dataset=fresh,
        processing_class=tokenizer,
        learn=lambda ids: ((tokenizer.bos_token_id, *ids),),
    )


def run(variant: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Dream for some rounds, then about fresh sentences; return statistics of the dreams of each."""
    from sleep_trl.dreams import Selection

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(VARIANTS[variant], seed, arguments, folder)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        by_round = defaultdict(list)
        for record in trainer.trials:
            by_round[record["step"]].append(record)
        trainer.trials.clear()
        trainer.selection, trainer.args.random_expert = Selection("all"), False  # the same for every dreamer
        trainer.evaluate()
    rounds = [describe(records) for records in by_round.values()]
    return {"rounds": rounds, "fresh": describe(trainer.trials), "seconds": round(seconds, 1)}


def describe(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many dreams were tried out, the share that improved their task (overall and by reason of selection),
    the mean gain, and the share of all dreams that differ from the others of their task."""
    gains = defaultdict(list)
    for record in records:
        if record["trial_gain"] is not None:
            gains[record["selected"]].append(record["trial_gain"])
    tried = [gain for group in gains.values() for gain in group]
    return {
        "tried": len(tried),
        "better": share_of_better(tried),
        "better_by_reason": {reason: share_of_better(group) for reason, group in sorted(gains.items())},
        "gain": round(sum(tried) / len(tried), 4),
        "distinct": round(len({(record["task_id"], record["dream"]) for record in records}) / len(records), 4),
    }


def share_of_better(gains: list[float]) -> float:
    """Return the share of gains above 0."""
    return round(sum(gain > 0 for gain in gains) / len(gains), 4)


def tabulate(runs: Runs) -> list[Row]:
    """Return the share of improving dreams per round and for fresh sentences, in percent, and the seconds of a run."""
    rounds = len(next(iter(next(iter(runs.values())).values()))["rounds"])
    shares_of = [f"round {k + 1}" for k in range(rounds)]
    table: list[Row] = [("variant", *shares_of, "fresh sentences", "distinct dreams", "tried a round", "seconds")]
    for name, by_seed in runs.items():
        done = list(by_seed.values())
        shares = [cell([100 * run["rounds"][k]["better"] for run in done]) for k in range(rounds)]
        fresh = [cell([100 * run["fresh"][key] for run in done]) for key in ("better", "distinct")]
        tried = cell([run["rounds"][0]["tried"] for run in done], 0)
        table.append((name, *shares, *fresh, tried, cell([run["seconds"] for run in done], 0)))
    return table


def parse_arguments() -> argparse.Namespace:
    parser = study_parser((__doc__ or "").split("\n")[0], VARIANTS)
    parser.add_argument("--rounds", type=int, default=4, help="rounds of dreaming and learning")
    parser.add_argument(
        "--sentences", type=int, default=36, help=f"sentences to dream about, a multiple of {BATCHES}, at most 36"
    )
    parser.add_argument("--night-steps", type=int, default=90, help="steps of each night of the routed memory")
    parser.add_argument("--memory", type=Path, default=ROOT / "runs" / "dreaming", help="folder of these nights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.rounds, arguments.sentences, arguments.night_steps = 1, 2, 6, 5
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    settings = {name: getattr(arguments, name) for name in ("rounds", "sentences", "night_steps")}
    runs = run_study(arguments, settings, lambda variant, seed: run(variant, seed, arguments))
    report_study(tabulate(runs), settings, runs, arguments.json)


if __name__ == "__main__":
    main()
