import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from sleep_trl.batched_lora import LoraSpec, LoraTraining
from sleep_trl.config.command_line import parse
from sleep_trl.data.prompts import Prompter
from sleep_trl.dreams.evaluator import DreamEvaluator, SignificanceTest, Trial
from sleep_trl.dreams.gradients import Text
from sleep_trl.dreams.measure import Custom, HeldoutLoss, Questions, Task
from sleep_trl.dreams.significance import paired_gain
from sleep_trl.memory import Memory, MemorySpec, attach
from sleep_trl.models.loading import load_tokenizer
from sleep_trl.rewards import resolve
from sleep_trl.rollout import TransformersEngine
from sleep_trl.trainers import DreamingConfig, DreamingTrainer
from sleep_trl.trainers.dreaming.from_config import dreaming_arguments
from sleep_trl.trainers.dreaming.trainer import TRIAL, reads, worth_learning

TOWN = (
    ("Robbin", "inn", "Zora", "runs", "run"),
    ("Nerri", "lantern", "Denda", "lights", "light"),
    ("Kabbin", "boat", "Saffle", "rows", "row"),
    ("Jokin", "bridge", "Bora", "sweeps", "sweep"),
)

TOWN_TASK = Task("Robbin", "Robbin runs the inn Zora.")
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"

