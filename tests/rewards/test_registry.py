"""Rewards by name: registered ones, modules, files, and what is wrong with them."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from sleep_trl.rewards import (
    JUDGES,
    REWARDS,
    ImitationReward,
    RewardSpec,
    check,
    judge,
    make_judge,
    resolve,
    reward,
)

ROOT = Path(__file__).resolve().parents[2]
BREVITY = f"{ROOT}/examples/custom_reward/my_reward.py:brevity"
CALL = {"prompts": ["p"], "completions": ["c"], "completion_ids": [[1, 2]]}


@pytest.fixture
def plugin(tmp_path):
    """Return a function that writes a file and names a function in it."""

    def write(source, function="scored", stem="plugin"):
        path = tmp_path / f"{stem}.py"
        path.write_text(source, encoding="utf-8")
        return f"{path}:{function}"

    return write


def test_spec_from_a_string_and_from_an_object() -> None:
    assert RewardSpec.model_validate("imitation") == RewardSpec(name="imitation")
    spec = RewardSpec.model_validate({"name": "my.py:fn", "weight": -0.5, "timeout_s": 3})
    assert (spec.weight, spec.params, spec.timeout_s, spec.on_error) == (-0.5, {}, 3.0, "raise")
    with pytest.raises(ValidationError):
        setattr(spec, "weight", 1.0)  # noqa: B010


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "two words",
        "my.py",
        "my.py:",
        ":fn",
        "my.py:a.b",
        {"name": "imitation", "wieght": 1},
        {"name": "imitation", "weight": float("nan")},
        {"name": "imitation", "timeout_s": 0},
        {"name": "imitation", "on_error": "ignore"},
    ],
)
def test_wrong_spec(wrong) -> None:
    with pytest.raises(ValidationError):
        RewardSpec.model_validate(wrong)


@pytest.mark.parametrize(
    ("given", "name", "is_model"),
    [
        ("trl.rewards.think_format_reward", "trl.rewards:think_format_reward", False),  # as `trl grpo` takes it
        ("sleep_trl.rewards.imitation_reward", "sleep_trl.rewards:imitation_reward", False),
        ("org/reward-model.v2", "org/reward-model.v2", True),
        ("./model", "./model", True),
        ("/models/reward", "/models/reward", True),
        ("rewards/mine.py:brevity", "rewards/mine.py:brevity", False),
    ],
)
def test_names_of_functions_and_of_models(given, name, is_model) -> None:
    spec = RewardSpec(name=given)
    assert (spec.name, spec.is_model) == (name, is_model)


@pytest.mark.parametrize(("source", "defined"), [("def f(): ...", ". It defines: f"), ("def f(:", ""), (None, "")])
def test_a_file_without_a_function(tmp_path, source, defined) -> None:
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(f"{source}\ndef _own(): ...\nraise SystemExit")
    with pytest.raises(ValidationError, match=rf"is a file; name a function in it: {path}:function{defined} \[type"):
        RewardSpec(name=str(path))


def test_register_and_resolve(monkeypatch) -> None:
    monkeypatch.setitem(REWARDS, "constant", None)  # undone after the test, with what the test registers
    del REWARDS["constant"]

    @reward("constant")
    def constant(value: float, scale: float = 1.0):
        return lambda completions, **columns: [value * scale] * len(completions)

    assert REWARDS["constant"] is constant
    made = resolve({"name": "constant", "params": {"value": 2.0, "scale": 3.0}})
    assert made.__name__ == "constant"
    assert made(**CALL) == [6.0]
    with pytest.raises(ValueError, match="'constant' needs value"):
        resolve("constant")
    with pytest.raises(ValueError, match=r"no parameter 'sclae'; allowed: value, scale\."):
        resolve({"name": "constant", "params": {"sclae": 1}})
    with pytest.raises(ValueError, match="registered already"):
        reward("constant")(constant)
    with pytest.raises(ValueError, match="cannot name a reward"):
        reward("my.reward")


def test_defaults_go_only_where_they_are_taken_and_not_set() -> None:
    spec = {"name": "imitation", "params": {"gamma": 0.25}}
    made = resolve(spec, gamma=0.75, z0=3, eos_token_ids=[2], tokenizer=None)
    assert isinstance(made.func, ImitationReward)
    assert (made.func.gamma, made.func.z0) == (0.25, 3)
    assert made.func.eos_token_ids == {2}
    assert resolve(BREVITY, slack=0)(**CALL, reference_ids=[[1]]) == [1.0]  # its own default, 4


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no reward 'imitatoin'; registered: .*imitation"):
        resolve("imitatoin")
    with pytest.raises(ValueError, match="no judge 'lexica'; registered: classifier, lexical, lm"):
        resolve({"name": "imitation", "params": {"judge": "lexica"}})


def test_guard_settings_arrive(plugin) -> None:
    name = plugin("def scored(completions, **c):\n    return [float('inf')]")
    made = resolve({"name": name, "timeout_s": 5, "on_error": "abstain"})
    assert (made.timeout_s, made.on_error) == (5.0, "abstain")
    assert made(**CALL) == [None]


def test_params_of_a_plain_function() -> None:
    # 2 tokens where 1 is allowed: one too many of one, so nothing is left
    made = resolve({"name": BREVITY, "params": {"slack": 0}})
    assert made.__name__ == "brevity"
    assert made(**CALL, reference_ids=[[1]]) == [0.0]
    assert made(**CALL, reference_ids=[[1, 2]]) == [1.0]
    assert made(**CALL, reference_ids=[[1]], part=["general"]) == [None]
    with pytest.raises(ValueError, match=r"no parameter 'slak'; allowed: .*slack"):
        resolve({"name": BREVITY, "params": {"slak": 0}})
    with pytest.raises(ValueError, match="no parameter 'completions'"):
        resolve({"name": BREVITY, "params": {"completions": []}})


@pytest.mark.parametrize(
    ("arguments", "takes"),
    [("reference", "it takes none"), ("reference, topic, slack=4", "allowed: slack"), ("*, mood", "allowed: mood")],
)
def test_columns_are_no_parameters(plugin, arguments, takes) -> None:
    name = plugin(f"def scored(completions, {arguments}, **columns): ...")
    with pytest.raises(ValueError, match=rf"has no parameter 'a'; {takes}\.$"):
        check({"name": name, "params": {"a": 1}}, ("reference",), lambda: ("topic",))


def test_files_of_one_name_do_not_meet(tmp_path) -> None:
    before, names = list(sys.path), []
    for value in (1, 2):
        folder = tmp_path / str(value)
        folder.mkdir()
        source = f"def scored(completions, **columns):\n    return [{value}]\n"
        (folder / "same.py").write_text(source)
        names.append(f"{folder}/same.py:scored")
    assert [resolve(name)(**CALL) for name in names] == [[1.0], [2.0]]
    assert sys.path == before
    assert "same" not in sys.modules


def test_file_relative_to_the_working_directory(plugin, tmp_path, monkeypatch) -> None:
    plugin("async def scored(completions, **columns):\n    return [1.0]")
    monkeypatch.chdir(tmp_path)
    assert resolve("plugin.py:scored").__name__ == "scored"


def test_function_in_a_module(plugin, tmp_path, monkeypatch) -> None:
    plugin("def scored(completions, **columns):\n    return [3.0]", stem="reward_of_a_test")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("reward_of_a_test:scored")(**CALL) == [3.0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "\nimport no_such_module_at_all",
            r"does not import: ModuleNotFoundError: No module named '\w+' \(line 2\)\. Its folder is not on the path: ",
        ),
        ("\n\ndef scored()", r"does not import: SyntaxError: expected ':' \(line 3\)\. Correct it\.$"),
        ("\nif 1:\nx = 2", r"does not import: IndentationError: expected an indented block .* \(line 3\)\. Correct it"),
        ("def f():\n    raise SystemExit(3)\n\nf()", r"does not import: SystemExit: 3 \(line 4\)\. Correct it\.$"),
        ("limit = len(3)", r"does not import: TypeError: .* \(line 1\)\. Correct it\.$"),
        ("def score(**columns): ...", "has no function 'scored'; its functions: score"),
        ("from os.path import join", "its functions: none"),
        ("scored = 3", "is a int; name a function"),
        ("class scored: ...", "is a class; name a function"),
        ("def scored(completions): ...", r"does not take \*\*kwargs"),
        ("def scored(completions, /, **c): ...", "needs a positional argument"),
        ("def scored(reference, **c): ...", "takes none of prompts, completions, completion_ids"),
    ],
)
def test_wrong_file(plugin, source, message) -> None:
    name = plugin(source)
    for _ in range(2):  # a file that failed once is not remembered as imported
        with pytest.raises(ValueError, match=message):
            resolve(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/file.py:fn", "no/such/file.py does not exist"),
        ("no_such_package.rewards:fn", "does not import: ModuleNotFoundError"),
        ("os:system", r"does not take \*\*kwargs"),
        ("subprocess:run", "takes none of"),
        ("builtins:eval", r"\*\*kwargs"),
        ("builtins:dict", "is a class"),
        ("math:pi", "is a float"),
    ],
)
def test_wrong_name(name, message) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_a_mistake_in_a_module_is_told_by_file_and_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "module_with_a_mistake.py").write_text("x = 1\nx = = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    place = rf"line 2 of {tmp_path}/module_with_a_mistake\.py"
    with pytest.raises(ValueError, match=rf"does not import: SyntaxError: invalid syntax \({place}\)\. Correct it\.$"):
        resolve("module_with_a_mistake:f")
    mine = tmp_path / "mine.py"
    mine.write_text("import module_with_a_mistake\n")
    with pytest.raises(ValueError, match=rf"mine\.py does not import: SyntaxError: invalid syntax \({place}\)"):
        resolve(f"{mine}:f")


def test_keyboard_interrupt_in_a_file_passes(plugin) -> None:
    with pytest.raises(KeyboardInterrupt):
        resolve(plugin("raise KeyboardInterrupt"))


def test_judges_by_name(monkeypatch) -> None:
    monkeypatch.setitem(JUDGES, "never", None)  # undone after the test, with what the test registers
    del JUDGES["never"]

    @judge("never")
    def never(verdict: float = 0.0):
        return lambda candidates, references, contexts: [verdict] * len(candidates)

    assert make_judge("never")(["a"], ["a"], None) == [0.0]
    assert make_judge({"name": "never", "params": {"verdict": 1.0}})(["a"], ["b"], None) == [1.0]
    assert make_judge(judged := never()) is judged
    with pytest.raises(ValueError, match="registered already"):
        judge("never")(never)
    with pytest.raises(ValueError, match="no parameter 'mood'; allowed: verdict"):
        make_judge({"name": "never", "params": {"mood": 1}})
    with pytest.raises(ValueError, match="Judge 'lm' needs model"):
        make_judge("lm")
    with pytest.raises(ValueError, match=r"'my\.judge' cannot name a judge"):
        judge("my.judge")
    mistakes: list[dict] = [{}, {"params": {}}, {"name": "never", "param": {}}]
    for wrong in mistakes:
        with pytest.raises(ValueError, match="A judge is written as"):
            make_judge(wrong)


def test_import_and_resolve_load_nothing_heavy() -> None:
    code = (
        "import sys; from sleep_trl.rewards import resolve\n"
        "judge = {'name': 'lm', 'params': {'model': 'no/such-model'}}\n"
        "resolve({'name': 'imitation', 'params': {'judge': judge}})\n"
        "print(*{'torch', 'transformers', 'sentence_transformers', 'trl'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
