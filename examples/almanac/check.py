"""Check the documents of the almanac and say how they are spread: `python examples/almanac/check.py`.

Prints how many documents and questions there are. Exit code 1 and one line for each problem if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Rules(NamedTuple):
    """What is allowed in a file; pairs are the least and the most."""

    documents: tuple[int, int]
    words: tuple[int, int] = (40, 600)  # in a text
    sentences: tuple[int, int] = (1, 600)  # in a text, as `sentences` counts them
    questions: tuple[int, int] = (3, 6)  # about a document
    answer: int = 15  # at most; words of an answer
    forms: tuple[str, ...] = ("plain", "two_sentences")


NOTES = Rules((1, 1000), words=(35, 90), sentences=(3, 6), questions=(4, 4), answer=4, forms=("plain",))
FILES = {
    "choose.jsonl": Rules((20, 20)),
    "measure.jsonl": Rules((40, 1000)),
    "second_night.jsonl": Rules((12, 1000)),
    "notes_choose.jsonl": NOTES._replace(documents=(20, 20)),
    "notes_measure.jsonl": NOTES._replace(documents=(40, 1000)),
    "notes_second_night.jsonl": NOTES._replace(documents=(12, 1000)),
}
SETS = (tuple(FILES)[:3], tuple(FILES)[3:])  # a set's first two files: the same kinds, and about the same lengths
MEAN_WORDS = 0.1  # by how much their mean lengths may differ
COMBINED = 1 / 3  # of the documents have a question that needs two sentences, where a file may have such
OVERLAP = 0.4  # at most; of the words of a question and its twin, names and function words aside
CONTENT = 4  # words that make a sentence one with content
KEYS = {"id": str, "source": str, "kind": str, "text": str, "questions": list, "other_words": list}

FUNCTION_WORDS = set(
    """a about after an and any are as at be been before but by can could did do does for from had has have he her his
    how if in into is it its many may much must no not of on one or out she should so than that the their them there
    they to under until up was were what when where which while who whom whose why will with would""".split()
)
# Capitalised words that may stand in several documents without being anybody's name.
NOT_NAMES = set(
    """January February March April May June July August September October November December Monday Tuesday
    Wednesday Thursday Friday Saturday Sunday Mondays Tuesdays Wednesdays Thursdays Fridays Saturdays Sundays
    Mon Tue Wed Thu Fri Sat Sun Mr Mrs Miss Ms Messrs Dr Professor Captain St I I'm I've A B C D E F Institute
    Lane Port Quay Society Affected Born Chat E-mail Obituary Stir""".split()
)

Document = dict[str, Any]


def read(path: Path) -> list[Document]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def words(text: str) -> list[str]:
    """Return the words of a text as they are spelt, without a possessive 's; "v3.5" and "two-thirds" are one word."""
    found = re.findall(r"[^\W_]+(?:[.,'’:-][^\W_]+)*", text)
    return [re.sub(r"['’]s$", "", word) for word in found]


def plain_words(text: str) -> set[str]:
    """Return the words of a text in lower case."""
    return {word.casefold() for word in words(text)}


