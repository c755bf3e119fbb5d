"""Mistakes a user makes: each gives one clear message, exit code 2 and no loaded weight."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sleep_trl.files import write_json
from sleep_trl.launch import sleep
from sleep_trl.settings import parse
from tests.runs import TEXT, arguments, write_finished_run, write_memories, write_model
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
LOAD = AutoModelForCausalLM.from_pretrained
Options = dict[str, object]
MakeOptions = Callable[[Path], Options]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of a good model, good memories and a finished run."""
    shutil.copytree(model, tmp_path / "model")
    write_memories(tmp_path / "docs.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)


# -- makers of mistakes: they spoil something in the folder and return the options that are changed ----


def options(**changed: object) -> MakeOptions:
    return lambda place: changed


def file(name: str, content: str | bytes, **changed: object) -> MakeOptions:
    """Write a file first."""

    def make(place: Path) -> Options:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return changed

    return make


def rows(*values: object) -> MakeOptions:
    return file("docs.jsonl", "".join(json.dumps(value) + "\n" for value in values))


def model_config(**changed: object) -> MakeOptions:
    """Change the model's config.json."""

    def make(place: Path) -> Options:
        path = place / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changed), "utf-8")
        return {}

    return make


def without(*names: str) -> MakeOptions:
    """Remove files of the model."""

    def make(place: Path) -> Options:
        for name in names:
            (place / "model" / name).unlink()
        return {}

    return make


def only_pickle(place: Path) -> Options:
    path = place / "model" / "model.safetensors"
    torch.save(load_file(path), place / "model" / "pytorch_model.bin")
    path.unlink()
    return {}


def cut_weights(place: Path) -> Options:
    path = place / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return {}


def missing_shard(place: Path) -> Options:
    without("model.safetensors")(place)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    return file("model/model.safetensors.index.json", json.dumps(index))(place)


def bloom(place: Path) -> Options:
    """A model whose MLPs have no form that can host experts."""
    shape = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}
    named = {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}
    return file("model/config.json", json.dumps(shape | named))(place)


def tokenizer_without_end(place: Path) -> Options:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(place / "model")
    return {}


def begun(place: Path) -> Options:
    return file("run/config.json", json.dumps({"seed": 1, "seeding": {"steps": 3}}))(place)


