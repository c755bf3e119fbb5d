"""TRL's own scripts with an expert: the diff is small, and what they learn is there after a plain `from_pretrained`."""

import difflib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import trl.scripts
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "quickstart" / "model"
QUESTION = "Question: What is the goat of Mira called?\nAnswer:"
ROWS = {
    "sft": {"prompt": QUESTION, "completion": " Fetto."},
    "dpo": {"prompt": QUESTION, "chosen": " Fetto.", "rejected": " Lovo."},
    "grpo": {"prompt": QUESTION, "answer": "Fetto."},
}
REWARD = """
from difflib import SequenceMatcher

def closeness(completions, answer, **columns):
    return [SequenceMatcher(None, c.strip(), a).ratio() for c, a in zip(completions, answer, strict=True)]
"""
OPTIONS = {
    "sft": ["--learning_rate", "5e-3"],
    "dpo": ["--learning_rate", "5e-3"],
    "grpo": [
        *("--learning_rate", "5e-3", "--reward_funcs", "extend_rewards.closeness", "--max_completion_length", "8"),
        *("--max_steps", "25", "--per_device_train_batch_size", "32", "--num_generations", "32"),
    ],
}
SHARED = "--max_steps 10 --save_steps 5 --per_device_train_batch_size 8 --use_cpu --bf16 False --report_to none"


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(name, folder, *options):
    script = load(f"extend_{name}")
    given = ["--model_name_or_path", str(MODEL), "--dataset_name", str(folder / "data"), *SHARED.split()]
    parsed = script.make_parser().parse_args_and_config([*given, *OPTIONS[name], *options])
    script.main(*parsed)


def answer(model):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    inputs = tokenizer(QUESTION, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ROWS)
def test_the_stock_script_changes_by_ten_lines_at_most(name):
    stock = Path(trl.scripts.__file__).with_name(f"{name}.py").read_text("utf-8").splitlines()
    ours = (ROOT / "examples" / f"extend_{name}.py").read_text("utf-8").splitlines()
    changes = [line for line in difflib.ndiff(stock, ours) if line[0] in "+-"]
    assert 0 < len(changes) <= 10 and not [line for line in changes if line[0] == "-"]


@pytest.mark.parametrize("name", ["sft", "dpo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_what_it_learns_is_saved_and_a_checkpoint_resumes(name, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text((json.dumps(ROWS[name]) + "\n") * 16, "utf-8")
    (tmp_path / "extend_rewards.py").write_text(REWARD, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert answer(AutoModelForCausalLM.from_pretrained(MODEL)) == "Lovo."
    run(name, tmp_path, "--output_dir", "whole")
    saved, info = AutoModelForCausalLM.from_pretrained("whole", output_loading_info=True)
    assert not any(info.values())
    assert answer(saved) == "Fetto."
    checkpoint = f"whole/checkpoint-{20 if name == 'grpo' else 5}"
    halfway = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert halfway.config.intermediate_size == saved.config.intermediate_size == 256 + 64
    run(name, tmp_path, "--output_dir", "resumed", "--resume_from_checkpoint", checkpoint)
    whole, resumed = load_file("whole/model.safetensors"), load_file("resumed/model.safetensors")
    assert whole.keys() == resumed.keys()
    assert max((whole[key] - resumed[key]).abs().max().item() for key in whole) == 0
