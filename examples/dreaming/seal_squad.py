"""SEAL's knowledge incorporation on SQuAD: learn passages from dreams about them, and answer without them.

    python examples/dreaming/seal_squad.py --model Qwen/Qwen2.5-7B --passages passages.jsonl.gz --n 1
    python examples/dreaming/seal_squad.py --model Qwen/Qwen2.5-7B --passages passages.jsonl.gz --n 200

With --n 1 a separate adapter learns each dream and answers its passage's questions; with --n 200 one adapter learns all
dreams about 200 passages. Both are compared with the unchanged model and with adapters that learned only the passages.
With --rounds the dreamer is first trained on other passages (ReST-EM).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _protocol import Setup, argument_parser, cost, finish, load, read_rows, train_dreamer

Passage = dict[str, Any]


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    hub = "rajpurkar/squad"
    parser.add_argument("--passages", default=hub, help="JSON lines (title, context, questions), or a hub dataset")
    parser.add_argument("--n", type=int, default=1, help="number of passages that one adapter learns")
    parser.add_argument("--limit", type=int, default=200, help="passages")
    parser.add_argument("--dreams", type=int, default=5, help="dreams of each passage")
    parser.add_argument("--train-passages", default=hub, help="passages of the rounds, in the same format")
    parser.add_argument("--train-limit", type=int, default=50, help="passages of a round")
    parser.add_argument("--template", default="implications", help="what a dream is: a template, or a .j2 file")
    parser.add_argument("--selection", default="all", help="what dreams are selected by in the rounds")
    parser.add_argument("--select-top-k", type=int, default=4, help="best dreams of a passage that are tried out")
    parser.add_argument("--select-random-k", type=int, default=1, help="number of further dreams, drawn at random")
    parser.add_argument("--max-dream-tokens", type=int, default=1024, help="longest dream")
    parser.add_argument("--metric", default="contains", choices=("contains", "exact", "f1"), help="of an answer")
    args = parser.parse_args()
    if min(args.n, args.limit, args.dreams, args.train_limit) < 1:
        parser.error("--n, --limit, --dreams and --train-limit must be at least 1")
    if args.model is None and args.estimate is None:
        parser.error("--model is required: the folder or hub name of a causal language model")
    return args


def read_passages(source: str, split: str, most: int) -> list[Passage]:
    """Read passages from a file, or the first ones of a split of SQuAD on the hub."""
    if Path(source).is_file():
        return list(read_rows(Path(source)))[:most]
    from datasets import load_dataset

    passages: dict[str, Passage] = {}
    for row in load_dataset(source, split=split):
        if row["context"] not in passages and len(passages) == most:
            break
        empty = {"id": row["id"], "title": row["title"], "context": row["context"], "questions": []}
        asked = {"question": row["question"], "answers": row["answers"]["text"]}
        passages.setdefault(row["context"], empty)["questions"].append(asked)
    return list(passages.values())


def make_task(passage: Passage) -> Any:
    """Return a passage's task; each question names its subject, as in SEAL."""
    from sleep_trl.dreams import Task
    from sleep_trl.evaluation.recall import QAItem

    questions = [
        QAItem(f"Topic: {passage['title']}\n{q['question']}", tuple(q["answers"])) for q in passage["questions"]
    ]
    return Task(passage["id"], passage["context"], tuple(questions))


def sequences(setup: Setup, passage: Passage, dream: str = "") -> list[tuple[int, ...]]:
    """Return what an adapter learns: each line of a dream and the passage itself, each after the title."""
    texts = [line.strip() for line in dream.splitlines() if line.strip()] + [passage["context"].strip()]
    return [tuple(setup.tokenizer(f"{passage['title']}\n{text}", verbose=False)["input_ids"]) for text in texts]


def make_evaluator(args: argparse.Namespace, setup: Setup, preset: Any, passages: list[Passage]) -> Any:
    """Return the evaluator of dreams, which splits the trainer's dreams (token ids) into lines."""
    from dataclasses import replace

    from sleep_trl.dreams import DreamEvaluator, Questions, SignificanceTest

    by_id = {passage["id"]: passage for passage in passages}

    class ByLine(DreamEvaluator):
        def try_out(self, dreams: Any, tasks: Any) -> Any:
            texts = [setup.tokenizer.decode(dream.sequences[0], skip_special_tokens=True) for dream in dreams]
            cut = [
                preset.job(dream.id, sequences(setup, by_id[task.id], text))
                for dream, task, text in zip(dreams, tasks, texts, strict=True)
            ]
            return super().try_out(cut, tasks)

    training = replace(preset.training, seed=args.seed)
    measure = Questions(setup.prompter, args.metric, 64)  # tokens of an answer, as in SEAL
    return ByLine(setup.engine, measure, preset.spec, training, SignificanceTest("sign"), args.chunk, setup.workers)


def windows(passages: list[Passage]) -> list[Any]:
    """Return the passages as windows to dream about, each after its title."""
    from sleep_trl.data.samples import Window

    return [Window(p["id"], p["title"], f"{p['title']}\n{p['context']}") for p in passages]