def begun_with_other_options(place: Path) -> Options:
    (place / "run" / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    return begun(place) | {"resume": True}


def seeding_not_begun_and_another_length(place: Path) -> Options:
    """Memories are cut by the longest rollout, on which what was done before the seeding depends."""
    sleep_config(place, seeding__max_completion_length=4)
    return {"resume": True}


def sleep_config(place: Path, **changed: object) -> Path:
    """Write the configuration with which the run's folder was begun."""
    config = parse(make_arguments(place, options(**changed)))
    write_json(place / "run" / "config.json", config.model_dump(mode="json"))
    return place / "run" / "config.json"


def judged(name: str, **params: object) -> str:
    return json.dumps([{"name": "imitation", "params": {"judge": {"name": name, "params": params}}}])


def continued(experts: int = 1, **changed: object) -> MakeOptions:
    def make(place: Path) -> Options:
        write_finished_run(place / "night1", experts)
        return {"continue_from": "night1", **changed}

    return make


def continued_routed(**changed: object) -> MakeOptions:
    def make(place: Path) -> Options:
        write_finished_run(place / "night1", max_experts=4, routing="topk", top_k=3)
        return {"continue_from": "night1", "memory__max_experts": None, **changed}

    return make


def continued_without_weights(place: Path) -> Options:
    made = continued()(place)
    (place / "night1" / "adapter" / "experts.safetensors").unlink()
    return made


def continued_on_another_model(place: Path) -> Options:
    shutil.rmtree(place / "model")
    write_model(place / "model", hidden_size=64)
    return continued()(place)


def continued_with_other_format(place: Path) -> Options:
    made = continued()(place)
    path = place / "night1" / "adapter" / "memory.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"format": 99}), "utf-8")
    return made


def question(**values: object) -> MakeOptions:
    return rows({"text": TEXT, "questions": [{"question": "Who?", **values}]})


HANDS = "def one_argument(completions):\n    return [0.0] * len(completions)\n\nlimit = 3\n"

CASES: dict[str, tuple[MakeOptions, str]] = {
    # the command line and the file of options
    "no model": (options(model=None), r"^Error: model is missing\. Give it with --model"),
    "unknown option": (
        options(seeding__alfa=1),
        r"--seeding\.alfa is not an option\. Did you mean --seeding\.alpha\?",
    ),
    "config missing": (options(config="no.yaml"), r"no\.yaml does not exist\. Give the path of a Y"),
    "config is no yaml": (
        file("run.yaml", "seeding: {alpha: 0.5", config="run.yaml"),
        r"run\.yaml is not valid YAML: .* line 1",
    ),
    "config is a list": (
        file("run.yaml", "- seed", config="run.yaml"),
        r"run\.yaml holds a list; it must hold a mapping",
    ),
    "config with a key twice": (
        file("run.yaml", "seed: 1\nseed: 2\n", config="run.yaml"),
        r"the key 'seed' is given twice.* line 2",
    ),
    "config with an unknown key": (
        file("run.yaml", "seeding: {stepps: 5}", config="run.yaml"),
        r"seeding\.stepps is not an option\. Did you mean seeding\.steps\?",
    ),
    "config of another type": (
        file("run.yaml", "seeding: 5", config="run.yaml"),
        r"seeding: 5 was given, but it must be a valid dictionary",
    ),
    "alpha above 1": (
        options(seeding__alpha=1.5),
        r"seeding\.alpha: '1\.5' was given, but it must be less than or equal to 1\. Change it",
    ),
    "text for a number": (options(seeding__steps="many"), r"seeding\.steps: 'many' was given, but"),
    "not a number": (options(seeding__learning_rate="nan"), r"'nan' was given, but .* finite numb"),
    "unknown dtype": (options(dtype="float8"), r"(?s)dtype.*float8.*float32.*bfloat16"),
    "shares above 1": (
        options(dataset__general_share=0.6, dataset__earlier_share=0.6),
        r"general_share \(0\.6\) and earlier_share \(0\.6\) leave no share",
    ),
    "batch that does not divide": (
        options(seeding__per_device_batch_size=5),
        r"per_device_batch_size \(5\) must divide the 32 rollouts",
    ),
    "overlap as long as the window": (
        options(dataset__window=16, dataset__window_overlap=16),
        r"window_overlap \(16\) must be smaller than window \(16\)",
    ),
    "list that is no json": (
        options(dataset__templates='["summary"'),
        r"cannot read dataset\.templates: .*written as JSON",
    ),
    "unknown schedule": (
        options(seeding__lr_scheduler_type="cosinus"),
        r"'cosinus' is no schedule of transformers\. Choose one of linear, cosine",
    ),
    "unknown template": (
        options(dataset__templates='["poem"]'),
        r"no template 'poem'\. Built in are question_answer",
    ),
    "template that is no jinja": (
        file("my.j2", "{% if %}", dataset__templates='["my.j2"]'),
        r"template my\.j2 cannot be read",
    ),
    "template with an unknown variable": (
        file("my.j2", "{{ contxt }}", dataset__templates='["my.j2"]'),
        r"'contxt' is undefined\. Check the templates",
    ),
    "extra that trl lacks": (
        options(seeding__extra='{"top_kk": 5}'),
        r"'top_kk' is no argument of TRL's GRPOConfig",
    ),
    "reward of another trainer": (
        options(rewards='["imitation", "improvement"]'),
        r"Reward 'improvement' needs trial_reward, trial_gain, which the rows do not have",
    ),
    "extra that experts lack": (
        options(seeding__extra='{"use_vllm": true}'),
        r"seeding\.extra: 'use_vllm' would sample from a vLLM",
    ),
    "extra that forgets earlier nights": (
        options(seeding__extra='{"beta": 0.1}'),
        r"seeding\.extra: 'beta' would hold the model",
    ),
    "extra that the run sets": (
        options(seeding__extra='{"max_steps": 5}'),
        r"'max_steps' is set by the run itself\. Take it out and use --seeding\.steps",
    ),
    # memories and the skill probe
    "memories missing": (options(memories="no.jsonl"), r"no\.jsonl does not exist\. Give a \.jsonl"),
    "memories empty": (file("docs.jsonl", ""), r"docs\.jsonl is empty\. Give at least one row"),
    "memories are no json": (file("docs.jsonl", "hello\n"), r"docs\.jsonl, line 1: not valid JSON"),
    "memories are not utf-8": (
        file("docs.jsonl", b'{"text": "caf\xe9"}'),
        r"docs\.jsonl is not UTF-8 text .*Convert it",
    ),
    "memory without text": (rows({"txt": TEXT}), r"line 1: the key `text` is missing"),
    "memory with empty text": (rows({"text": TEXT}, {"text": " "}), r"line 2: `text` is empty"),
    "memory that is a number": (rows({"text": 5}), r"line 1: `text` must be a string, not a number"),
    "ids twice": (
        rows({"text": TEXT, "id": "a"}, {"text": TEXT, "id": "a"}),
        r"line 2: the id 'a' was given before, in docs\.jsonl, line 1",
    ),
    "question without answers": (question(), r"questions\[0\]: `answers` is missing or empty"),
    "folder without texts": (
        file("notes/picture.png", b"", memories="notes"),
        r"folder notes holds no \.txt or \.md files",
    ),
    "memories in a format of others": (
        file("docs.csv", "text\nx\n", memories="docs.csv"),
        r"docs\.csv is not a \.jsonl file",
    ),
    "skill missing": (
        options(evaluation__skill="skill.jsonl"),
        r"Skill: skill\.jsonl does not exist\. Give a \.jsonl file",
    ),
    "skill without questions": (
        file("skill.jsonl", '{"text": "x"}', evaluation__skill="skill.jsonl"),
        r"row 'skill\.jsonl:1' has no `questions`",
    ),
    "skill longer than the context": (
        file(
            "skill.jsonl",
            json.dumps({"text": "the cat " * 99, "questions": [{"question": "Who?", "answers": ["cat"]}]}),
            evaluation__skill="skill.jsonl",
        ),
        r"evaluation\.skill: row 'skill\.jsonl:1' has 198 tokens; at most \d+ fit",
    ),
    # the model
    "model folder missing": (options(model="./nowhere"), r"the folder \./nowhere does not exist"),
    "model is a file": (options(model="docs.jsonl"), r"docs\.jsonl is a file\. Give the folder"),
    "folder is no model": (without("config.json"), r"model has no config\.json, so it holds no mod"),
    "config.json damaged": (file("model/config.json", "{"), r"'model' cannot be used.*valid JSON"),
    "unknown architecture": (model_config(model_type="foo"), r"has model type `foo`"),
    "model with code of its own": (
        model_config(model_type="foo", auto_map={"AutoConfig": "evil.Config"}),
        r"code that comes with a model is never run",
    ),
    "impossible shape": (model_config(num_attention_heads=5), r"'model' cannot be used"),
    "encoder": (
        file("model/config.json", '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'),
        r"is no causal language model but BertForMaskedLM\. Give a model that writes",
    ),
    "only pickled weights": (only_pickle, r"only as pickle \(\*\.bin\), which can run code"),
    "no weights": (without("model.safetensors"), r"a config\.json but no model\.safetensors"),
    "damaged weights": (cut_weights, r"model\.safetensors is missing or damaged .*Restore it"),
    "missing shard": (missing_shard, r"model-00001-of-00001\.safetensors is missing or damaged"),
    "unknown mlp": (bloom, r"BloomForCausalLM has 2 layers.* form were found.*add its form to"),
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        r"tokenizer of 'model' does not load .*save_pretrained",
    ),
    "tokenizer without an end": (tokenizer_without_end, r"no end-of-sequence token"),
    "tokenizer of another model": (
        model_config(vocab_size=50),
        r"token id 96, but the model's vocabulary ends at 49",
    ),
    "adapter for a model": (
        continued(model="night1/adapter"),
        r"night1/adapter holds an adapter and no model\. Give the base model",
    ),
    # what fits the model
    "width as large as the model": (
        options(memory__width=32),
        r"memory\.width: 32 is not low-rank for 'model', whose hidden size is 32",
    ),
    "context beyond the model's": (
        options(max_context=4096),
        r"max_context: 4096 tokens are more than the 128 that 'model' can see",
    ),
    "completions beyond the context": (
        options(seeding__max_completion_length=128),
        r"seeding\.max_completion_length: 128 tokens do not fit the context of 128",
    ),
    "no room for a memory": (
        options(dataset__max_new_tokens=60),
        r"A context of 128 tokens leaves -?\d+ for a memory",
    ),
    "window beyond the context": (
        options(dataset__window=120),
        r"dataset\.window: 120 tokens of a memory do not fit .*; at most \d+ do",
    ),
    # folders of runs
    "output is a file": (options(output_dir="docs.jsonl"), r"docs\.jsonl is a file; give a folder"),
    "output under a file": (options(output_dir="docs.jsonl/run"), r"docs\.jsonl is a file\. Give an"),
    "output is finished": (
        file("run/results.json", "{}"),
        r"run holds a finished run .*--continue_from run",
    ),
    "output is begun": (begun, r"run holds an unfinished run\. Go on with it by --resume"),
    "output is somebody's": (
        file("run/model/config.json", "{}"),
        r"run holds model, which a run would overwrite",
    ),
    "nothing to resume": (options(resume=True), r"--resume: run holds no interrupted run"),
    "resumed with other options": (
        begun_with_other_options,
        r"begun with other options: seed \(then 1, now 42\).*seeding\.steps \(then 3, now 100\)",
    ),
    "resumed with windows of another size": (
        seeding_not_begun_and_another_length,
        r"begun with other options: seeding\.max_completion_length \(then 4, now 8\)\. Give the same",
    ),
    "run continued in itself": (
        options(continue_from="run"),
        r"continue_from and output_dir are the same folder",
    ),
    "no run to continue": (options(continue_from="gone"), r"continue_from: gone does not exist"),
    "unfinished run to continue": (
        file("half/config.json", "{}", continue_from="half"),
        r"half lacks adapter/memory\.json.*ledger\.jsonl\. Give the output_dir of a run that has",
    ),
    "run to continue without weights": (
        continued_without_weights,
        r"night1 lacks adapter/experts\.safetensors",
    ),
    "run to continue of another format": (continued_with_other_format, r"has format 99; this version"),
    "run to continue of another width": (
        continued(memory__width=4),
        r"memory\.width: 4 was given, but the memory of night1 has width 8",
    ),
    "other routing than before": (
        continued(memory__routing="topk"),
        r"memory\.routing: topk was given, but the memory of night1 has routing dense.*Leave out --memory\.routing",
    ),
    "dense after routed nights": (
        continued_routed(memory__routing="dense"),
        r"memory\.routing: dense was given, but the memory of night1 has routing topk",
    ),
    "other top_k than before": (
        continued_routed(memory__routing="topk", memory__top_k=2),
        r"memory\.top_k: 2 was given, but the memory of night1 has top_k 3",
    ),
    "fewer experts than a token goes to": (
        continued_routed(memory__max_experts=2),
        r"memory\.max_experts: 2 is less than the 3 experts to which each token goes.*Give --memory\.max_experts 3",
    ),
    "top_k without a router": (
        options(memory__top_k=1),
        r"top_k \(1\) is for routing topk; with dense a token goes to every expert",
    ),
    "top_k above max_experts": (
        options(memory__routing="topk", memory__top_k=3),
        r"top_k \(3\) must not be larger than max_experts \(2\)",
    ),
    "run to continue of another model": (
        continued_on_another_model,
        r"belongs to another model than 'model'.*Give that run's --model",
    ),
    "memory is full": (
        continued(experts=2),
        r"holds 2 experts and has room for 2\. Give --memory\.max_experts 3 or more",
    ),
    # rewards
    "reward without a name": (options(rewards='[{"weight": 1}]'), r"rewards\.0\.name is missing"),
    "no rewards": (options(rewards="[]"), r"rewards: .*at least 1 item"),
    "unknown reward": (options(rewards='["imitaton"]'), r"no reward 'imitaton'; registered: .*imit"),
    "reward of a missing file": (options(rewards='["no.py:f"]'), r"no\.py does not exist"),
    "reward that does not import": (
        file("my.py", "import nothing_of_this_name", rewards='["my.py:f"]'),
        r"my\.py does not import: ModuleNotFoundError",
    ),
    "reward of a missing function": (
        file("hands.py", HANDS, rewards='["hands.py:f"]'),
        r"has no function 'f'; its functions: one_argument",
    ),
    "reward that takes no columns": (
        file("hands.py", HANDS, rewards='["hands.py:one_argument"]'),
        r"does not take \*\*kwargs",
    ),
    "reward that is no function": (
        file("hands.py", HANDS, rewards='["hands.py:limit"]'),
        r"is a int; name a function",
    ),
    "unknown parameter of a reward": (
        options(rewards='[{"name": "imitation", "params": {"gama": 1}}]'),
        r"has no parameter 'gama'; allowed: ",
    ),
    "judge without a model": (
        options(rewards=judged("lm", model="./no_judge")),
        r"Judge 'lm': its model '\./no_judge' cannot be read .* Check the name",
    ),
    "embedding judge without a model": (
        options(rewards=judged("sentence_transformer", model="./no_judge")),
        r"Judge 'sentence_transformer': its model '\./no_judge' cannot be read",
    ),
    "judge with another label": (
        options(rewards=judged("classifier", model="model", label="same")),
        r"The classifier has no label 'same'; it has: 0 \(LABEL_0\)",
    ),
    "judge without a word for yes": (
        options(rewards=judged("lm", model="model", yes="jawohl")),
        r"The judge's model has no token for 'jawohl'",
    ),
}


