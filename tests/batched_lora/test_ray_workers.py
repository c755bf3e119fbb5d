import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from sleep_trl.batched_lora.adapters import LoraSpec
from sleep_trl.batched_lora.api import train_adapters
from sleep_trl.batched_lora.batches import LoraJob, divide_jobs
from sleep_trl.batched_lora.inner_loop import InnerLoop
from sleep_trl.batched_lora.ray_workers import Workers
from sleep_trl.batched_lora.transport import changed, pack, unpack, weights_of
from sleep_trl.data.prompts import Prompter
from sleep_trl.dreams.evaluator import DreamEvaluator, SignificanceTest
from sleep_trl.dreams.measure import Custom, HeldoutLoss, Task
from sleep_trl.memory import MemorySpec, attach
from sleep_trl.rollout import TransformersEngine
from tests.tiny import FORMS, tiny_model, tiny_tokenizer

SPEC, LOOP = LoraSpec(rank=4), InnerLoop(steps=5, learning_rate=1e-2)
IDS = torch.tensor([[5, 9, 4, 8, 6]])


@pytest.fixture(scope="module")
def workers():
    """Two workers of a Ray of this module's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker has: then every sum has one order everywhere
    made = Workers(count=2)
    yield made
    import ray

    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture
def engine():
    return TransformersEngine(tiny_model(tie_word_embeddings=False), tiny_tokenizer(), batch_size=4)


def make_dreams(count=7):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, 97, (5 + (7 * i) % 11,), generator=generator).tolist() for i in range(count)]
    return [LoraJob(f"dream {i}", (tuple(row),)) for i, row in enumerate(rows)]


def make_tasks(count=7):
    return [
        Task(f"task {i % 3}", "", heldout=f"the cat of Mira is called Tolu and {'eats ' * (i % 3 + 1)}")
        for i in range(count)
    ]


def evaluate_dreams(engine, measure, workers=None, dreams=None):
    dreams = dreams or make_dreams()
    evaluator = DreamEvaluator(
        engine, measure, SPEC, LOOP, SignificanceTest("sign", repeats=2), chunk=2, workers=workers
    )
    return evaluator.try_out(dreams, make_tasks(len(dreams)))


def test_workers_change_no_result(workers, engine):
    """Adapters to the last bit, gains and rewards are those of one process that works on the same chunks."""
    measure = HeldoutLoss(Prompter(tiny_tokenizer()), piece=2)
    alone = evaluate_dreams(engine, measure)
    assert evaluate_dreams(engine, measure, workers) == alone
    assert {trial.reward for trial in alone} == {0.0, 1.0}

    chunks = [[make_dreams()[i] for i in part] for part in divide_jobs(make_dreams(), 3)]
    far = workers.run(engine.model, lambda model, chunk: train_adapters(model, chunk, SPEC, LOOP), chunks)
    for chunk, outcomes in zip(chunks, far, strict=True):
        for near, outcome in zip(train_adapters(engine.model, chunk, SPEC, LOOP), outcomes, strict=True):
            assert outcome.losses == near.losses
            for name, pair in near.adapter.weights.items():
                assert all(map(torch.equal, pair, outcome.adapter.weights[name]))


def test_a_failing_dream_is_an_error_and_no_zero(workers, engine):
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[3] = float("nan")
    good = [LoraJob(d.id, tuple(tuple(max(4, t) for t in s) for s in d.sequences)) for d in make_dreams(4)]
    dreams = [*good, LoraJob("poisoned", ((8, 3, 9),)), LoraJob("empty", ())]

    def half(task, ask):
        return [float("nan") if ask(["of"]) == "never" else 0.5]

    trials = evaluate_dreams(engine, Custom(half, Prompter(tiny_tokenizer())), workers, dreams)
    assert [trial.reward for trial in trials] == [0.0] * 4 + [None] * 2
    assert "loss nan" in trials[4].error and "no sequence" in trials[5].error


@pytest.mark.parametrize("where", ["here", "far"])
def test_a_score_that_is_no_number_is_an_error(workers, engine, where):
    driver = os.getpid()
    calls = []

    def breaks(tasks, answerer):
        calls.append(os.getpid())
        is_after = os.getpid() != driver or len(calls) > 1
        return [[1.0, float("nan") if is_after else 0.0] for _ in tasks]

    trials = evaluate_dreams(engine, breaks, workers if where == "far" else None)
    assert all(trial.reward is None and "nan" in trial.error for trial in trials)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_comes_out_as_it_went_in(workers, form):
    model = tiny_model(form)
    memory = attach(model, MemorySpec(width=8, max_experts=2))
    index = memory.activate()
    with torch.no_grad():
        for _, parameter in memory.expert_parameters(index):
            parameter.normal_(0, 0.2)
    sent = weights_of(model)
    packed = pack(model)
    assert len(packed) < 100_000
    (copy,) = unpack(packed, {name: weight.tensor() for name, weight in sent.items()})
    assert torch.equal(copy(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert copy.get_input_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_only_what_was_trained_travels_again(workers):
    model = tiny_model()
    memory = attach(model, MemorySpec(width=8, max_experts=2))
    index = memory.activate()
    sent = {
        name: type(weight)(weight.data.copy(), weight.dtype, weight.shape) for name, weight in weights_of(model).items()
    }
    assert not changed(model, sent)
    with torch.no_grad():
        for _, parameter in memory.expert_parameters(index):
            parameter.add_(1)
    expert = {id(parameter) for _, parameter in memory.expert_parameters(index)}
    assert set(changed(model, sent)) == {name for name, p in model.named_parameters() if id(p) in expert}


def test_a_worker_sees_what_was_trained_since(workers):
    model = tiny_model()
    work = lambda model, chunk: model(input_ids=IDS).logits[0, -1, chunk].item()  # noqa: E731
    before = workers.run(model, work, [3, 4])
    for _ in range(2):
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.5)
        after = workers.run(model, work, [3, 4])
        assert after == [model(input_ids=IDS).logits[0, -1, chunk].item() for chunk in (3, 4)] != before


def test_a_killed_worker_loses_no_dream(workers, engine, tmp_path):
    prompter = Prompter(tiny_tokenizer())
    measure = HeldoutLoss(prompter, piece=2)
    undisturbed = evaluate_dreams(engine, measure, workers)
    driver, killed = os.getpid(), tmp_path / "killed"

    def waits_to_be_killed(tasks, answerer):
        if os.getpid() != driver:
            (tmp_path / f"{os.getpid()}.pid").touch()
            while not killed.exists():  # its dreams are learnt and not yet scored
                time.sleep(0.02)
        return measure(tasks, answerer)

    def kill_the_first() -> None:
        while not (found := list(tmp_path.glob("*.pid"))):
            time.sleep(0.02)
        os.kill(int(found[0].stem), signal.SIGKILL)
        killed.write_text(found[0].stem)

    killer = threading.Thread(target=kill_the_first, daemon=True)
    killer.start()
    trials = evaluate_dreams(engine, waits_to_be_killed, workers)
    killer.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(killed.read_text()), 0)
    assert len(list(tmp_path.glob("*.pid"))) > 1  # others took over
    assert trials == undisturbed


def test_a_chunk_that_always_kills_its_worker_is_an_error(workers, engine, tmp_path):
    def dies(model, chunk):
        Path(tmp_path, f"{os.getpid()}").touch()
        os._exit(1)

    with pytest.raises(RuntimeError, match="lost its worker 2 times"):
        Workers(retries=1).run(engine.model, dies, [0])
    assert len(list(tmp_path.iterdir())) == 2


def test_wrong_calls_are_refused(engine):
    with pytest.raises(ValueError, match="gpus in"):
        Workers(gpus=2)
    with pytest.raises(ValueError, match="its own size"):
        Workers("127.0.0.1:6379", count=2)
    with pytest.raises(ValueError, match="Give `chunk`"):
        DreamEvaluator(engine, HeldoutLoss(Prompter(tiny_tokenizer())), workers=object())
