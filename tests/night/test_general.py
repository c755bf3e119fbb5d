"""General self-replay of a night, on a tiny model that reads every text."""

from pathlib import Path

import pytest

from sleep_trl.data.samples import HELD_OUT
from sleep_trl.data.shipped_sets import read_shipped
from sleep_trl.launch import sleep
from sleep_trl.runs.files import read_json, write_jsonl
from tests.tiny import byte_tokenizer, tiny_model
from tests.tiny_runs import arguments, write_memories

CHAT = "{% for m in messages %}<user>{{ m.content }}{% endfor %}<assistant>"


def plain_texts(folder: Path) -> Path:
    write_jsonl(folder / "plain.jsonl", ({"text": f"plain {n:02}"} for n in range(12)))
    return folder / "plain.jsonl"


def general_samples(folder: Path, chat_template: str | None, **options: object) -> list[str]:
    """Run a night and return its general samples: prompt and answer, in order."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    model = tiny_model(vocab_size=257, max_position_embeddings=512)
    model.get_output_embeddings().weight.data *= 100  # so sure of itself that it predicts worse than by guessing
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    paths = {"model": folder / "model", "memories": write_memories(folder / "m.jsonl"), "output_dir": folder / "run"}
    options |= {"seeding__steps": 1, "seeding__prompts_per_step": 4, "dataset__samples_per_window": 1}
    options |= {"dataset__general_max_new_tokens": 4, "dataset__keep_truncated": True, "no-report": True}
    assert sleep.main(arguments(**paths, **options)) == 0
    samples = read_json(folder / "run" / "phases" / "write_dataset.json")["result"]["samples"]
    return [s["prompt"] + s["reference"] for s in samples if s["part"] == "general"]


@pytest.mark.parametrize(("chat_template", "how"), [(CHAT, "answers"), (None, "continues")])
def test_by_default_each_begins_with_another_shipped_prompt(tmp_path, capsys, chat_template, how):
    general = general_samples(tmp_path, chat_template, dataset__general_samples=4, dataset__plain_share=0)
    assert f"For self-replay the model {how} shipped prompts" in " ".join(capsys.readouterr().out.split())
    prompts = [prompt.text for prompt in read_shipped("general_prompts")]
    starts = [next(p for p in prompts if text.removeprefix("<user>").startswith(p)) for text in general]
    assert len({*starts}) == len(starts) > HELD_OUT


def test_samples_that_are_held_out_are_counted_apart(tmp_path, capsys):
    general = general_samples(tmp_path, None, dataset__general_samples=4, dataset__plain_share=0)
    counts = read_json(tmp_path / "run" / "results.json")["dataset"]["samples"]
    assert counts["general"] + counts["held_out"] == len(general) and counts["held_out"] == HELD_OUT
    printed = " ".join(capsys.readouterr().out.split())
    assert counts["general"] <= 4
    assert f"{counts['general']} general, 0 earlier, 8 general held out to measure agreement" in printed


def test_a_text_that_is_held_out_is_not_trained_on(tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", ({"text": f"text {n:02}:"} for n in range(2 * HELD_OUT + 1)))
    options = {"dataset__general_texts": tmp_path / "texts.jsonl", "dataset__general_samples": 3 * HELD_OUT}
    options |= {"dataset__plain_share": 0}
    starts = [text[: len("text 00:")] for text in general_samples(tmp_path, None, **options)]
    assert starts[:3] == ["text 00:", "text 01:", "text 02:"] and len(starts) > len({*starts})
    assert not {*starts[:HELD_OUT]} & {*starts[HELD_OUT:]}


@pytest.mark.parametrize("chat_template", [CHAT, None])
def test_half_of_the_replayed_samples_are_plain_texts(tmp_path, capsys, chat_template):
    options = {"dataset__plain_texts": plain_texts(tmp_path), "dataset__general_samples": 8}
    general = general_samples(tmp_path, chat_template, **options)
    assert "also reads 4 pieces of given texts" in " ".join(capsys.readouterr().out.split())
    is_plain = [text.startswith("plain") or text[0] == " " for text in general]
    assert len(general) == HELD_OUT + 8 and is_plain == [False] * (HELD_OUT + 4) + [True] * 4


def test_shipped_texts_are_not_read_by_a_model_that_guesses(tmp_path, capsys):
    assert len(general_samples(tmp_path, None, dataset__general_samples=8)) == HELD_OUT + 8
    told = " ".join(capsys.readouterr().out.split())
    assert "No plain texts are read for self-replay: the model does worse than guessing on the shipped prose" in told


def test_no_plain_text_is_read_if_none_is_wanted(tmp_path):
    options = {"dataset__plain_texts": plain_texts(tmp_path), "dataset__plain_share": 0, "dataset__general_samples": 8}
    assert not any(text.startswith("plain") for text in general_samples(tmp_path, None, **options))
