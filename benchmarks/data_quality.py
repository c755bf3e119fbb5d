"""What the teacher of a night wrote, held to the documents: how much of it is right, and what it leaves out.

    python benchmarks/data_quality.py runs/monday

The rule, in place of a human reader: an answer is right if all of its content words stand in the text that the teacher
read and, where its question asks the same as a labelled question of the document, it agrees with a labelled answer.
Content words are those that are not among the most frequent of English and do not stand in the question already; an
answer without any is not judged. Two questions ask the same if at least half of their content words are common to both
(Jaccard). A paraphrase fails, and a wrong answer from the words of the text passes if no labelled question asks the
same; questions are not judged at all, so an invented name in one passes: the rule estimates, it does not prove. A
sentence is covered if a kept sample was written about it or, in runs that do not record that, if an answer has content
words and all stand in it. Documents collide if they share a prompt.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import Row, argument_parser, environment, report, rerun_with

SAME_QUESTION = 0.5  # Jaccard index of two questions' content words
FREQUENT = frozenset(
    "a an the and or but if of in on at to for from by with as is are was were be been being it its this that these "
    "those there here he she they them his her their we you i my your our not no yes do does did has have had can "
    "could will would should may might must who whom whose which what when where why how than then so also very only "
    "one".split()
)


@dataclass(frozen=True)
class Written:
    """A kept sample as a reader sees it."""

    document: str
    question: str
    answer: str
    text: str  # what the teacher read
    sentence: str | None = None  # what it was asked about, if the run records it


def content_words(text: str, without: str = "") -> set[str]:
    """Return the words of a text that say something, normalized as the metrics do, less those of another text."""
    from sleep_trl.evaluation.tokens import answer_tokens

    return set(answer_tokens(text)) - FREQUENT - set(answer_tokens(without))


def asks_the_same(question: str, other: str) -> bool:
    """Whether two questions ask the same, by their content words."""
    mine, theirs = content_words(question), content_words(other)
    return bool(mine | theirs) and len(mine & theirs) >= SAME_QUESTION * len(mine | theirs)


def is_right(sample: Written, labelled: Iterable[tuple[str, Sequence[str]]]) -> bool | None:
    """Judge an answer by the rule above.

    Args:
        sample (`Written`):
            The question, its answer and the text.
        labelled (`Iterable[tuple[str, Sequence[str]]]`):
            Questions about the document, each with its accepted answers.

    Returns:
        `bool`, or `None` if the answer has no content word of its own.
    """
    from sleep_trl.evaluation.metrics import contains

    if not (words := content_words(sample.answer, without=sample.question)):
        return None
    same = [answers for question, answers in labelled if asks_the_same(sample.question, question)]
    agrees = any(contains(sample.answer, a) or contains(a, sample.answer) for answers in same for a in answers)
    return words <= content_words(sample.text) and (agrees or not same)


def collisions(prompts: Iterable[tuple[str, str]]) -> int:
    """Return how many prompts are those of two or more documents, given pairs of document and prompt."""
    documents: dict[str, set[str]] = defaultdict(set)
    for document, prompt in prompts:
        documents[prompt].add(document)
    return sum(len(found) > 1 for found in documents.values())


def uncovered(sentences: Iterable[str], samples: Sequence[Written]) -> list[str]:
    """Return the sentences of a document that none of its samples is about."""
    about = {sample.sentence for sample in samples if sample.sentence is not None}
    own = [words for s in samples if s.sentence is None and (words := content_words(s.answer, without=s.question))]
    return [s for s in sentences if s not in about and not any(words <= content_words(s) for words in own)]


def labelled_questions(file: Path) -> dict[str, list[tuple[str, Sequence[str]]]]:
    """Return the labelled questions of each document by id, in both wordings, with their answers."""
    labels = {}
    for number, line in enumerate(file.read_text("utf-8").split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            asked = [*row.get("questions", ()), *row.get("other_words", ())]
            labels[row.get("id", f"{file.name}:{number}")] = [(q["question"], q["answers"]) for q in asked]
    return labels


def read_written(run: Path) -> tuple[list[Written], list[tuple[str, str]], dict[str, list[str]], dict[str, int]]:
    """Read what the teacher of a run wrote.

    Args:
        run (`Path`):
            Folder of a run whose data set is written.

    Returns:
        `tuple`: the kept samples about its memories; their documents and prompts; the sentences that state something,
        by document; and the number of dropped samples by reason.
    """
    from sleep_trl.config import RunConfig
    from sleep_trl.data.templates import Template
    from sleep_trl.data.windows import find_statements
    from sleep_trl.planning.inputs import RunInputs
    from sleep_trl.runs.files import read_json
    from sleep_trl.runs.folder import RunFolder

    folder = RunFolder(run)
    config = RunConfig.model_validate(read_json(folder.config)).model_copy(update={"resume": False})
    written = read_json(folder.phases / "write_dataset.json")["result"]
    inputs = RunInputs(config)
    by_id = {memory.id: (memory, windows) for memory, windows in zip(inputs.memories, inputs.windows, strict=True)}
    frames = {name: _frame(inputs.prompter, Template.load(name)) for name in config.dataset.templates}
    rows = [row for row in written["samples"] if row["part"] == "memory"]
    samples = [
        Written(
            row["memory_id"],
            _between(row["prompt"], *frames.get(row["template"], ("", ""))),
            row["reference"],
            f"{by_id[row['memory_id']][0].source}\n{by_id[row['memory_id']][1][row.get('window', 0)]}",
            row.get("sentence"),
        )
        for row in rows
    ]
    sentences = {name: find_statements(memory.text) for name, (memory, _) in by_id.items()}
    return samples, [(row["memory_id"], row["prompt"]) for row in rows], sentences, written["dropped"]


def _frame(prompter: Any, template: Any) -> tuple[str, str]:
    """Return what stands before and after the request in a student's prompt."""
    mark = "\ue123"
    before, _, after = prompter(template.respond, request=mark, source="")[1].partition(mark)
    return before, after


