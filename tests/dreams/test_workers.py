"""Dreams that are tried out on Ray workers."""

import os
import signal
import threading
import time

import pytest
import torch

from sleep_trl.batched_lora import LoraJob
from sleep_trl.data.prompts import Prompter
from sleep_trl.dreams import Custom, DreamEvaluator, HeldoutLoss, SignificanceTest, Task
from sleep_trl.rollout import TransformersEngine
from tests.batched_lora.test_ray_workers import SPEC, TRAINING, make_jobs, two_workers
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def workers():
    with two_workers() as made:
        yield made


@pytest.fixture
def engine():
    return TransformersEngine(tiny_model(tie_word_embeddings=False), tiny_tokenizer(), batch_size=4)


def make_tasks(count=7):
    return [
        Task(f"task {i % 3}", "", heldout=f"the cat of Mira is called Tolu and {'eats ' * (i % 3 + 1)}")
        for i in range(count)
    ]


def evaluate_dreams(engine, measure, workers=None, dreams=None):
    dreams = dreams or make_jobs()
    evaluator = DreamEvaluator(
        engine, measure, SPEC, TRAINING, SignificanceTest("sign", repeats=2), chunk=2, workers=workers
    )
    return evaluator.try_out(dreams, make_tasks(len(dreams)))


def test_workers_give_the_same_trials(workers, engine):
    measure = HeldoutLoss(Prompter(tiny_tokenizer()), piece=2)
    alone = evaluate_dreams(engine, measure)
    assert evaluate_dreams(engine, measure, workers) == alone
    assert {trial.reward for trial in alone} == {0.0, 1.0}


def test_a_failing_dream_is_an_error_instead_of_a_zero(workers, engine):
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[3] = float("nan")
    good = [LoraJob(d.id, tuple(tuple(max(4, t) for t in s) for s in d.sequences)) for d in make_jobs(4)]
    dreams = [*good, LoraJob("poisoned", ((8, 3, 9),)), LoraJob("empty", ())]

    def half(task, ask):
        return [float("nan") if ask(["of"]) == "never" else 0.5]

    trials = evaluate_dreams(engine, Custom(half, Prompter(tiny_tokenizer())), workers, dreams)
    assert [trial.reward for trial in trials] == [0.0] * 4 + [None] * 2
    assert "loss nan" in trials[4].error and "no sequence" in trials[5].error


@pytest.mark.parametrize("where", ["here", "on a worker"])
def test_a_score_that_is_not_a_number_is_an_error(workers, engine, where):
    driver = os.getpid()
    calls = []

    def broken_measure(tasks, answerer):
        calls.append(os.getpid())
        is_after = os.getpid() != driver or len(calls) > 1
        return [[1.0, float("nan") if is_after else 0.0] for _ in tasks]

    trials = evaluate_dreams(engine, broken_measure, workers if where == "on a worker" else None)
    assert all(trial.reward is None and "nan" in trial.error for trial in trials)


def test_a_killed_worker_loses_no_dream(workers, engine, tmp_path):
    prompter = Prompter(tiny_tokenizer())
    measure = HeldoutLoss(prompter, piece=2)
    undisturbed = evaluate_dreams(engine, measure, workers)
    driver, killed = os.getpid(), tmp_path / "killed"

    def measure_after_kill(tasks, answerer):
        if os.getpid() != driver:
            (tmp_path / f"{os.getpid()}.pid").touch()
            while not killed.exists():  # its dreams are trained but not scored yet
                time.sleep(0.02)
        return measure(tasks, answerer)

    def kill_the_first() -> None:
        while not (found := list(tmp_path.glob("*.pid"))):
            time.sleep(0.02)
        os.kill(int(found[0].stem), signal.SIGKILL)
        killed.write_text(found[0].stem)

    killer = threading.Thread(target=kill_the_first, daemon=True)
    killer.start()
    trials = evaluate_dreams(engine, measure_after_kill, workers)
    killer.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(killed.read_text()), 0)
    assert len(list(tmp_path.glob("*.pid"))) > 1  # others took over
    assert trials == undisturbed


def test_workers_need_chunks(engine):
    with pytest.raises(ValueError, match="Give `chunk`"):
        DreamEvaluator(engine, HeldoutLoss(Prompter(tiny_tokenizer())), workers=object())
