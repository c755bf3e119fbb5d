"""An invented little town: who keeps which goat, who rows which boat, and what is odd about it.

Everything is made up and follows from a seed. A fact connects a person and a thing, and both have names of two invented
syllables. A passage is a few facts. The first syllables of all names in a passage differ, so one syllable is enough to
tell them apart. Run this file to write the quickstart's memories again:

    python examples/pretrain_tiny/world.py --help
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parents[1] / "quickstart"
FIRST_SYLLABLES = tuple("Ba Bo Da De Fe Go Ha Jo Ka Ki La Lo Ma Mi Ne Pa Pe Ro Ru Sa Te To Wa Zo".split())
SECOND_SYLLABLES = tuple(
    "bbin bo ddle ffle gus kin lbo lio lla lu mble mo nda nno pkin ppo ra rri sca tto vo wick xi zzo".split()
)
MAX_FACTS = len(FIRST_SYLLABLES) // 2

PROMPT = "{passage}\nQuestion: {question}\nAnswer:"
COMPLETION = " {answer}."
RESTATEMENT = "In other words: {statement}"


@dataclass(frozen=True)
class Relation:
    """Sentence templates for one kind of thing; the slots are {s}ubject, {t}hing and {quirk}."""

    name: str
    statement: str
    restatement: str
    paraphrase: str
    reverse: str
    quirks: tuple[str, ...]

    @property
    def question(self) -> str:
        """The forward question."""
        return f"What is the {self.name} of {{s}} called?"


def _owned(name: str, verb: str, base: str, participle: str, *quirks: str) -> Relation:
    """The usual wording: somebody does something with a thing that has a name."""
    return Relation(
        name=name,
        statement=f"{{s}} {verb} the {name} {{t}}, {{quirk}}.",
        restatement=f"The {name} {{t}}, {{quirk}}, is {participle} by {{s}}.",
        paraphrase=f"Which {name} does {{s}} {base}?",
        reverse=f"Who {verb} the {name} {{t}}?",
        quirks=quirks,
    )


RELATIONS = (
    Relation(
        name="goat",
        statement="{s} keeps a goat called {t}, {quirk}.",
        restatement="The goat called {t}, {quirk}, belongs to {s}.",
        paraphrase="Which goat does {s} keep?",
        reverse="Who keeps the goat {t}?",
        quirks=("who eats hats", "who sneezes at brides", "who reads the menu first"),
    ),
    Relation(
        name="cat",
        statement="{s} feeds a cat named {t}, {quirk}.",
        restatement="The cat named {t}, {quirk}, is fed by {s}.",
        paraphrase="Which cat does {s} feed?",
        reverse="Who feeds the cat {t}?",
        quirks=("who naps in boots", "who is mayor on Mondays", "who fears cheese"),
    ),
    Relation(
        name="street",
        statement="{s} lives in {t} Street, {quirk}.",
        restatement="{t} Street, {quirk}, is home to {s}.",
        paraphrase="Which street does {s} live in?",
        reverse="Who lives in {t} Street?",
        quirks=("where it rains upwards", "which moves on Sundays", "where ducks have right of way"),
    ),
    _owned("boat", "rows", "row", "rowed",
           "which leaks a little", "which prefers dry land", "which knows the way home"),
    _owned("inn", "runs", "run", "run",
           "where soup is free", "where ghosts pay double", "where the beds snore"),
    _owned("fiddle", "plays", "play", "played",
           "which has no strings", "which only knows waltzes", "which makes spoons weep"),
    _owned("bell", "rings", "ring", "rung",
           "which wakes the owls", "which is late for noon", "which tastes of plums"),
    _owned("bridge", "sweeps", "sweep", "swept",
           "which hums in the fog", "which has one end", "where trolls play chess"),
    _owned("lantern", "lights", "light", "lit",
           "which attracts poets", "which shines around corners", "which dislikes the moon"),
    _owned("kite", "flies", "fly", "flown",
           "which fears heights", "which sends postcards", "which once ate a cloud"),
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question, every answer that counts as right, and how it was put."""

    question: str
    answers: tuple[str, ...]
    form: str  # "forward", "paraphrase" or "reversed"