def _between(prompt: str, before: str, after: str) -> str:
    return prompt.removeprefix(before).removesuffix(after).strip()


def examine(run: Path) -> dict[str, Any]:
    """Return the figures of a run's data set: shares in [0, 1], or `None` where there is nothing to judge."""
    from sleep_trl.runs.files import read_json
    from sleep_trl.runs.folder import RunFolder

    samples, prompts, sentences, dropped = read_written(run)
    memories = Path(read_json(RunFolder(run).config)["memories"])
    labels = labelled_questions(memories) if memories.is_file() else {}
    verdicts = [is_right(sample, labels.get(sample.document, ())) for sample in samples]
    judged = [verdict for verdict in verdicts if verdict is not None]
    left = {name: uncovered(found, [s for s in samples if s.document == name]) for name, found in sentences.items()}
    stated, missing = sum(map(len, sentences.values())), sum(map(len, left.values()))
    return {
        "samples": len(samples),
        "judged": len(judged),
        "faithful": sum(judged) / len(judged) if judged else None,
        "wrong": [
            {"document": s.document, "question": s.question, "answer": s.answer}
            for s, verdict in zip(samples, verdicts, strict=True)
            if verdict is False
        ],
        "sentences": stated,
        "coverage": 1 - missing / stated if stated else None,
        "uncovered": {name: found for name, found in left.items() if found},
        "collisions": collisions(prompts),
        "dropped": dropped,
    }


def tabulate(result: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [("", "")]
    rows += [(name, _shown(result[name])) for name in ("samples", "judged", "faithful", "sentences", "coverage")]
    rows += [("collisions", str(result["collisions"]))]
    return rows + [(f"dropped: {reason}", str(count)) for reason, count in result["dropped"].items()]


def _shown(value: float | None) -> str:
    return "nothing to judge" if value is None else f"{value:.1%}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argument_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run; without one, of a short night of its own")
    arguments = parser.parse_args()
    rerun_with(environment())
    if (run := arguments.run) is None:
        from real_night import short_night

        run = short_night()
    result = examine(run)
    report(f"What the teacher wrote in {run}", tabulate(result), result, arguments.json)


if __name__ == "__main__":
    main()
