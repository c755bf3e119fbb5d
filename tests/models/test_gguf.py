"""GGUF files: a tiny Llama written with the package `gguf` and read back through transformers."""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sleep_trl.config.command_line import parse
from sleep_trl.config.model_name import hub_repository, is_gguf
from sleep_trl.doctor import Case
from sleep_trl.doctor.run import check_plan
from sleep_trl.launch import sleep
from sleep_trl.models import gguf as converter
from sleep_trl.models.gguf import CACHE, ORIGIN, convert_gguf, local_checkpoint, mean_loss, read_gguf, unconverted

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>"]
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), "th", "the"]
HEADS, KV_HEADS = 4, 2


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).bfloat16().eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> Path:
    """The model as llama.cpp writes it: rotary heads interleaved, norms in float32."""
    path = tmp_path_factory.mktemp("gguf") / "tiny-F32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, tensor in named_tensors(model):
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def named_tensors(model):
    state = model.state_dict()
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    yield "output.weight", state["lm_head.weight"]
    names = {
        "attn_norm": "input_layernorm",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for layer in range(2):
        for theirs, ours in names.items():
            yield f"blk.{layer}.{theirs}.weight", state[f"model.layers.{layer}.{ours}.weight"]
        for theirs, ours, heads in (("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", KV_HEADS)):
            weight = state[f"model.layers.{layer}.self_attn.{ours}.weight"]
            rotated = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            yield f"blk.{layer}.{theirs}.weight", rotated.contiguous()


def test_the_conversion_is_the_model(file, model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(converter, "BROKEN", 2.0)  # random weights predict nothing
    convert_gguf(file, tmp_path / "plain")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    ids = torch.tensor([[1, 70, 80, 90, 100]])
    with torch.no_grad():
        # Equal weights; the file has the norm's epsilon as a float32.
        torch.testing.assert_close(read(ids).logits, deepcopy(model).float()(ids).logits, atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer("these", add_special_tokens=False).input_ids == [TOKENS.index(t) for t in ("the", "s", "e")]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|begin|>", "<|end|>", "<|pad|>")
    assert (read.config.eos_token_id, read.generation_config.eos_token_id) == (2, 2)
    assert not hasattr(read.config, "quantization_config")


def test_a_file_is_converted_once(file, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    monkeypatch.setattr(converter, "BROKEN", 2.0)
    folder = Path(local_checkpoint(str(file)))
    assert folder.parent == tmp_path / "gguf" and folder.name.startswith("tiny-F32-")
    assert json.loads((folder / ORIGIN).read_text()) == {"file": str(file)}
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert local_checkpoint(str(file)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    changed = Path(shutil.copy2(file, tmp_path / file.name))
    first = unconverted(str(changed)) and converter._conversion(changed)
    os.utime(changed, ns=(1, 1))
    assert converter._conversion(changed) not in (first, folder)  # another file under the same name


def test_config_and_tokenizer_are_read_as_the_conversion_has_them(file, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(converter, "BROKEN", 2.0)
    convert_gguf(file, tmp_path / "plain")
    config, tokenizer = read_gguf(file)
    saved, loaded = AutoConfig.from_pretrained(tmp_path / "plain"), AutoTokenizer.from_pretrained(tmp_path / "plain")
    for name in ("model_type", "vocab_size", "hidden_size", "max_position_embeddings", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(saved, name), name
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(config, name) == getattr(saved, name) == getattr(tokenizer, name) == getattr(loaded, name), name
    assert tokenizer("these, too").input_ids == loaded("these, too").input_ids


@pytest.mark.parametrize("command", ["dry_run", "doctor"])
def test_checking_a_run_converts_nothing(file, tmp_path, monkeypatch, capsys, command) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "docs.txt").write_text("Robbin runs the inn Zora.")
    given = {"model": file, "memories": tmp_path, "output_dir": tmp_path / "run", "memory.width": 8}
    given |= {"dataset.general_max_new_tokens": 16, "dataset.max_new_tokens": 16}
    given |= {"seeding.max_completion_length": 16, "evaluation.max_new_tokens": 8}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    if command == "dry_run":
        assert sleep.main([*words, "--dry_run"]) == 0
        shown = capsys.readouterr().out
    else:
        shown = check_plan(Case(parse(words))).found
    assert "not converted yet: the night does that first" in " ".join(shown.replace("│", " ").split())
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("org/name", "org/name"),
        ("gpt2", "gpt2"),
        ("org/name/Model.Q8_0.gguf", "org/name"),
        ("models/Model.gguf", None),
        ("/models/a/Model.gguf", None),
        ("./name", None),
        ("a/b/c", None),
    ],
)
def test_a_name_is_a_repository_or_a_path(name, repository) -> None:
    assert hub_repository(name) == repository


def test_a_model_that_knows_nothing_is_refused(file, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"does not predict plain English.* nats a token, where chance is 5\.6"):
        convert_gguf(file, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_the_conversion_draws_no_bar_in_a_log(file, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(converter, "BROKEN", 10)
    convert_gguf(file, tmp_path / "plain")
    assert "it/s" not in capfd.readouterr().err


def test_what_is_no_gguf_file_is_named(tmp_path) -> None:
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="transformers cannot read"):
        convert_gguf(tmp_path / "empty.gguf", tmp_path / "plain")
    with pytest.raises(ValueError, match="there is no GGUF file"):
        local_checkpoint(str(tmp_path / "missing.gguf"))


def test_other_models_are_left_as_they_are() -> None:
    assert local_checkpoint("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert is_gguf("folder/Model.Q4_1.GGUF") and not is_gguf("folder/gguf")


def test_loss_is_the_mean_over_tokens(model) -> None:
    class Words:
        def __call__(self, text, **_):
            return type("Encoding", (), {"input_ids": torch.tensor([[int(x) for x in text.split()]])})

    texts = ["5 6 7", "8", "9 10"]
    with torch.no_grad():
        expected = (
            2 * model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
            + model(torch.tensor([[9, 10]]), labels=torch.tensor([[9, 10]])).loss
        ) / 3
    assert mean_loss(model, Words(), texts) == pytest.approx(float(expected), rel=1e-5)