def holds(text: str, answer: str) -> bool:
    """Say whether an answer stands in a text, whatever the case, not as a part of longer words."""
    pattern = r"\s+".join(map(re.escape, answer.split()))
    return re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE) is not None


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each line of a table as one; those of less than `CONTENT` words are left out."""
    parts = [part for line in text.split("\n") for part in re.split(r"(?<=[.!?])[\"*)]* +(?=[\"*(]*[A-Z0-9£€])", line)]
    return [part.strip() for part in parts if len(words(part)) >= CONTENT]


def capitalised(text: str) -> set[str]:
    """Return the words of a text that begin with a capital letter."""
    return {word for word in words(text) if word[0].isupper()}


def overlap(question: str, other: str) -> float:
    """Return the share of common words (Jaccard), leaving out function words, names and numbers."""
    first, second = (
        {word.casefold() for word in words(text)[1:] if word.islower()} - FUNCTION_WORDS for text in (question, other)
    )
    return len(first & second) / max(len(first | second), 1)


def asked(document: Document) -> tuple[int, int]:
    """Return how many sentences of a document have a question, and how many it has.

    A question belongs to the sentence with one of its answers that shares the most words with it.
    """
    found, parts = set(), sentences(document["text"])
    for question in document["questions"]:
        having = [i for i, part in enumerate(parts) if any(holds(part, answer) for answer in question["answers"])]
        wanted = plain_words(question["question"])
        if having:
            found.add(max(having, key=lambda i: len(wanted & plain_words(parts[i]))))
    return len(found), len(parts)


def outside(count: int, what: str, allowed: tuple[int, int]) -> Iterator[str]:
    """Yield a line if a count is not allowed."""
    if not allowed[0] <= count <= allowed[1]:
        yield f"{count} {what}; allowed are {allowed[0]} to {allowed[1]}"


def wrong_form(document: Document, rules: Rules) -> Iterator[str]:
    """Yield what is wrong with the form of a row."""
    for key, kind in KEYS.items():
        if not isinstance(document.get(key), kind) or not document[key]:
            yield f"`{key}` is missing or empty"
    for key in ("questions", "other_words"):
        for number, row in enumerate(document.get(key) or [], 1):
            answers = row.get("answers")
            if not row.get("question") or not answers or not all(answers):
                yield f"`{key}` {number} lacks a question or an answer"
            if row.get("form") not in rules.forms:
                yield f"`{key}` {number} has the form {row.get('form')!r}; allowed are {', '.join(rules.forms)}"


def wrong_inside(document: Document, rules: Rules) -> Iterator[str]:
    """Yield what is wrong with a document by itself."""
    text, questions, others = document["text"], document["questions"], document["other_words"]
    yield from outside(len(text.split()), "words", rules.words)
    yield from outside(len(sentences(text)), "sentences", rules.sentences)
    yield from outside(len(questions), "questions", rules.questions)
    if len(questions) != len(others):
        yield f"{len(questions)} questions and {len(others)} in other words"
    for number, question in enumerate(questions, 1):
        for answer in question["answers"]:
            if not holds(text, answer):
                yield f"question {number}: the answer {answer!r} does not stand in the text"
            if len(answer.split()) > rules.answer:
                yield f"question {number}: the answer {answer!r} is longer than {rules.answer} words"
    for number, (question, other) in enumerate(zip(questions, others, strict=False), 1):
        if (question["answers"], question["form"]) != (other["answers"], other["form"]):
            yield f"question {number}: its other words have different answers or another form"
        share = overlap(question["question"], other["question"])
        if share > OVERLAP:
            yield f"question {number}: its other words share {share:.0%} of the words; allowed are {OVERLAP:.0%}"
        for row in (question, other):
            yield from (
                f"question {number}: the answer {answer!r} stands in the question {row['question']!r}"
                for answer in row["answers"]
                if holds(row["question"], answer)
            )


def wrong_between(documents: list[tuple[str, Document]]) -> Iterator[str]:
    """Yield what is wrong between documents, given with the place of each."""
    ids, titles, texts, owners = Counter(), Counter(), Counter(), defaultdict(list)
    in_documents: Counter[str] = Counter()
    every_word: set[str] = set()
    for place, document in documents:
        whole = f"{document['source']}\n{document['text']}"
        ids[document["id"]] += 1
        titles[document["source"].casefold()] += 1
        rows = document["questions"] + document["other_words"]
        texts.update(row["question"].casefold() for row in rows)
        in_documents.update(plain_words(whole))
        every_word.update(word for part in (whole, *(row["question"] for row in rows)) for word in words(part))
        for name in capitalised(whole) - NOT_NAMES:
            owners[name].append(place)
    yield from (f"the id {name!r} stands {count} times" for name, count in ids.items() if count > 1)
    yield from (f"the title {name!r} stands {count} times" for name, count in titles.items() if count > 1)
    yield from (f"the question {name!r} stands {count} times" for name, count in texts.items() if count > 1)
    for name, places in sorted(owners.items()):
        # What is also written small is no name: "Council", "council".
        if len(places) > 1 and name.lower() not in every_word:
            yield f"the name {name!r} stands in several documents: {', '.join(places)}"
    for place, document in documents:
        title = plain_words(document["source"])
        if not any(in_documents[word] == 1 for word in title):
            yield f"{place}: the title has no word of its own"
        own = {word for word in plain_words(document["text"]) if in_documents[word] == 1}
        for key in ("questions", "other_words"):
            for number, row in enumerate(document[key], 1):
                if not own & plain_words(row["question"]):
                    yield f"{place}: `{key}` {number} has no word that only its text has"


def wrong_spread(files: dict[str, list[Document]]) -> Iterator[str]:
    """Yield what is wrong with the numbers of documents and of kinds."""
    for name, rules in FILES.items():
        yield from (f"{name}: {problem}" for problem in outside(len(files[name]), "documents", rules.documents))
    for even in (names[:2] for names in SETS):
        kinds = [{document["kind"] for document in files[name]} for name in even]
        if kinds[0] != kinds[1]:
            yield f"only one of {' and '.join(even)} has the kinds {', '.join(sorted(kinds[0] ^ kinds[1]))}"
        means = [sum(len(d["text"].split()) for d in files[name]) / max(len(files[name]), 1) for name in even]
        if abs(means[0] - means[1]) > MEAN_WORDS * max(means):
            yield f"the mean lengths of {' and '.join(even)} are too far apart: {means[0]:.0f} and {means[1]:.0f} words"
    for name, documents in files.items():
        combined = sum(any(q["form"] == "two_sentences" for q in d["questions"]) for d in documents)
        if "two_sentences" in FILES[name].forms and combined < COMBINED * len(documents):
            yield f"{name}: only {combined} of {len(documents)} documents have a question for two sentences"


def problems(files: dict[str, list[Document]]) -> list[str]:
    """Return one line for each thing that is wrong, with its file and document; nothing if all is well.

    Args:
        files (`dict[str, list[Document]]`):
            The documents of each file of `FILES`, by its name.
    """
    placed = [(name, f"{name}, {row.get('id')}", row) for name, documents in files.items() for row in documents]
    found = [f"{place}: {problem}" for name, place, row in placed for problem in wrong_form(row, FILES[name])]
    if found:
        return found  # the rest would fall over these
    found = [f"{place}: {problem}" for name, place, row in placed for problem in wrong_inside(row, FILES[name])]
    return found + list(wrong_between([(place, row) for _, place, row in placed])) + list(wrong_spread(files))


def tables(files: dict[str, list[Document]]) -> str:
    """Return how many documents, words and questions the files have, and how many documents of each kind."""
    lines = [f"{'':24}{'documents':>10}{'words: mean':>13}{'least':>7}{'most':>6}{'questions':>11}{'asked about':>13}"]
    for name, documents in files.items():
        lengths = [len(document["text"].split()) for document in documents]
        having, of = map(sum, zip(*map(asked, documents), strict=True))
        count = sum(len(document["questions"]) for document in documents)
        lines.append(
            f"{name:24}{len(documents):10}{sum(lengths) / len(lengths):13.0f}{min(lengths):7}{max(lengths):6}{count:11}"
            f"{having / of:13.0%}"
        )
    lines += ["", "asked about: sentences with content that have at least one question"]
    for names in SETS:
        kinds = [Counter(document["kind"] for document in files[name]) for name in names]
        lines += ["", f"{'kind':14}" + "".join(f"{name:>26}" for name in names)]
        lines += [
            f"{kind:14}" + "".join(f"{count[kind]:26}" for count in kinds) for kind in sorted(set().union(*kinds))
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where the files are")
    folder = parser.parse_args().folder
    files = {name: read(folder / name) for name in FILES}
    found = problems(files)
    if found:
        print(f"{len(found)} problem{'s' * (len(found) > 1)}:", *found, sep="\n", file=sys.stderr)
        return 1
    print(tables(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
