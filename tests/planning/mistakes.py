"""Makers of mistakes: they spoil something in a folder and return the options that are changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from sleep_trl.config.command_line import parse
from sleep_trl.runs.checksums import record_folder
from sleep_trl.runs.files import write_json
from tests.tiny import tiny_tokenizer
from tests.tiny_runs import TEXT, arguments, write_finished_run, write_model

Options = dict[str, object]
MakeOptions = Callable[[Path], Options]


def make_arguments(place: Path, make: MakeOptions) -> list[str]:
    given: Options = {"model": "model", "memories": "docs.jsonl", "output_dir": "run"}
    return arguments(**(given | make(place)))


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


def rows(*values: object, **changed: object) -> MakeOptions:
    return file("docs.jsonl", "".join(json.dumps(value) + "\n" for value in values), **changed)


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
    return begun(place) | {"resume": True, "seed": 2, "seeding__steps": 5}


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
    record_folder(path.parent)
    return made


def question(**values: object) -> MakeOptions:
    return rows({"text": TEXT, "questions": [{"question": "Who?", **values}]})
