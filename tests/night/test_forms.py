"""Each form of MLP goes through a night of a chat model, and its grown model loads without this package."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sleep_trl.launch import sleep
from sleep_trl.memory.hosts import FORMS as MLP_FORMS
from sleep_trl.memory.hosts import find_hosts
from tests.night.test_run import arguments
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_runs import write_memories

CHAT = (
    "{% for message in messages %}<bos> {{ message.role }} {{ message.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<bos> assistant {% endif %}"
)
ARCHITECTURES = {
    "gated (Llama, Mistral, Qwen, Gemma)": "llama",
    "fused gated (Phi-3)": "phi3",
    "fused gated (Granite 4)": "granitemoehybrid",
    "gated (LFM2)": "lfm2",
    "plain (GPT-NeoX, Falcon)": "gpt_neox",
    "plain (GPT-2, StarCoder2)": "gpt2",
    "plain (Phi)": "phi",
    "plain (GPT-J)": "gptj",
    "plain (Nemotron, Arcee)": "nemotron",
}
NIGHT = {
    "dataset.templates": '["paraphrase"]',
    "dataset.max_new_tokens": 4,
    "dataset.general_samples": 0,
    "dataset.general_share": 0,
    "dataset.samples_per_window": 2,
    "seeding.steps": 2,
    "seeding.max_completion_length": 4,
    "evaluation.batch_size": 64,
}


@pytest.mark.parametrize("form", MLP_FORMS, ids=lambda form: form.name)
def test_a_chat_model_of_each_form_sleeps(form, tmp_path):
    model, run = tmp_path / "model", tmp_path / "run"
    base = tiny_model(ARCHITECTURES[form.name])
    assert {host.form for host in find_hosts(base)} == {form}
    base.save_pretrained(model)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)

    memories = write_memories(tmp_path / "docs.jsonl")
    assert sleep.main([*arguments(model, run, **NIGHT | {"memories": memories}), "--no-report"]) == 0

    grown = AutoModelForCausalLM.from_pretrained(run / "model")
    assert type(grown) is type(base)
    assert AutoTokenizer.from_pretrained(run / "model").chat_template == CHAT
    samples = json.loads((run / "phases" / "write_dataset.json").read_text())["result"]["samples"]
    assert all(sample["prompt"].startswith("<bos> user ") for sample in samples)
    (before,), (after,) = ({host.intermediate_size for host in find_hosts(model)} for model in (base, grown))
    assert after == before + 8
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (grown(input_ids=ids).logits - base(input_ids=ids).logits).abs().max() > 1e-4
