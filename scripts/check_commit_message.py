"""Check a commit message; git's commit-msg hook, installed by `pre-commit install`.

The subject has at most 72 characters, is in the imperative ("Fold gated experts", not "Folded" or "Folds") and ends
without a period. A blank line and a body that says why follow, unless the subject begins with "Fix typo". Whether a
verb is in the imperative is guessed from its ending. Merges, reverts and `fixup!` commits pass.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LONGEST = 72
WITHOUT_BODY = re.compile(r"Fix (a )?typos?\b", re.IGNORECASE)
WRITTEN_BY_GIT = ("Merge ", 'Revert "', "fixup! ", "squash! ", "amend! ")
SCISSORS = re.compile(r"^. -+ >8 -+$", re.MULTILINE)  # what follows is the diff of `git commit --verbose`

IMPERATIVE = frozenset(
    # verbs that end as other forms do
    "address process pass discuss focus access express compress suppress bypass assess guess press miss cross bias "
    "alias canvas bring string ping embed feed need proceed exceed speed seed shed spread read bleed breed weed".split()
)
OTHER_FORMS = frozenset(
    "a an the this that these it we i there when with without for from in on of to no not now all some more "
    "made wrote written did done gave taken took went was were is are has had ran".split()
)


def find_problems(message: str) -> list[str]:
    """Return what is wrong with a commit message, one line each; comments of git's template are ignored."""
    text = SCISSORS.split(message)[0]
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith("#")]
    lines = "\n".join(lines).strip("\n").split("\n")
    subject, rest = lines[0], lines[1:]
    if not subject:
        return ["The message is empty. Write a subject line."]
    if subject.startswith(WRITTEN_BY_GIT):
        return []
    problems = []
    if len(subject) > LONGEST:
        problems.append(f"The subject has {len(subject)} characters; at most {LONGEST} are allowed. Shorten it.")
    if subject.endswith("."):
        problems.append("The subject ends with a period. Remove it.")
    first = subject.split()[0]
    if not is_imperative(first):
        problems.append(f"The subject begins with {first!r}. Begin with a capitalized imperative, such as 'Add'.")
    if rest and rest[0]:
        problems.append(f"The second line is {rest[0]!r}. Leave it blank.")
    if not any(rest) and not WITHOUT_BODY.match(subject):
        problems.append("There is no body. Say why, below a blank line; only 'Fix typo' needs none.")
    return problems


def is_imperative(word: str) -> bool:
    """Whether a word can be a capitalized verb in the imperative, as far as its ending tells."""
    if not word[:1].isupper() or not word.rstrip(",").replace("-", "").isalpha():
        return False
    lower = word.rstrip(",").lower()
    if lower in IMPERATIVE:
        return True
    is_third_person = lower.endswith("s") and not lower.endswith("ss")
    return lower not in OTHER_FORMS and not is_third_person and not lower.endswith(("ed", "ing"))


def main() -> int:
    """Print what is wrong with the message in the file that git names, and return the exit code."""
    if len(sys.argv) != 2:
        print(f"usage: {Path(__file__).name} FILE", file=sys.stderr)
        return 2
    problems = find_problems(Path(sys.argv[1]).read_text("utf-8"))
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
