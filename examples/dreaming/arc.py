"""SEAL's few-shot learning on ARC: a dream is a recipe for augmenting a task's examples and learning them.

    python examples/dreaming/arc.py --model meta-llama/Llama-3.2-1B-Instruct --tasks eval.jsonl.gz \\
        --train-tasks train.jsonl.gz --rounds 1

A dream is a JSON object: which changes augment the examples (turns, sizes, ...), which tokens enter the loss, the
learning rate and the epochs. It is useful if an adapter trained by it solves the task. In the rounds the model writes
60 dreams about each task; 45 are rejected by their gradient and 15 tried out. Then come 5 per held-out task.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _protocol import Setup, argument_parser, cost, finish, load, read_rows, train_dreamer
from arc_grids import CHANGES, augment, read_grid, write_grid, write_task

MOST_EXAMPLES, MOST_STEPS = 250, 375  # SEAL's
ASK = f"""Choose how to learn this task. Reply with one JSON object and nothing else:
"changes": a list of any of {", ".join(CHANGES)}; "learn": "all" or "output" (which tokens count); "learning_rate": a
number; "epochs": an integer.
"""


@dataclass(frozen=True)
class Recipe:
    """The content of a dream: how a task's examples are augmented and learned."""

    changes: tuple[str, ...]
    learn_all: bool
    learning_rate: float
    epochs: int

    @staticmethod
    def read(text: str) -> Recipe:
        """Read a recipe.

        Raises:
            `ValueError`: if the text is not a recipe.
        """
        try:
            given = json.loads(text)
            recipe = Recipe(
                tuple(given["changes"]), given["learn"] == "all", float(given["learning_rate"]), int(given["epochs"])
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a recipe: {error!r}") from None
        if not set(recipe.changes) <= set(CHANGES) or given["learn"] not in ("all", "output"):
            raise ValueError(f"unknown changes or tokens: {recipe.changes}, {given['learn']!r}")
        if not 0 < recipe.learning_rate < 1 or recipe.epochs < 1:
            raise ValueError(f"learning rate {recipe.learning_rate}, {recipe.epochs} epochs")
        return recipe


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.set_defaults(learning_rate=5e-5, epochs=8)  # SEAL's
    parser.add_argument("--tasks", type=Path, help="JSON lines (id, train, test) that dreams are evaluated on")
    parser.add_argument("--train-tasks", type=Path, help="tasks of the rounds, in the same format")
    parser.add_argument("--limit", type=int, help="number of tasks to read from each file; default: all")
    parser.add_argument("--dreams", type=int, default=60, help="dreams of each task in a round")
    parser.add_argument("--select-top-k", type=int, default=12, help="number of best dreams by gradient to try out")
    parser.add_argument("--select-random-k", type=int, default=3, help="further dreams to try out, drawn at random")
    parser.add_argument("--eval-dreams", type=int, default=5, help="dreams of each task in the evaluation")
    parser.add_argument("--selection", default="gradient_norm", help="what dreams are selected by")
    parser.add_argument("--max-dream-tokens", type=int, default=128, help="longest dream (SEAL: 128)")
    args = parser.parse_args()
    if args.estimate is None and (args.model is None or args.tasks is None or (args.rounds and not args.train_tasks)):
        parser.error("--model and --tasks are required, and --train-tasks with --rounds")
    return args


def read_tasks(path: Path, most: int | None) -> dict[str, dict[str, Any]]:
    """Read tasks by id; their grids become pairs."""
    rows = list(read_rows(path))[:most]
    return {
        row["id"]: {part: [(pair["input"], pair["output"]) for pair in row[part]] for part in ("train", "test")}
        for row in rows
    }


def dream_prompt(setup: Setup, task: dict[str, Any]) -> str | list[dict[str, str]]:
    text = write_task(tuple(task["train"]), task["test"][0][0]) + "\n" + ASK
    return [{"role": "user", "content": text}] if setup.prompter.has_chat else text


def prompt_ids(prompter: Any, text: str) -> list[int]:
    """Return the tokens of a prompt, as a user's message to a chat model."""
    if not prompter.has_chat:
        return list(prompter.tokenizer(text, verbose=False)["input_ids"])
    messages = [{"role": "user", "content": text}]
    rendered = prompter.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(prompter.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])


def learn(args: argparse.Namespace, setup: Setup, task: dict[str, Any], recipe: Recipe, id: str) -> Any:
    """Turn a recipe into the job of an adapter.

    Raises:
        `ValueError`: if it takes more steps than SEAL allows.
    """
    from seal_presets import SEAL_ARC

    rows, counted = [], []
    for known, (given, wanted) in augment(task["train"], list(recipe.changes), MOST_EXAMPLES, args.seed):
        prompt = prompt_ids(setup.prompter, write_task(known, given))
        answer = [*setup.prompter.ids(write_grid(wanted)), setup.engine.eos_ids[0]]
        rows.append((*prompt, *answer))
        counted.append((recipe.learn_all,) * len(prompt) + (True,) * len(answer))
    dream = SEAL_ARC.job(id, rows, counted, recipe.epochs, recipe.learning_rate)
    if dream.steps > MOST_STEPS:
        raise ValueError(f"{dream.steps} steps; at most {MOST_STEPS} are made")
    return dream


