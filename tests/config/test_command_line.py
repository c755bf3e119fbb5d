"""The command line and YAML: precedence, messages, and that nothing else is read."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from sleep_trl.config import RunConfig
from sleep_trl.config.command_line import explain, options, parse
from sleep_trl.config.option_help import help_text
from sleep_trl.config.paths import FILES, FOLDERS
from sleep_trl.config.sections import DatasetConfig

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["--model", "m", "--memories", "d.jsonl"]
CONFIGS = sorted((ROOT / "examples").rglob("*.yaml"))


def write_yaml(path: Path, values: object) -> str:
    path.write_text(yaml.safe_dump(values), "utf-8")
    return str(path)


def error_of(argv: list[str]) -> str:
    with pytest.raises(ValueError) as caught:
        parse(argv)
    return explain(caught.value)


def test_command_line_beats_yaml_beats_defaults(tmp_path: Path) -> None:
    file = {"model": "m", "memories": "d", "seeding": {"alpha": 0.1, "lmbda": 0.2}, "seed": 1}
    path = write_yaml(tmp_path / "run.yaml", file)
    config = parse(["--config", path, "--seeding.alpha", "0.5", "--seed=2", "--dry_run"])
    assert (config.seeding.alpha, config.seeding.lmbda, config.seed) == (0.5, 0.2, 2)
    assert (config.seeding.gamma, config.model, config.dry_run) == (0.5, "m", True)
    assert type(config) is RunConfig
    assert config.seeding.model_fields_set == {"alpha", "lmbda"}
    assert config.model_fields_set == {"model", "memories", "seeding", "seed", "dry_run"}


def test_lists_objects_null_and_flags(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "run.yaml", {"seeding": {"z0": 3, "extra": {"beta": 0.1}}})
    rewards = '["imitation", {"name": "x.py:f", "weight": 0.2}]'
    given = ["--config", path, "--rewards", rewards, "--seeding.z0", "null", "--no-report"]
    config = parse([*NEEDED, *given, "--seeding.extra", '{"report_to": "wandb", "top_k": 3}'])
    assert [(reward.name, reward.weight) for reward in config.rewards] == [
        ("imitation", 1.0),
        ("x.py:f", 0.2),
    ]
    assert config.seeding.z0 is None
    assert config.report is False
    assert config.seeding.extra == {"beta": 0.1, "report_to": "wandb", "top_k": 3}


def test_dotted_names_in_yaml_are_options_of_sections(tmp_path: Path) -> None:
    file = {"seeding.steps": 10, "seeding": {"alpha": 0.1}, "memory.width": 8, "memory.max_experts": 2}
    config = parse([*NEEDED, "--config", write_yaml(tmp_path / "run.yaml", file), "--memory.width=4"])
    assert (config.seeding.steps, config.seeding.alpha) == (10, 0.1)
    assert (config.memory.width, config.memory.max_experts) == (4, 2)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"seeding.steps": 10, "seeding": {"steps": 10}}, "has seeding.steps twice"),
        ({"seeding.steps": 10, "seeding": 3}, "has both seeding.steps and seeding, which is no mapping"),
        ({"seeding.stepps": 10}, "seeding.stepps is not an option. Did you mean seeding.steps?"),
    ],
)
def test_dotted_names_that_clash_or_are_unknown(tmp_path: Path, file: dict[str, object], message: str) -> None:
    assert message in error_of([*NEEDED, "--config", write_yaml(tmp_path / "run.yaml", file)])


def test_an_unknown_option_is_named_with_its_file_if_it_stands_in_one(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "run.yaml", {"seeding": {"stepps": 10}})
    assert error_of([*NEEDED, "--config", path]).startswith(f"--config: {path}: seeding.stepps is not an option. ")
    write_yaml(tmp_path / "run.yaml", {"rewards": ["imitation", {"name": "short", "parms": {}}]})
    assert error_of([*NEEDED, "--config", path]).startswith(f"--config: {path}: rewards.1.parms is not an option. ")
    write_yaml(tmp_path / "run.yaml", {"seeding": {"steps": 10}})
    message = error_of([*NEEDED, "--config", path, "--seeding", '{"stepps": 1}'])
    assert message.startswith("seeding.stepps is not an option. ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rewards", "['imitation', {'name': x}]"),
        ("--rewards", '["imitation"'),
        ("--seeding", "{steps: 1}"),
        ("--seeding.extra", "{report_to: none}"),
        ("--levels.chunks", "[1,"),
    ],
)
def test_a_value_that_is_no_json_is_named_in_our_words(option: str, value: str) -> None:
    message = error_of([*NEEDED, option, value])
    assert message.startswith(f"Command line: the value of {option} cannot be read: ")
    assert message.endswith("Write lists and objects as JSON, names and texts in double quotes.")
    assert not any(word in message for word in ("CliSettingsSource", "field", "encountered", "line 1"))


def test_number_that_yaml_takes_for_text(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seeding: {learning_rate: 2e-4}\n", "utf-8")
    assert yaml.safe_load(path.read_text("utf-8"))["seeding"]["learning_rate"] == "2e-4"
    assert parse([*NEEDED, "--config", str(path)]).seeding.learning_rate == 2e-4


def test_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEED", "seed", "SEEDING__STEPS", "seeding.steps", "SEEDING.STEPS"):
        monkeypatch.setenv(name, "7")
    config = parse(NEEDED)
    assert (config.seed, config.seeding.steps) == (42, None)


@pytest.mark.parametrize(
    ("given", "suggested"),
    [
        (["--seeding.alfa", "1"], "--seeding.alfa is not an option. Did you mean --seeding.alpha?"),
        (["--alpha=1"], "--alpha is not an option. Did you mean --seeding.alpha?"),
        (["--sede", "1"], "--sede is not an option. Did you mean --seed?"),
        (["--report", "false"], "'false' is no option's value. A switch takes none: give --NAME or --no-NAME."),
        (["--confg", "x"], "--confg is not an option. Did you mean --config?"),
        (["--seeding", '{"stepps": 1}'], "seeding.stepps is not an option. Did you mean seeding.s"),
        (["--rewards", '[{"name": "a", "wieght": 1}]'], "Did you mean rewards.0.weight?"),
        (["--zzz"], "--zzz is not an option. See --help."),
        (["--mod", "x"], "--mod is not an option."),  # no abbreviations
    ],
)
def test_unknown_option_gets_a_suggestion(given: list[str], suggested: str) -> None:
    message = error_of([*NEEDED, *given])
    assert suggested in message
    assert "\n" not in message


def test_each_mistake_is_one_line() -> None:
    lines = error_of(["--seeding.alpha", "2", "--memory.width", "0"]).splitlines()
    assert [line.split()[0] for line in lines] == [
        "model",
        "memories",
        "memory.width:",
        "seeding.alpha:",
    ]
    assert lines[0] == "model is missing. Give it with --model or in the config file."
    assert "'2' was given, but it must be less than or equal to 1" in lines[3]


def test_a_misspelled_option_comes_before_what_is_then_missing(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("modle: m\nmemories: m.jsonl\n")
    first, second = error_of(["--config", str(tmp_path / "run.yaml")]).splitlines()
    assert first.endswith("run.yaml: modle is not an option. Did you mean model? See --help.") and second.startswith(
        "model is missing."
    )


def test_a_number_that_is_none_is_told_in_a_sentence() -> None:
    [line] = error_of([*NEEDED, "--seeding.steps", "ten"]).splitlines()
    assert line.startswith("seeding.steps: 'ten' was given, but it must be a valid integer. Change it (--seeding")


def test_long_values_are_cut() -> None:
    message = error_of([*NEEDED, "--seed", "9" * 500 + "x"])
    assert len(message) < 300


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_are_finite(value: str) -> None:
    assert "finite number" in error_of([*NEEDED, "--seeding.learning_rate", value])


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse(NEEDED).seed = 1


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in options():
        assert f" --{name}" in text or f" --no-{name}" in text, name
        assert field.description, f"{name} has no docstring"
        assert " ".join(field.description.split()) in text, name
        assert field.is_required() or field.default is None or "default: " in text
    assert text.startswith("usage: sleep.py [--config")
    with pytest.raises(SystemExit):
        parse(["--help"], "sleep-trl night")
    assert capsys.readouterr().out.startswith("usage: sleep-trl night [--config")
    for shown in ("(0 to 1; default: 0.7)", "(above 0; default: 0.0002)", "default: imitation"):
        assert shown in text


def test_help_is_fast_and_light() -> None:
    code = (
        "import sys; sys.path.insert(0, 'launch'); sys.argv = ['sleep.py', '--help']\n"
        "import runpy\n"
        "try: runpy.run_path('launch/sleep.py', run_name='__main__')\n"
        "except SystemExit as stopped: print(stopped.code, file=sys.stderr)\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    start = time.process_time()
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.process_time() - start < 2
    code_line, *modules = done.stderr.split()
    assert code_line == "0"
    assert "sleep_trl.config" in modules
    assert not {"torch", "transformers", "trl", "datasets"} & set(modules)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("sleep-trl")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_config_loads(path: Path) -> None:
    parse(["--config", str(path)])


def test_a_gguf_file_is_part_of_the_models_name():
    config = RunConfig(model="org/name/", gguf_file="Model.Q8_0.gguf", memories="docs.jsonl")
    assert (config.model, config.gguf_file) == ("org/name/Model.Q8_0.gguf", None)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config  # as a resumed run reads it


def test_help_shows_bounds_and_defaults_as_they_are():
    shown = {name: help_text(field) for name, field in options()}
    assert shown["dream.confidence"].endswith("(above 0, below 1; default: 0.95)")
    assert shown["seeding.expert_dropout"].endswith("(at least 0, below 1; default: 0.0)")
    assert shown["seed"].endswith("(0 to 4294967295; default: 42)")
    assert not [name for name, text in shown.items() if "default: )" in text]


def test_a_file_next_to_the_configuration_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "towns").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    folder = Path("home")
    for name in ("docs [1].md", "skill.jsonl", "mine.py", "statement", "auto"):
        (folder / name).touch()
    config = folder / "night.yaml"
    config.write_text(
        "model: owner/name\nmemories: docs [1].md\noutput_dir: towns\ncontinue_from: ~/towns\n"
        "evaluation: {skill: skill.jsonl, perplexity: absent.jsonl}\ndataset: {templates: [statement]}\n"
        'rewards: ["mine.py:brevity", {name: imitation, params: {judge: {name: lm, params: {model: ./towns}}}}]\n'
    )
    read = parse([f"--config={config}"])
    assert read.memories == "home/docs [1].md"
    assert read.output_dir == Path("towns")  # what is written is relative to the working directory
    assert read.continue_from == tmp_path / "home" / "towns"
    assert (read.evaluation.skill, read.evaluation.perplexity) == (folder / "skill.jsonl", Path("absent.jsonl"))
    assert read.dataset.templates == ("statement",)
    assert [reward.name for reward in read.rewards] == ["home/mine.py:brevity", "imitation"]
    assert read.rewards[1].params["judge"]["params"] == {"model": str(folder / "towns")}
    given = parse(["--model=m", "--memories=wake:~/wake.db"])
    assert given.source.buffer == tmp_path / "home" / "wake.db"
    nights = parse(["--model=m", '--nights=["docs [1].md", "~/b.md"]']).nights
    assert nights == ("docs [1].md", str(tmp_path / "home" / "b.md"))
    assert parse(["--model=m", "--nights=docs [1].md,b.md"]).nights == ("docs [1].md", "b.md")


def test_every_option_that_names_something_to_read_is_resolved() -> None:
    named = {name for name, field in options() if "Path" in str(field.annotation)}
    assert "evaluation.skill" in named and named - {"output_dir"} <= {*FILES, *FOLDERS}


def test_a_path_given_from_python_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a section that was made before, and in a `Path`."""
    monkeypatch.setenv("HOME", "/home/me")
    dataset = DatasetConfig(general_texts=Path("~/general.jsonl"), templates=("~/ask.j2", "statement"))
    config = RunConfig(
        model="~/model",
        memories="wake:~/wake.db",
        output_dir=Path("~/runs"),
        dataset=dataset,
        evaluation={"skill": "~/skill.jsonl"},
        rewards=["imitation", "~/mine.py:brevity"],
    )
    assert (config.model, config.source.buffer) == ("/home/me/model", Path("/home/me/wake.db"))
    assert (config.output_dir, config.dataset.general_texts) == (Path("/home/me/runs"), Path("/home/me/general.jsonl"))
    assert config.dataset.templates == ("/home/me/ask.j2", "statement")
    assert config.evaluation.skill == Path("/home/me/skill.jsonl")
    assert [reward.name for reward in config.rewards] == ["imitation", "/home/me/mine.py:brevity"]
