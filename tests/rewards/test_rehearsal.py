import pytest

from sleep_trl.rewards import RewardError, check, resolve

BATCH = {"prompts": ["p"] * 4, "completion_ids": [[5, 2]] * 4}
TRIED = {"trial_reward": [1.0, 0.0, None, None], "trial_gain": [0.5, -0.2, 0.1, None]}


def rewards(spec, completions=("a",) * 4, **columns):
    return resolve(spec)(completions=list(completions), **BATCH, **columns)


def test_improvement_is_one_or_zero_and_abstains_when_uncertain():
    assert rewards("improvement", **TRIED) == [1.0, 0.0, None, None]
    assert rewards({"name": "improvement", "params": {"reward": "gain"}}, **TRIED) == [0.5, -0.2, None, None]


def test_quiz_gain_counts_every_gain_that_is_large_enough():
    assert rewards("quiz_gain", **TRIED) == [0.5, -0.2, 0.1, None]
    assert rewards({"name": "quiz_gain", "params": {"smallest": 0.15}}, **TRIED) == [0.5, -0.2, 0.0, None]


def test_novelty_is_the_share_of_new_word_sequences():
    texts = ["a b c d", "a b c e", "x y z", "x y"]
    columns = {"task_id": ["s", "s", "s", "t"], "context": ["A b, c!"] * 4}
    # "a b c d" has two sequences, of which the context knows one; so has "a b c e"; "x y z" is all new; "x y" has none
    assert rewards("novelty", texts, **columns) == [0.5, 0.5, 1.0, 0.0]


def test_a_dream_of_another_task_is_no_repetition():
    columns = {"task_id": ["s", "t", "u", "u"], "context": [""] * 4}
    assert rewards("novelty", ["a b c"] * 4, **columns) == [1.0, 1.0, 0.0, 0.0]


def test_faithfulness_asks_the_judge_about_dream_and_context():
    asked = []

    def judge(candidates, references, contexts):
        asked.extend(zip(candidates, references, strict=True))
        return [1.0, 0.0, 1.0, 0.0]

    values = rewards({"name": "faithfulness", "params": {"judge": judge}}, "abcd", context=["w", "x", "y", "z"])
    assert values == [1.0, 0.0, 1.0, 0.0] and asked[1] == ("b", "x")


def test_faithfulness_without_a_judge_is_the_teachers_own():
    likely = [0.9, 0.1, 0.5, 0.2]
    assert rewards("faithfulness", context=["w"] * 4, teacher_probability=likely) == likely
    with pytest.raises(RewardError, match="give it a judge"):
        rewards("faithfulness", context=["w"] * 4)


def test_the_judge_of_faithfulness_is_checked_before_the_night(tmp_path):
    judge = {"name": "classifier", "params": {"model": str(tmp_path / "missing")}}
    with pytest.raises(ValueError, match=r"Judge 'classifier': its model '.*missing' cannot be read"):
        check({"name": "faithfulness", "params": {"judge": judge}})
    check("faithfulness")


def test_format_wants_every_line_in_form():
    spec = {"name": "format", "params": {"pattern": r"\d\. .+"}}
    assert rewards(spec, ["1. a\n2. b\n", "1. a\nb", "", "3. c"]) == [1.0, 0.0, 0.0, 1.0]


def test_length_falls_off_outside_its_bounds():
    spec = {"name": "length", "params": {"shortest": 2, "longest": 4}}
    ids = [[1], [1, 2], [1] * 4, [1] * 8]
    values = resolve(spec)(prompts=["p"] * 4, completions=["a"] * 4, completion_ids=ids)
    assert values == [0.5, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "improvement", "params": {"reward": "both"}}, "'binary' or 'gain'"),
        ({"name": "format", "params": {"pattern": "("}}, "not a regular expression"),
        ({"name": "length", "params": {"shortest": 5, "longest": 4}}, "1 <= shortest"),
    ],
)
def test_impossible_parameters_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        resolve(spec)