OPTIONS = {
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 24,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "selection": "all",
    "metric": "exact",
    "max_answer_length": 8,
    "lora_rank": 4,
    "lora_steps": 8,
    "lora_learning_rate": 5e-3,
    "test": "sign",
    "trial_batch_size": 128,
    "logging_steps": 1,
    "report_to": "none",
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def reader():
    """The quickstart's model, which can read and knows nothing, with its tokenizer."""
    from transformers import AutoModelForCausalLM

    folder = QUICKSTART / "model"
    config = parse(["--model", str(folder), "--memories", str(QUICKSTART / "memories.jsonl")])
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_tokenizer(config)


def tasks(count=4):
    rows = []
    for who, kind, name, does, do in TOWN[:count]:
        asked = {
            f"What is the {kind} of {who} called?": name,
            f"Which {kind} does {who} {do}?": name,
            f"Who {does} the {kind} {name}?": who,
        }
        text = f"{who} {does} the {kind} {name}."
        questions = [{"question": question, "answers": [answer]} for question, answer in asked.items()]
        rows.append({"prompt": text, "task_id": who, "context": text, "questions": questions})
    return Dataset.from_list(rows)


def dreamer(reader, folder, data=None, evaluator=None, **options):
    model, tokenizer = copy.deepcopy(reader[0]), reader[1]
    attach(model, MemorySpec(width=32, max_experts=2)).activate()
    return DreamingTrainer(
        model,
        options.pop("reward_funcs", None),
        args=DreamingConfig(str(folder), **{**OPTIONS, **options}),
        train_dataset=data or tasks(),
        processing_class=tokenizer,
        evaluator=evaluator,
        learn=lambda ids: ((tokenizer.bos_token_id, *ids),),
    )


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_the_arguments_describe_the_evaluator(reader, tmp_path):
    t = dreamer(reader, tmp_path, repeats=2, confidence=0.9, chunk=3, lora_alpha=8.0, seed=7)
    assert t.evaluator.engine.model is t.model and t.evaluator.engine.batch_size == 128
    assert t.evaluator.spec == LoraSpec(4, 8.0)
    assert t.evaluator.training == LoraTraining(8, 5e-3, seed=7)
    assert t.evaluator.significance == SignificanceTest("sign", 0.9, 2)
    assert t.evaluator.chunk == 3 and t.evaluator.workers is None
    assert isinstance(t.evaluator.measure, Questions) and t.evaluator.measure.max_new_tokens == 8
    assert isinstance(dreamer(reader, tmp_path, measure="heldout_loss").evaluator.measure, HeldoutLoss)


def test_a_night_reaches_every_measure(reader, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def scores(task, ask):\n    return [float(len(reply) > 0) for reply in ask([task.context])]\n")

    def made(*given):
        words = [
            "--model",
            "m",
            "--memories",
            "d.jsonl",
            "--output_dir",
            str(tmp_path / "run"),
            "--dream.rounds",
            "1",
            *given,
        ]
        args = dreaming_arguments(parse(words), 4, tmp_path)
        return dreamer(reader, tmp_path, measure=args.measure, judge=args.judge).evaluator.measure

    assert isinstance(made(), Questions) and made().judge is None
    assert made("--dream.judge", '{"name": "lexical", "params": {"mode": "contains"}}').judge.mode == "contains"
    assert isinstance(made("--dream.measure", "heldout_loss"), HeldoutLoss)
    custom = made("--dream.measure", f"{mine}:scores")
    assert isinstance(custom, Custom)
    custom = pickle.loads(pickle.dumps(custom.function))  # as it is sent to a worker
    assert custom(TOWN_TASK, lambda prompts: ["Zora" for _ in prompts]) == [1.0]


def test_a_given_evaluator_is_used_instead(reader, tmp_path):
    engine = TransformersEngine(*reader)
    given = DreamEvaluator(engine, lambda tasks, answerer: [[1.0] for _ in tasks], training=LoraTraining(steps=1))
    t = dreamer(reader, tmp_path, evaluator=given, rounds=1)
    t.train()
    assert t.evaluator is given
    assert {r["trial_gain"] for r in t.trials} == {0.0} and not any(r["rewarded"] for r in t.trials)


def test_each_round_dreams_of_all_tasks_and_learns_what_helped(reader, tmp_path):
    t = dreamer(reader, tmp_path, rounds=2, em_epochs=3)
    base = {name: p.clone() for name, p in Memory.of(t.model).base_parameters()}
    t.train()
    steps = sorted({record["step"] for record in t.trials})
    assert [sum(r["step"] == step for r in t.trials) for step in steps] == [16, 16]  # 4 tasks of 4 dreams, twice
    assert t.state.global_step == 2 * 3 * 2  # two batches of eight, three times a round
    rewarded = [r for r in t.trials if r["rewarded"]]
    assert rewarded and all(r["trial_gain"] > 0 for r in rewarded)
    assert all(r["trial_gain"] <= 0 for r in t.trials if r["trial_reward"] == 0)
    assert logged(t, "dreams/better") == [
        sum(r["rewarded"] for r in t.trials if r["step"] == step) / 16 for step in steps
    ]
    for name, p in Memory.of(t.model).base_parameters():
        assert torch.equal(p, base[name])


def test_the_loss_is_the_likelihood_of_the_rewarded_dreams(reader, tmp_path):
    t = dreamer(reader, tmp_path, per_device_train_batch_size=16, rounds=1)
    batch = t._prepare_inputs(next(iter(t.get_train_dataloader())))
    loss = t._compute_loss(t.model, batch).item()
    total = count = 0.0
    for i in range(16):
        if not batch["rewarded"][i]:
            continue
        keep = batch["completion_mask"][i].sum()
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()]
        completion = batch["completion_ids"][i][:keep]
        with torch.no_grad():
            logits = t.model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        total -= logits.log_softmax(-1).gather(1, completion[:, None]).sum().item()
        count += keep.item()
    assert 0 < batch["rewarded"].sum() < 16
    assert loss == pytest.approx(total / count, rel=1e-4)


def test_micro_batches_add_up_to_the_same_step(reader, tmp_path):
    runs = []
    for batch, accumulation in ((16, 1), (8, 2)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "rounds": 1}
        runs.append(dreamer(reader, tmp_path / str(batch), **options))
        runs[-1].train()
        assert runs[-1].state.global_step == 1
    whole, halves = runs
    assert [r["dream"] for r in whole.trials] == [r["dream"] for r in halves.trials]
    for (name, a), (_, b) in zip(
        Memory.of(whole.model).expert_parameters(0), Memory.of(halves.model).expert_parameters(0), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_selection_comes_before_the_trial(reader, tmp_path):
    """One dream by its gradient and one by chance of each four are tried out; the others have no reward."""
    t = dreamer(reader, tmp_path, selection="gradient_norm", select_top_k=1, select_random_k=1, rounds=1)
    t.train()
    by_task = {task: [r for r in t.trials if r["task_id"] == task] for task in {r["task_id"] for r in t.trials}}
    for records in by_task.values():
        assert sorted(r["selected"] for r in records) == ["", "", "random", "top"]
        best = max(records, key=lambda r: r["score"])
        assert best["selected"] == "top" or best["score"] == next(r for r in records if r["selected"] == "top")["score"]
    assert all(r["trial_gain"] is None and not r["rewarded"] for r in t.trials if not r["selected"])
    assert logged(t, "dreams/tried") == [8]


def test_selection_does_not_restrict_sampling(reader, tmp_path):
    """`top_k` is GRPO's: it would sample each token from the likeliest ones."""
    assert dreamer(reader, tmp_path, select_top_k=1).generation_config.top_k == 0
    config = parse(["--model", "m", "--memories", "d.jsonl", "--output_dir", str(tmp_path), "--dream.rounds", "1"])
    args = dreaming_arguments(config, 4, tmp_path)
    assert (args.top_k, args.select_top_k, args.select_random_k) == (0, 4, 1)


def test_grpo_learns_from_the_scored_dreams_alone(reader, tmp_path):
    t = dreamer(
        reader, tmp_path, improvement="grpo", max_steps=1, per_device_train_batch_size=16, selection="random",
        select_top_k=2, select_random_k=1,
    )  # fmt: skip
    batch = t._prepare_inputs(next(iter(t.get_train_dataloader())))
    unscored = batch["advantages"] == 0
    assert unscored.sum() >= 4  # one of each four was not selected
    t.train()
    assert logged(t, "loss")


def test_other_rewards_do_not_make_up_for_a_task_that_did_not_improve():
    """Rows: improved, did not, uncertain, too little in sum, not tried out."""
    nan = torch.nan
    rewards = torch.tensor([[1.0, 0.0], [0.0, 0.9], [nan, 0.9], [1.0, -1.2], [nan, nan]])
    improved = [True, False, False, True, False]
    assert worth_learning(rewards, improved, [True, False], 0.0).tolist() == [True, False, False, False, False]
    assert worth_learning(rewards, improved, [True, False], -0.5).tolist() == [True, False, False, True, False]
    assert worth_learning(rewards[:, 1:], improved, [False], -2).tolist() == [True, False, False, True, False]


def test_rewards_that_read_the_trial_are_told_from_others():
    assert reads(resolve("improvement"), TRIAL) and reads(resolve("quiz_gain"), TRIAL)
    assert not reads(resolve("novelty"), TRIAL) and not reads(resolve("faithfulness"), TRIAL)
    assert reads(lambda completions, trial_low, **columns: [], TRIAL)


class Scripted(DreamEvaluator):
    """Finds that every other dream gains or loses a third of its questions."""

    def try_out(self, dreams, tasks):
        scores = [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]
        gains = [
            paired_gain(scores[1 - i % 2], scores[i % 2], test="sign", confidence=0.95) for i in range(len(dreams))
        ]
        return [Trial(dream.id, gain) for dream, gain in zip(dreams, gains, strict=True)]


@pytest.mark.parametrize("gain", [{"name": "improvement", "params": {"reward": "gain"}}, "quiz_gain"])
def test_a_small_gain_as_the_reward_is_learned(reader, tmp_path, gain):
    """The gain is below one half, the former default, and novelty adds to what did not help as well."""
    evaluator = Scripted(TransformersEngine(*reader), Questions(Prompter(reader[1])))
    rewards = [resolve(gain), resolve("novelty")]
    t = dreamer(reader, tmp_path, evaluator=evaluator, reward_funcs=rewards, rounds=1, max_completion_length=8)
    t.train()
    assert {(record["trial_gain"] > 0, record["rewarded"]) for record in t.trials} == {(True, True), (False, False)}


def test_the_teacher_is_asked_only_for_a_reward_that_reads_it(reader, tmp_path, monkeypatch):
    evaluator = Scripted(TransformersEngine(*reader), Questions(Prompter(reader[1])))
    asked, seen = [], []

    def likely(trainer, texts):
        asked.append(len(texts))
        return [0.5] * len(texts)

    monkeypatch.setattr(DreamingTrainer, "_teacher_probabilities", likely)

    def takes_all(completions, **columns):
        seen.append("teacher_probability" in columns)
        return [1.0] * len(completions)

    for rewards in ([takes_all], [takes_all, resolve("faithfulness")]):
        t = dreamer(reader, tmp_path, evaluator=evaluator, reward_funcs=rewards, rounds=1, max_completion_length=4)
        t.train()
    assert asked == [16] and seen == [False, True]


def test_users_rewards_see_the_trial(reader, tmp_path):
    seen = []

    def brief(completions, trial_gain, trial_reward, context, **columns):
        seen.extend(zip(completions, trial_gain, trial_reward, strict=True))
        return [float(bool(re.match("Question", text))) for text in completions]

    t = dreamer(reader, tmp_path, reward_funcs=brief, rounds=1)
    t.train()
    assert len(seen) == 16 and all(gain is not None for _, gain, _ in seen)
    assert {r["rewarded"] for r in t.trials if r["dream"].startswith("Question")} == {True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": tasks(3), "per_device_train_batch_size": 8}, "3 tasks of 4 dreams"),
        ({"data": tasks().remove_columns("context")}, "context"),
        ({"rounds": 0}, "rounds"),
        ({"measure": "custom"}, "questions, heldout_loss, got 'custom'.*evaluator"),
        ({"workers": 2}, "chunk"),
    ],
)
def test_impossible_settings_are_refused(reader, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        dreamer(reader, tmp_path, **options)


def test_the_teacher_finds_a_true_dream_likelier_than_a_false_one(reader, tmp_path):
    t = dreamer(reader, tmp_path)
    ids = t.processing_class
    prompt = ids("Robbin runs the inn Zora.")["input_ids"]
    said = [
        "\nQuestion: Which inn does Robbin run?\nAnswer: Zora",
        "\nQuestion: Which inn does Robbin run?\nAnswer: Mara",
    ]
    texts = [Text.behind(prompt, ids(dream, add_special_tokens=False)["input_ids"]) for dream in said]
    true, false = t._teacher_probabilities(texts)
    assert 1 >= true > 2 * false > 0
    memory = Memory.of(t.model)
    with torch.no_grad():
        for _, parameter in memory.expert_parameters(memory.learning):
            parameter.normal_()  # the teacher is the model without its learning expert
    assert t._teacher_probabilities(texts) == [true, false]
