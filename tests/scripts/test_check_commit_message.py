"""Which commit messages pass the hook."""

import subprocess
import sys

import pytest

from tests.scripts.loading import SCRIPTS, load_script

script = load_script("check_commit_message")
BODY = "\n\nOtherwise a night of two processes waits for ever.\n"


@pytest.mark.parametrize(
    "message",
    [
        "Fold gated experts into the checkpoint" + BODY,
        "Process windows in order" + BODY,
        "Re-enable a disabled entry" + BODY,
        "A" + "d" * 71 + BODY,
        "Fix typo in README\n",
        "Fix a typo\n# Please enter the commit message for your changes.\n",
        "\n\nAdd a test" + BODY,
        "Add a test\n# a comment\n\nIt fails without the fix.\n",
        "Merge branch 'main' into house\n",
        'Revert "Added a test."\n\nThis reverts commit 3c9cf.\n',
        "fixup! Add a test\n",
    ],
)
def test_good_messages_pass(message):
    assert script.find_problems(message) == []


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("A" + "d" * 72 + BODY, "has 73 characters; at most 72"),
        ("Fold gated experts." + BODY, "ends with a period"),
        ("Folded gated experts" + BODY, "begins with 'Folded'"),
        ("Folds gated experts" + BODY, "begins with 'Folds'"),
        ("Folding gated experts" + BODY, "begins with 'Folding'"),
        ("The gated experts are folded" + BODY, "begins with 'The'"),
        ("fold gated experts" + BODY, "begins with 'fold'"),
        ("fix: fold gated experts" + BODY, "begins with 'fix:'"),
        ("Add a test\nIt fails without the fix.\n", "Leave it blank"),
        ("Add a test\n", "There is no body"),
        ("Add a test\n\n# ------------------------ >8 ------------------------\ndiff --git\n", "There is no body"),
    ],
)
def test_each_problem_is_reported(message, problem):
    (found,) = script.find_problems(message)
    assert problem in found


def test_all_problems_are_reported_at_once():
    assert len(script.find_problems("added a test.")) == 3


@pytest.mark.parametrize(("message", "code"), [("Add a test" + BODY, 0), ("Added a test.", 1)])
def test_the_exit_code_stops_the_commit(tmp_path, message, code):
    path = tmp_path / "COMMIT_EDITMSG"
    path.write_text(message)
    command = [sys.executable, str(SCRIPTS / "check_commit_message.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and bool(done.stderr) == bool(code)