def make_arguments(place: Path, make: MakeOptions) -> list[str]:
    given: Options = {"model": "model", "memories": "docs.jsonl", "output_dir": "run"}
    return arguments(**(given | make(place)))


@pytest.mark.parametrize("name", CASES)
def test_mistake_is_told(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = CASES[name]
    argv = make_arguments(place, make)
    before = sorted(place.rglob("*"))
    capsys.readouterr()
    assert sleep.main(argv) == 2
    told = capsys.readouterr()
    assert re.search(message, told.err), told.err
    assert told.err.startswith("Error: ")
    assert "Traceback" not in told.err
    assert TEXT not in told.err
    assert told.out == ""
    assert sorted(path for path in place.rglob("*") if "__pycache__" not in path.parts) == before


# -- mistakes that show only with the weights --------------------------------------------------------


@pytest.fixture
def weights(no_weights: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", LOAD)


def other_base(place: Path) -> Options:
    """The shapes of the continued run's model, but other weights."""
    shutil.copytree(place / "model", place / "right")
    write_model(place / "model", seed=1)
    return continued()(place)


def test_a_run_of_another_base_is_told_and_blocks_nothing(
    place: Path, weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = make_arguments(place, other_base)
    assert sleep.main(argv) == 2
    told = capsys.readouterr().err
    assert re.match(r"Error: .*night1/adapter was made on another base model: .* Give the model that", told), told
    assert "PYTHONDEVMODE=1" in told and "Traceback" not in told
    assert not (place / "run").exists()
    assert sleep.main([*argv, "--model", "right", "--dry_run"]) == 0


def test_a_teacher_that_writes_nothing_usable_is_told(
    place: Path, weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    little = {"dataset__templates": '["paraphrase"]', "dataset__general_share": 0, "dataset__max_new_tokens": 1}
    assert sleep.main(make_arguments(place, options(**little))) == 2
    told = capsys.readouterr().err
    assert re.search(r"(?m)^Error: The teacher wrote nothing usable .* raise dataset\.max_new_tokens", told), told
    assert "Traceback" not in told


def test_ctrl_c_before_the_night_is_begun_promises_no_resume(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", interrupt)
    assert sleep.main(make_arguments(place, options())) == 130
    assert capsys.readouterr().err == "Stopped before anything was begun.\n"
    assert not (place / "run").exists()


@pytest.mark.slow
def test_the_traceback_of_a_mistake_is_within_reach(place: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "sleep.py"), *make_arguments(place, other_base)]
    environment = {**os.environ, "PYTHONDEVMODE": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "storage.py" in done.stderr


def test_there_are_enough_cases_with_messages_of_their_own() -> None:
    assert len(CASES) >= 30
    assert len({message for _, message in CASES.values()}) == len(CASES)


def test_good_input_is_not_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sleep.main(make_arguments(place, options(dry_run=True))) == 0
    assert capsys.readouterr().err == ""


def test_a_judge_that_is_not_asked_needs_no_model(place: Path) -> None:
    rewards = judged("lm", model="./no_judge")
    assert sleep.main(make_arguments(place, options(rewards=rewards, seeding__gamma=0, dry_run=True))) == 0


def test_rewards_and_seeding_may_be_corrected_until_the_seeding_has_begun(place: Path) -> None:
    sleep_config(place, rewards=judged("lexical", mode="exact"), seeding__steps=3)
    argv = make_arguments(place, options(resume=True, dry_run=True))
    assert sleep.main(argv) == 0
    write_json(place / "run" / "phases" / "seed.json", {})
    assert sleep.main(argv) == 2


def test_other_processes_are_silent(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert sleep.main(make_arguments(place, options(model=None))) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["alpha above 1", "no weights"])
def test_mistake_in_a_process_of_its_own(name: str, place: Path) -> None:
    make, message = CASES[name]
    command = [sys.executable, str(ROOT / "launch" / "sleep.py"), *make_arguments(place, make)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
