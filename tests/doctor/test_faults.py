"""Real faults, planted one by one: doctor names each, says what to do, and exits with code 2."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sleep_trl.cli import main
from sleep_trl.config import RunConfig
from sleep_trl.doctor import Case
from sleep_trl.doctor.run import check_context, check_prompts, check_vocabulary
from tests.planning.mistakes import Options, file, make_arguments, options, without

Plant = Callable[[Path, pytest.MonkeyPatch], Options]
ROOT = Path(__file__).parents[2]
CPU = not torch.accelerator.is_available()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict]]:
    """Call `sleep-trl doctor --json`; returns the exit code and the findings by name."""

    def call(*arguments: object) -> tuple[int, dict]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["doctor", "--json", *map(str, arguments)])
        report = json.loads(capfd.readouterr().out)
        assert report["go"] == (stop.value.code == 0)
        return int(stop.value.code or 0), {finding["name"]: finding for finding in report["findings"]}

    return call


def planted(make: Callable[[Path], Options]) -> Plant:
    return lambda place, monkeypatch: make(place)


def package(place: Path, monkeypatch: pytest.MonkeyPatch, path: str, content: str) -> Options:
    """Write a file into a folder that comes first on Python's path."""
    (place / "first" / path).parent.mkdir(parents=True)
    (place / "first" / path).write_text(content)
    monkeypatch.syspath_prepend(str(place / "first"))
    return {}