def train(args: argparse.Namespace, setup: Setup) -> list[dict[str, Any]]:
    """Train the dreamer on the training passages."""
    from seal_presets import SEAL_SQUAD

    from sleep_trl.data.templates import Template

    template = Template.load(args.template).respond
    passages = read_passages(args.train_passages, "train", args.train_limit)
    rows = [
        {
            "prompt": setup.prompter.text(template, context=window.text, source=window.source),
            "task_id": passage["id"],
            "context": passage["context"],
            "questions": [{"question": q.question, "answers": q.answers} for q in make_task(passage).questions],
        }
        for passage, window in zip(passages, windows(passages), strict=True)
    ]
    if setup.prompter.has_chat:
        rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    options = {"selection": args.selection, "select_top_k": args.select_top_k, "select_random_k": args.select_random_k}
    options |= {"num_generations": args.dreams, "max_completion_length": args.max_dream_tokens}
    return train_dreamer(args, setup, rows, make_evaluator(args, setup, SEAL_SQUAD, passages), **options)


def evaluate(args: argparse.Namespace, setup: Setup) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Dream about the passages, learn the dreams, and ask the questions."""
    from seal_presets import SEAL_SQUAD, SEAL_SQUAD_MANY

    from sleep_trl.data.templates import Template
    from sleep_trl.dreams import Task
    from sleep_trl.rollout import Sampling

    template = Template.load(args.template).respond
    passages = read_passages(args.passages, "validation", args.limit)
    prompts = [setup.prompter(template, context=w.text, source=w.source) for w in windows(passages)]
    asked = [prompt for prompt in prompts for _ in range(args.dreams)]
    sampling = Sampling(args.max_dream_tokens, 1.0, asked[0][2], args.seed)
    written = [completion.text for completion in setup.engine.generate([ids for ids, _, _ in asked], sampling)]
    about = [passage for passage in passages for _ in range(args.dreams)]
    to_learn = [sequences(setup, passage, text) for passage, text in zip(about, written, strict=True)]
    if args.n == 1:
        preset, tasks = SEAL_SQUAD, [make_task(passage) for passage in passages]
        alone = [preset.job(p["id"], sequences(setup, p)) for p in passages]
        dreams = [preset.job(f"{i}", rows) for i, rows in enumerate(to_learn)]
        owners = [task for task in tasks for _ in range(args.dreams)]
    else:
        preset, tasks, alone, dreams = SEAL_SQUAD_MANY, [], [], []
        for start in range(0, len(passages), args.n):
            group = passages[start : start + args.n]
            tasks.append(Task(f"group {start}", "", tuple(q for p in group for q in make_task(p).questions)))
            alone.append(preset.job(f"alone {start}", [row for p in group for row in sequences(setup, p)]))
            rows = to_learn[start * args.dreams : (start + args.n) * args.dreams]
            dreams.append(preset.job(f"group {start}", [row for own in rows for row in own]))
        owners = tasks
    evaluator = make_evaluator(args, setup, preset, passages)
    before = evaluator.score_as_is(tasks)
    of_alone, of_dreams = evaluator.attempt(alone, tasks), evaluator.attempt(dreams, owners)
    result = {
        "n": args.n,
        "passages": len(passages),
        "questions": sum(map(len, before)),
        "metric": args.metric,
        "as_it_is": average([[row] for row in before], args.n),
        "passage_alone": average([[a.scores] for a in of_alone], args.n),
        "dreams": average(
            [[a.scores for a, o in zip(of_dreams, owners, strict=True) if o is t] for t in tasks], args.n
        ),
        "failed": sum(attempt.scores is None for attempt in (*of_alone, *of_dreams)),
    }
    records = [{"passage": p["id"], "dream": text} for p, text in zip(about, written, strict=True)]
    if args.n == 1:
        for record, attempt in zip(records, of_dreams, strict=True):
            record |= {"scores": attempt.scores, "error": attempt.error}
    return result, records


def average(by_task: list[list[list[float] | None]], n: int) -> float | None:
    """Average over questions, then over a passage's dreams, then over passages; with many passages in one adapter over
    all questions alike. As in SEAL; failed dreams are left out."""
    if n > 1:
        values = [score for rows in by_task for row in rows if row is not None for score in row]
        return sum(values) / len(values) if values else None
    means = [[sum(row) / len(row) for row in rows if row is not None] for rows in by_task]
    found = [sum(values) / len(values) for values in means if values]
    return sum(found) / len(found) if found else None


def estimate(args: argparse.Namespace) -> dict[str, Any]:
    """Estimate the evaluation's cost. Assumed (ours): 160 tokens a passage, 40 more of prompt, 300 a dream, 4.87
    questions of 30 tokens, answered in 64."""
    passages, dreams = args.limit, args.limit * args.dreams
    epochs = 10 if args.n == 1 else 3
    askings = dreams + 2 * passages if args.n == 1 else 3 * passages
    return cost(
        args.estimate,
        written=dreams * (160 + 40 + 300),
        learnt=epochs * (dreams * (300 + 160) + passages * 160),
        scored=askings * 4.87 * (30 + 64),
    )


def main() -> None:
    args = parse_arguments()
    if args.estimate is not None:
        finish(args, f"Estimate, n = {args.n}", estimate(args), [])
        return
    setup = load(args)
    records = train(args, setup) if args.rounds else []
    result, evaluated = evaluate(args, setup)
    rounds = sorted({record["step"] for record in records})
    result["improving_by_round"] = [
        sum(r["rewarded"] for r in records if r["step"] == step) / sum(r["step"] == step for r in records)
        for step in rounds
    ]
    finish(args, f"SEAL on SQuAD, n = {args.n}", result, [*records, *evaluated])


if __name__ == "__main__":
    main()