@dataclass(frozen=True)
class Fact:
    """One thing that is true in the town."""

    subject: str
    relation: Relation
    thing: str
    quirk: str

    def _fill(self, template: str) -> str:
        return template.format(s=self.subject, t=self.thing, quirk=self.quirk)

    @property
    def statement(self) -> str:
        """The fact as in a passage, person first."""
        return self._fill(self.relation.statement)

    @property
    def restatement(self) -> str:
        """The same fact in other words, thing first."""
        return self._fill(self.relation.restatement)

    def ask(self, form: str) -> Question:
        """The question about this fact in one of the forms "forward", "paraphrase" and "reversed"."""
        templates = {
            "forward": (self.relation.question, self.thing),
            "paraphrase": (self.relation.paraphrase, self.thing),
            "reversed": (self.relation.reverse, self.subject),
        }
        if form not in templates:
            raise ValueError(f"Unknown form {form!r}; choose one of {sorted(templates)}.")
        template, answer = templates[form]
        return Question(self._fill(template), (answer,), form)


@dataclass(frozen=True)
class Passage:
    """A few facts in one text."""

    facts: tuple[Fact, ...]

    @property
    def text(self) -> str:
        """The passage as one paragraph."""
        return " ".join(fact.statement for fact in self.facts)

    def questions(self, *forms: str) -> list[Question]:
        """The questions about all facts, form after form."""
        return [fact.ask(form) for form in forms for fact in self.facts]


def random_passage(rng: random.Random, facts: int) -> Passage:
    """Draw one passage independently of all others (for pretraining).

    Args:
        rng: Source of randomness.
        facts: Number of facts, 1 to `MAX_FACTS`.
    """
    _check_size(facts)
    names = [first + rng.choice(SECOND_SYLLABLES) for first in rng.sample(FIRST_SYLLABLES, 2 * facts)]
    return _make_passage(rng, names, rng.choices(RELATIONS, k=facts))


def town(seed: int, passages: int, facts_per_passage: int, exclude: Iterable[Passage] = ()) -> list[Passage]:
    """Draw the passages of one night.

    No name is used twice while fresh ones last (576 in all, which is eight nights of 36 facts). After that names are
    reused, but never the same person with the same kind of thing, nor the same name for two things of a kind.

    Args:
        seed: The same seed and `exclude` give the same town.
        passages: Number of passages.
        facts_per_passage: Facts in each of them, 1 to `MAX_FACTS`.
        exclude: Passages of other nights whose names are taken.
    """
    _check_size(facts_per_passage)
    rng = random.Random(seed)
    used = list(exclude)
    earlier = len(used)
    while len(used) < earlier + passages:
        used.append(_fresh_passage(rng, facts_per_passage, used))
    return used[earlier:]


def _check_size(facts: int) -> None:
    if not 1 <= facts <= MAX_FACTS:
        raise ValueError(f"A passage holds 1 to {MAX_FACTS} facts, not {facts}.")


def _make_passage(rng: random.Random, names: Sequence[str], relations: Sequence[Relation]) -> Passage:
    """Make facts from names (subject, thing, subject, thing, ...) and relations, each with a quirk."""
    pairs = zip(names[::2], names[1::2], strict=True)
    return Passage(
        tuple(
            Fact(subject, relation, thing, rng.choice(relation.quirks))
            for (subject, thing), relation in zip(pairs, relations, strict=True)
        )
    )


def _fresh_passage(rng: random.Random, facts: int, used: Sequence[Passage]) -> Passage:
    """Draw passages until one does not clash with those used before."""
    known = [fact for passage in used for fact in passage.facts]
    subjects = {(fact.subject, fact.relation.name) for fact in known}
    things = {(fact.thing, fact.relation.name) for fact in known}
    uses = dict.fromkeys(all_names(), 0)
    for fact in known:
        uses[fact.subject] += 1
        uses[fact.thing] += 1
    for _ in range(1000):
        relations = rng.sample(RELATIONS * 2, facts)  # a kind of thing at most twice in a passage
        passage = _make_passage(rng, _rare_names(rng, 2 * facts, uses), relations)
        clash = any(
            (fact.subject, fact.relation.name) in subjects or (fact.thing, fact.relation.name) in things
            for fact in passage.facts
        )
        if not clash:
            return passage
    raise RuntimeError(f"No free names after {len(known)} facts; ask for fewer nights.")


