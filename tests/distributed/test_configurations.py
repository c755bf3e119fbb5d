"""The configurations of launch/ are what accelerate and Ray read."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

LAUNCH = Path(__file__).parents[2] / "launch"
ACCELERATE = sorted(LAUNCH.glob("accelerate/*.yaml"))


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_each_configuration(path):
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.distributed_type == DistributedType(written["distributed_type"])
    assert config.num_processes == (1 if path.stem == "single" else 2)
    stages = {"zero2": 2, "zero3": 3, "zero3_offload": 3}
    assert config.deepspeed_config.get("zero_stage") == stages.get(path.stem)
    assert config.mixed_precision == "no"


def test_every_scale_has_its_configuration():
    assert {path.stem for path in ACCELERATE} >= {"single", "ddp", "zero2", "zero3", "zero3_offload"}


READ = """
import json, sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(yaml.safe_load(open(sys.argv[1])))
validate_config(config)
json.dump(config, sys.stdout)
"""


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
def test_ray_reads_the_cluster():
    # In a process of its own: Ray reads its token when it is imported, and other tests start a Ray with one.
    done = subprocess.run([sys.executable, "-c", READ, LAUNCH / "ray" / "cluster.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout[done.stdout.index("{") :])
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    started = [
        line for kind in ("head", "worker") for line in config[f"{kind}_start_ray_commands"] if " start " in line
    ]
    assert len(started) == 2 and all("RAY_AUTH_MODE=token" in line for line in started)
