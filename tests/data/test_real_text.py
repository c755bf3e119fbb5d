"""A night on real text: SQuAD passages, a Qwen3 model with random weights, a chat template and a byte-level BPE
tokenizer trained on the text. Its recall means nothing; what matters is that nothing is truncated or dropped."""

import json
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sleep_trl.launch import sleep
from tests.tiny import tiny_model

PASSAGES = Path(__file__).parent / "squad" / "passages.jsonl"
CONTEXT = 320
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def rows() -> list[dict]:
    return [json.loads(line) for line in PASSAGES.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("squad")
    bpe = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator([row["text"] for row in rows()], vocab_size=1500, special_tokens=special)
    names = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **names)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "model")
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model = tiny_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **ids)
    model.save_pretrained(folder / "model")
    options = {
        "model": folder / "model",
        "memories": PASSAGES,
        "output_dir": folder / "run",
        "memory.width": 8,
        "dataset.templates": '["question_answer", "continuation", "paraphrase", "summary"]',
        "dataset.samples_per_window": 1,
        "dataset.max_new_tokens": 16,
        "dataset.general_samples": 8,
        "dataset.general_max_new_tokens": 16,
        "seeding.passes": 1,
        "seeding.prompts_per_step": 8,
        "seeding.num_generations": 2,
        "seeding.max_completion_length": 16,
        "evaluation.max_new_tokens": 8,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    assert sleep.main([*words, "--dataset.keep_truncated", "--no-dataset.check_answers", "--no-report"]) == 0
    return folder


def test_every_passage_is_read_completely(run):
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    written = json.loads((run / "run" / "phases" / "write_dataset.json").read_text())["result"]
    samples = [s for s in written["samples"] if s["part"] == "memory"]
    assert {s["memory_id"] for s in samples} == {row["id"] for row in rows()}
    for row in rows():
        prompts = [tokenizer.decode(s["teacher_prompt_ids"]) for s in samples if s["memory_id"] == row["id"]]
        for word in row["text"].split():  # every word of the passage is in some prompt
            assert any(word in prompt for prompt in prompts), word
        assert any(row["text"].strip()[-30:] in prompt for prompt in prompts)
    assert max(len(tokenizer(row["text"])["input_ids"]) for row in rows()) > CONTEXT  # some had to be split


def test_prompts_leave_space_for_the_answer(run):
    written = json.loads((run / "run" / "phases" / "write_dataset.json").read_text())["result"]
    assert max(len(s["teacher_prompt_ids"]) for s in written["samples"]) + 16 <= CONTEXT
    assert all("<|im_start|>assistant" in s["prompt"] for s in written["samples"])


def test_only_the_teachers_prompt_has_the_context(run):
    written = json.loads((run / "run" / "phases" / "write_dataset.json").read_text())["result"]
    summaries = [s for s in written["samples"] if s["template"] == "summary"]
    texts = {row["id"]: row["text"] for row in rows()}
    assert summaries and all(texts[s["memory_id"]][80:120] not in s["prompt"] for s in summaries)
    assert all(len(s["teacher_prompt_ids"]) > len(s["prompt_ids"]) for s in summaries)


def test_every_question_was_asked(run):
    results = json.loads((run / "run" / "results.json").read_text())
    assert results["recall"]["before"] is not None and results["recall"]["with_context"] is not None
    assert results["base_skill"]["before"] == 1.0