def old_trl(place: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    return package(place, monkeypatch, "trl-1.9.0.dist-info/METADATA", "Name: trl\nVersion: 1.9.0\n")


def broken_vllm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    raising = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    return package(place, monkeypatch, "vllm/__init__.py", raising)


def broken_ray(place: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    package(place, monkeypatch, "ray/__init__.py", "raise ImportError('libjemalloc.so.2: cannot open')\n")
    return {"rollout__engine": "ray"}


def no_compiler(place: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    (place / "empty").mkdir()
    monkeypatch.setenv("PATH", str(place / "empty"))
    (place / "zero3.yaml").write_text("{distributed_type: DEEPSPEED, num_processes: 2, main_process_port: 0}")
    return {"config_file": "zero3.yaml"}


def killed_build(place: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(place / "extensions"))
    (place / "extensions" / "shm").mkdir(parents=True)
    (place / "extensions" / "shm" / "lock").touch()
    (place / "zero3.yaml").write_text("{distributed_type: DEEPSPEED, num_processes: 2, main_process_port: 0}")
    return {"config_file": "zero3.yaml"}


def instruct(place: Path) -> Options:
    (place / "model").rename(place / "Tiny-1B-Instruct")
    return {"model": "Tiny-1B-Instruct"}


def thinking(place: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    (place / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}<think>\n")
    return {}


DEAD_ADDRESS = options(rollout__engine="ray", rollout__ray_address="127.0.0.1:9")
HUGE_BATCH = options(seeding__prompts_per_step=10**7)
FAULTS: dict[str, tuple[Plant, str, str, str]] = {
    "version": (old_trl, "trl", r"1\.9\.0, but .* trl <1\.17,>=1\.16", r"pip install 'trl.*trl==1\.16\.0"),
    "no Ray at the address": (
        planted(DEAD_ADDRESS),
        "Ray's address",
        r"nothing listens at 127\.0\.0\.1:9",
        "ray start",
    ),
    "no address": (
        planted(options(rollout__engine="ray", rollout__ray_address="localhost")),
        "Ray's address",
        "'localhost' is not an address",
        "host:port",
    ),
    "too little memory": (
        planted(HUGE_BATCH),
        "memory",
        r"MiB are needed .*, [\d,]+ MiB are free",
        "per_device_batch_size",
    ),
    "chat template missing": (
        planted(instruct),
        "chat template",
        "name is that of a chat model, but .* no chat",
        "jinja",
    ),
    "chat asked for": (
        planted(options(chat_template_kwargs='{"enable_thinking": true}')),
        "chat template",
        "chat_template_kwargs is set, but",
        "leave out chat_template_kwargs",
    ),
    "template that always thinks": (
        thinking,
        "chat template",
        "begins every answer with <think>: the teacher would write down its thoughts",
        "turns thinking off",
    ),
    "unknown words": (
        planted(file("docs.jsonl", '{"text": "Вечером город спит, а море шумит."}')),
        "vocabulary",
        r"1 of 1 memories have more than 3% tokens .* does not know, 'docs\.jsonl:1' the most: 100%",
        "trained on this language",
    ),
    "context too short": (planted(options(max_context=32)), "plan", r"context of 32 tokens leaves", "raise max_con"),
    "window too long": (planted(options(dataset__window=120)), "plan", "120 tokens of a memory do not fit", "Lower"),
    "teacher that sees no memory": (
        planted(file("blind.j2", "{% if context == 1 %}{% endif %}{{ request }}", dataset__templates='["blind.j2"]')),
        "teacher's prompts",
        r"template blind\.j2: teacher and student get the same prompt",
        r"Write \{\{ context",
    ),
    "folder that cannot be written": (
        planted(options(output_dir="/proc/sleep/night")),
        "folder",
        "output_dir: .*/proc",
        "Give another --output_dir",
    ),
    "tokenizer missing": (
        planted(without("tokenizer.json", "tokenizer_config.json")),
        "tokenizer",
        "tokenizer of 'model' does not load",
        "save_pretrained",
    ),
    "broken vLLM": (broken_vllm, "vLLM", "cannot be imported: .*torchvision::nms", "pip uninstall torchvision"),
    "broken Ray": (broken_ray, "Ray", "cannot be imported: .*libjemalloc", "force-reinstall ray"),
    "unknown reward": (planted(options(rewards='["mine.py:fun"]')), "rewards", r"mine\.py", r"\w+"),
    "unknown option": (planted(options(seeding__alfa=1)), "options", r"seeding\.alfa is not an option", "--help"),
    "memories missing": (planted(options(memories="no.jsonl")), "plan", r"no\.jsonl does not exist", "Give a"),
}
if find_spec("vllm") is None:
    FAULTS["vLLM not installed"] = (
        planted(options(rollout__engine="vllm")),
        "engine",
        "vLLM was asked for, but vLLM is not installed",
        r"rollout\.engine transformers",
    )
if CPU:
    FAULTS["no compiler"] = (no_compiler, "compiler", r"not found: \S*\+\+", r"Install g\+\+")
    FAULTS["killed build"] = (
        killed_build,
        "compiler",
        r"shm/lock was left behind by a build that was killed",
        r"rm \S*lock",
    )


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_and_its_remedy_are_named(name, place, monkeypatch, doctor):
    plant, check, found, remedy = FAULTS[name]
    changed = plant(place, monkeypatch)
    before = sorted(place.rglob("*"))
    code, findings = doctor("--no_smoke_test", *make_arguments(place, lambda _: changed))
    assert code == 2
    finding = findings[check]
    assert finding["state"] == "fault", findings
    assert re.search(found, finding["found"]), finding
    assert re.search(remedy, finding["remedy"]), finding
    others = {finding["name"] for finding in findings.values() if finding["state"] == "fault"} - {check}
    assert others <= ({"plan"} if check == "folder" else set())  # a system folder has no space either
    assert sorted(place.rglob("*")) == before


def test_a_broken_torch_does_not_hide_other_findings(place, monkeypatch):
    package(place, monkeypatch, "torch/__init__.py", "raise OSError('libcudart.so.13: cannot open')\n")
    command = [sys.executable, "-m", "sleep_trl.cli", "doctor", "--no_smoke_test", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place / "first"), str(ROOT)])}
    child = subprocess.run(
        [*command, *make_arguments(place, options())], env=environment, capture_output=True, text=True
    )
    assert child.returncode == 2, child.stderr
    findings = {finding["name"]: finding for finding in json.loads(child.stdout)["findings"]}
    assert findings["GPUs"]["state"] == "fault" and "libcudart" in findings["GPUs"]["found"]
    assert "constraints.txt" in findings["GPUs"]["remedy"]
    assert findings["transformers"]["state"] == findings["loopback"]["state"] == findings["options"]["state"] == "ok"


def test_at_least_ten_faults_are_planted():
    assert len(FAULTS) >= 10


def test_a_taken_serving_port(taken_port, doctor):
    code, findings = doctor("--no_smoke_test", "--port", taken_port)
    finding = findings["serving port"]
    assert (code, finding["state"]) == (2, "fault")
    assert f"port {taken_port}, " in finding["found"] and "in use" in finding["found"]
    assert "another --port" in finding["remedy"]


def test_a_taken_launcher_port(taken_port, doctor, tmp_path):
    launcher = tmp_path / "ddp.yaml"
    launcher.write_text(f"{{distributed_type: MULTI_CPU, num_processes: 2, main_process_port: {taken_port}}}")
    code, findings = doctor("--no_smoke_test", "--config_file", launcher)
    finding = findings["launcher's port"]
    assert (code, finding["state"]) == (2, "fault")
    assert f"port {taken_port}, " in finding["found"] and "--main_process_port" in finding["remedy"]


def test_an_invalid_launcher_file(capsys, tmp_path):
    (tmp_path / "ddp.yaml").write_text("num_processes: many")
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--config_file", str(tmp_path / "ddp.yaml")])
    assert stop.value.code == 2
    assert "ddp.yaml is not a configuration file of accelerate" in capsys.readouterr().err


def test_several_faults_are_reported_at_once_and_each_once(place, doctor):
    without("tokenizer.json", "tokenizer_config.json")(place)
    arguments = make_arguments(place, options(rewards='["mine.py:fun"]', output_dir="/proc/sleep/night"))
    code, findings = doctor("--no_smoke_test", *arguments)
    states = {name: finding["state"] for name, finding in findings.items()}
    assert code == 2
    assert [name for name, state in states.items() if state == "fault"] == ["folder", "tokenizer", "rewards"]


@pytest.mark.parametrize("check", [check_prompts, check_context])
def test_a_night_that_removes_entries_has_no_prompts_to_check(check):
    config = RunConfig(model="m", memories="forget:entry-001", continue_from="night-001")
    assert check(Case(config=config)).state == "skipped"


def test_words_that_the_tokenizer_only_spells_are_a_warning(tmp_path):
    """The bundled model's tokenizer has all letters, so that no token of English is unknown to it."""
    (tmp_path / "own.jsonl").write_text('{"text": "The museum opens every Thursday morning, except during winter."}')
    model = ROOT / "examples" / "quickstart" / "model"
    finding = check_vocabulary(Case(RunConfig(model=str(model), memories=str(tmp_path / "own.jsonl"))))
    assert finding.state == "warning" and "the tokenizer spells" in finding.found
