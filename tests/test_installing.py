"""What installs and tests the package elsewhere: images, and the workflow of continuous integration."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IGNORED = (ROOT / ".dockerignore").read_text("utf-8").split()


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_an_image_installs_what_there_is(name: str) -> None:
    file = ROOT / "docker" / f"{name}.Dockerfile"
    lines = [line for line in file.read_text("utf-8").replace("\\\n", " ").splitlines() if not line.startswith("#")]
    steps = [line.partition(" ")[::2] for line in lines if line]
    assert {step for step, _ in steps} <= {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    (image,) = [what for step, what in steps if step == "FROM"]
    assert image.startswith("python:") and PROJECT["requires-python"].startswith(f">={image[7:11]}")
    text = " ".join(what for _, what in steps)
    (extras,) = re.findall(r"'/src\[([\w,]+)\]'", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    named = re.findall(r"/src/([\w/.]+)", text)
    assert named and all((ROOT / path).exists() and path.split("/")[0] not in IGNORED for path in named)
    assert ("ENTRYPOINT", '["sleep-trl"]') in steps and "sleep-trl" in PROJECT["scripts"]
    assert steps.index(("USER", "sleep")) > max(n for n, (step, _) in enumerate(steps) if step == "RUN")


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    (python,) = [step["with"] for step in job["steps"] if "python-version" in step.get("with", {})]
    assert PROJECT["requires-python"].startswith(f">={python['python-version']}")
    assert all((ROOT / path).is_file() for path in python["cache-dependency-path"].split())
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