def make_evaluator(args: argparse.Namespace, setup: Setup, tasks: dict[str, dict[str, Any]]) -> Any:
    """Return the evaluator of dreams. A dream that is not a recipe fails and has no reward."""
    from dataclasses import replace

    from seal_presets import SEAL_ARC

    from sleep_trl.dreams import DreamEvaluator, SignificanceTest, Trial

    prompter = setup.prompter  # `solve` is sent to workers with it, so it must not hold the model

    def solve(asked: Any, answerer: Any) -> list[list[float]]:
        """Ask for every test grid of each task; only a whole grid counts as right."""
        pairs = [(owner, pair) for owner, task in enumerate(asked) for pair in tasks[task.id]["test"]]
        known = [tuple(tasks[task.id]["train"]) for task in asked]
        prompts = [prompt_ids(prompter, write_task(known[owner], given)) for owner, (given, _) in pairs]
        longest = max(len(prompter.ids(write_grid(wanted))) for _, (_, wanted) in pairs) + 8
        replies = answerer.answer(prompts, [owner for owner, _ in pairs], longest)
        scores: list[list[float]] = [[] for _ in asked]
        for (owner, (_, wanted)), reply in zip(pairs, replies, strict=True):
            scores[owner].append(float(read_grid(reply) == wanted))
        return scores

    class ByRecipe(DreamEvaluator):
        def try_out(self, dreams: Any, asked: Any) -> Any:
            done, good = {}, []
            for dream, task in zip(dreams, asked, strict=True):
                text = setup.tokenizer.decode(dream.sequences[0], skip_special_tokens=True)
                try:
                    good.append((learn(args, setup, tasks[task.id], Recipe.read(text), dream.id), task))
                except ValueError as error:
                    done[dream.id] = Trial(dream.id, None, f"dream {dream.id!r}: {error}")
            if good:
                done |= {t.id: t for t in super().try_out([d for d, _ in good], [t for _, t in good])}
            return [done[dream.id] for dream in dreams]

    training = replace(SEAL_ARC.training, seed=args.seed)
    return ByRecipe(setup.engine, solve, SEAL_ARC.spec, training, SignificanceTest("sign"), args.chunk, setup.workers)


def train(args: argparse.Namespace, setup: Setup) -> list[dict[str, Any]]:
    """Train the dreamer on the training tasks."""
    tasks = read_tasks(args.train_tasks, args.limit)
    rows = [{"prompt": dream_prompt(setup, task), "task_id": name, "context": ""} for name, task in tasks.items()]
    options = {"selection": args.selection, "select_top_k": args.select_top_k, "select_random_k": args.select_random_k}
    options |= {"num_generations": args.dreams, "max_completion_length": args.max_dream_tokens, "temperature": 0.8}
    return train_dreamer(args, setup, rows, make_evaluator(args, setup, tasks), **options)


def evaluate(args: argparse.Namespace, setup: Setup) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Dream about held-out tasks, learn by each dream, and evaluate."""
    from sleep_trl.batched_lora import LoraJob
    from sleep_trl.dreams import Task
    from sleep_trl.rollout import Sampling

    tasks = read_tasks(args.tasks, args.limit)
    evaluator = make_evaluator(args, setup, tasks)
    names = [name for name in tasks for _ in range(args.eval_dreams)]
    prompts = []
    for name in names:
        asked = dream_prompt(setup, tasks[name])
        prompts.append(prompt_ids(setup.prompter, asked if isinstance(asked, str) else asked[0]["content"]))
    written = setup.engine.generate(prompts, Sampling(args.max_dream_tokens, 0.8, (), args.seed))
    dreams = [LoraJob(f"{name} {i}", (tuple(c.ids),)) for i, (name, c) in enumerate(zip(names, written, strict=True))]
    trials = evaluator.try_out(dreams, [Task(name, "") for name in names])
    before = dict(zip(tasks, evaluator.score_as_is([Task(name, "") for name in tasks]), strict=True))
    solved = [
        None if trial.gain is None else solves(before[name], trial.gain)
        for name, trial in zip(names, trials, strict=True)
    ]
    result = {
        "tasks": len(tasks),
        "dreams": len(dreams),
        "failed": sum(value is None for value in solved),
        "solved_as_it_is": sum(all(scores) for scores in before.values()) / len(tasks),
        "solved": sum(bool(value) for value in solved) / len(solved),
        "solved_of_learnt": sum(map(bool, solved)) / learnt if (learnt := sum(s is not None for s in solved)) else None,
    }
    records = [
        {"task": name, "dream": c.text, "solved": value, "error": trial.error}
        for name, c, value, trial in zip(names, written, solved, trials, strict=True)
    ]
    return result, records


def solves(before: list[float], gain: Any) -> bool:
    """Return whether all grids are right afterwards."""
    return sum(before) / len(before) + gain.mean > 1 - 1e-9


def estimate(args: argparse.Namespace) -> dict[str, Any]:
    """Estimate the cost. Assumed (ours): 12 training and 10 held-out tasks of 1,200 tokens with their answer; every
    dream is a recipe of 300 steps of 2 examples, below the limit."""
    tried, evaluated = 12 * (args.select_top_k + args.select_random_k) * args.rounds, 10 * args.eval_dreams
    return cost(
        args.estimate,
        written=12 * args.dreams * args.rounds * (1200 + 60) * 2 + evaluated * (1200 + 60),  # selection reads them too
        learnt=(tried + evaluated) * 300 * 2 * 1200,
        scored=(tried + evaluated) * 1200,
    )


def main() -> None:
    args = parse_arguments()
    if args.estimate is not None:
        finish(args, "Estimate", estimate(args), [])
        return
    setup = load(args)
    records = train(args, setup) if args.rounds else []
    result, evaluated = evaluate(args, setup)
    finish(args, "SEAL on ARC", result, [*records, *evaluated])


if __name__ == "__main__":
    main()
