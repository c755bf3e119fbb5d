"""The base skill of a night: what is measured, where it is said, and a night that costs too much of it."""

from pathlib import Path

from sleep_trl.config.command_line import parse
from sleep_trl.launch import sleep
from sleep_trl.night.context import prepare
from sleep_trl.night.evaluate import evaluate, evaluate_after
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.runs.files import read_json, write_jsonl
from sleep_trl.runs.ledger import read_ledger
from tests.tiny import byte_tokenizer, tiny_model
from tests.tiny_runs import arguments, write_memories

ROOT = Path(__file__).parents[2]


def test_a_night_that_raises_the_perplexity_too_much_is_rolled_back(model, tmp_path, capsys):
    unseen = ("w30 w31 w32 w33 w34 w35", "it eats hats while Ben sleeps")
    write_jsonl(tmp_path / "prose.jsonl", ({"text": text} for text in unseen))
    paths = {"model": model, "memories": write_memories(tmp_path / "m.jsonl"), "output_dir": tmp_path / "run"}
    options: dict[str, object] = {"seeding__steps": 2, "seeding__learning_rate": 1.0, "seeding__warmup_steps": 0}
    options |= {"seeding__prompts_per_step": 2, "dataset__templates": '["paraphrase"]'}
    options |= {"dataset__keep_truncated": True, "dataset__samples_per_window": 1, "dataset__general_share": 0}
    options |= {"evaluation__perplexity": tmp_path / "prose.jsonl", "retention__max_skill_loss": 0.01}
    assert sleep.main(arguments(**paths, **options)) == 0
    said = " ".join(capsys.readouterr().out.split())
    results = read_json(tmp_path / "run" / "results.json")
    perplexity = results["perplexity"]
    assert perplexity["after"] > 1.01 * perplexity["before"] and perplexity["texts"].startswith(
        "2 texts of prose.jsonl"
    )
    assert results["rolled_back"].startswith(f"the perplexity rose from {perplexity['before']:.2f} to ")
    assert "retention.max_skill_loss (1.0 %)" in results["rolled_back"]
    (entry,) = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert entry.rolled_back and entry.metrics["after"]["perplexity"] == perplexity["after"]
    assert results["base_skill"]["measure"] == "greedy agreement with the base"
    reason = results["left_out"]["skill"]
    assert "the shipped passages" in reason and reason in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "The base skill is measured without reading questions" in said


def test_questions_of_which_the_model_answers_none_are_not_its_skill(tmp_path, capsys):
    """An untrained model of characters reads the shipped passages, and answers none of their questions."""
    tiny_model(vocab_size=257, max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    memories = write_memories(tmp_path / "m.jsonl")
    options = {"evaluation__max_questions": 4, "evaluation__max_new_tokens": 2, "rollout__engine": "transformers"}
    paths = {"model": tmp_path / "model", "memories": memories, "output_dir": tmp_path / "run"}
    ctx = prepare(RunInputs(parse(arguments(**paths, **options))))
    before = evaluate(ctx, "before")
    assert before["skill"] is None and "answers none of the" in before["left_out"]["skill"]
    after = evaluate_after(ctx, before["left_out"])
    assert after["skill"] is None and after["left_out"] == before["left_out"]
    assert "measured without reading questions: the model answers none" in " ".join(capsys.readouterr().out.split())


def test_texts_that_the_model_predicts_worse_than_by_guessing_are_not_its_skill(tmp_path, capsys):
    """The quickstart's model knows one invented town. A file that the user gives is measured all the same."""
    given = [f"--config={ROOT}/examples/quickstart/config.yaml", f"--model={ROOT}/examples/quickstart/model"]
    given += [f"--memories={ROOT}/examples/quickstart/memories.jsonl", f"--output_dir={tmp_path}"]
    given += ["--evaluation.max_questions=2", "--rollout.engine=transformers"]
    ctx = prepare(RunInputs(parse(given)))
    before = evaluate(ctx, "before")
    assert before["questions"] == 2
    assert before["perplexity"] is None and "worse than guessing on" in before["left_out"]["perplexity"]
    assert "worse than guessing on" in " ".join(capsys.readouterr().out.split())
    after = evaluate_after(ctx, before["left_out"])
    assert after["perplexity"] is None and after["left_out"] == before["left_out"]
    write_jsonl(tmp_path / "own.jsonl", [{"text": "It rained all day, and nobody in the harbor minded."}])
    ctx = prepare(RunInputs(parse([*given, f"--evaluation.perplexity={tmp_path}/own.jsonl"])))
    assert evaluate(ctx, "before")["perplexity"] > 372 and "perplexity" not in evaluate(ctx, "before")["left_out"]