def _rare_names(rng: random.Random, count: int, uses: dict[str, int]) -> list[str]:
    """Draw names with distinct first syllables, the least used first."""
    best: list[tuple[int, float, str]] = []
    for first in FIRST_SYLLABLES:
        names = [first + second for second in SECOND_SYLLABLES]
        fewest = min(uses[name] for name in names)
        free = [name for name in names if uses[name] == fewest]
        # A syllable with more unused names is more likely to come early.
        best.append((fewest, rng.random() ** (1 / len(free)) * -1, rng.choice(free)))
    chosen = [name for _, _, name in sorted(best)[:count]]
    rng.shuffle(chosen)
    return chosen


def all_names() -> list[str]:
    """Every name that a person or a thing can have."""
    return [first + second for first in FIRST_SYLLABLES for second in SECOND_SYLLABLES]


def record(passage: Passage, identity: str, source: str) -> dict[str, Any]:
    """Make the row of a memory file; the gates use `questions`, `other_words` holds the rest."""

    def rows(*forms: str) -> list[dict[str, Any]]:
        return [{"question": q.question, "answers": list(q.answers), "form": q.form} for q in passage.questions(*forms)]

    return {
        "id": identity,
        "source": source,
        "text": passage.text,
        "questions": rows("forward"),
        "other_words": rows("paraphrase", "reversed"),
    }


def write_records(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def nights(seed: int, count: int = 3, passages: int = 6, facts_per_passage: int = 6) -> list[list[Passage]]:
    """Draw several nights, none of which repeats a fact of an earlier one."""
    drawn: list[list[Passage]] = []
    for night in range(count):
        used = [passage for earlier in drawn for passage in earlier]
        drawn.append(town(seed + night, passages, facts_per_passage, exclude=used))
    return drawn


def write_town(folder: Path, seed: int, skill_passages: int) -> None:
    """Write three nights of memories, the questions of the skill probe, and prompts for self-replay."""
    for number, night in enumerate(nights(seed), start=1):
        rows = [
            record(passage, f"night{number}-{page}", f"The Town Crier, night {number}, page {page}")
            for page, passage in enumerate(night, start=1)
        ]
        write_records(folder / f"memories{'' if number == 1 else f'_night{number}'}.jsonl", rows)
    rng = random.Random(f"skill {seed}")
    rows = [
        record(random_passage(rng, 4 + page % 5), f"skill-{page}", "A town that never was")
        for page in range(skill_passages)
    ]
    write_records(folder / "skill.jsonl", rows)
    rng = random.Random(f"general {seed}")
    pages = [random_passage(rng, 4 + page % 5) for page in range(1024)]
    write_records(folder / "general.jsonl", [{"text": ask_anything(rng, passage)} for passage in pages])


def ask_anything(rng: random.Random, passage: Passage) -> str:
    """Ask one question about a passage and leave the answer to the model."""
    form = rng.choice(("forward", "forward", "paraphrase", "reversed"))
    return PROMPT.format(passage=passage.text, question=rng.choice(passage.questions(form)).question)


def main() -> None:
    """Write the memory files."""
    parser = argparse.ArgumentParser(description="Write the town's memories as JSONL files.")
    parser.add_argument("--output", type=Path, default=QUICKSTART, help="folder to write to")
    parser.add_argument("--seed", type=int, default=1, help="seed of the town")
    parser.add_argument("--skill-passages", type=int, default=180, help="passages in skill.jsonl")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_town(arguments.output, arguments.seed, arguments.skill_passages)


if __name__ == "__main__":
    main()
