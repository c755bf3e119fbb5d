import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sleep_trl.batched_lora import LoraJob, LoraSpec, LoraTraining, Workers, divide_jobs, train_adapters
from sleep_trl.batched_lora.transport import changed, pack, unpack, weights_of
from sleep_trl.memory import MemorySpec, attach
from tests.tiny import FORMS, tiny_model

SPEC, TRAINING = LoraSpec(rank=4), LoraTraining(steps=5, learning_rate=1e-2)
IDS = torch.tensor([[5, 9, 4, 8, 6]])


@contextmanager
def two_workers():
    """Start a Ray with two workers, and stop it at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker has, so that sums have the same order everywhere
    yield Workers(count=2)
    import ray

    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def workers():
    with two_workers() as made:
        yield made


def make_jobs(count=7):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, 97, (5 + (7 * i) % 11,), generator=generator).tolist() for i in range(count)]
    return [LoraJob(f"job {i}", (tuple(row),)) for i, row in enumerate(rows)]


def test_workers_change_no_bit(workers):
    model = tiny_model(tie_word_embeddings=False)
    chunks = [[make_jobs()[i] for i in part] for part in divide_jobs(make_jobs(), 3)]
    remote = workers.run(model, lambda model, chunk: train_adapters(model, chunk, SPEC, TRAINING), chunks)
    for chunk, results in zip(chunks, remote, strict=True):
        for local, result in zip(train_adapters(model, chunk, SPEC, TRAINING), results, strict=True):
            assert result.losses == local.losses
            for name, pair in local.adapter.weights.items():
                assert all(map(torch.equal, pair, result.adapter.weights[name]))


@pytest.mark.parametrize("form", FORMS)
def test_a_model_is_the_same_after_packing(workers, form):
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


def test_only_trained_weights_are_sent_again(workers):
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


def test_a_worker_sees_later_changes(workers):
    model = tiny_model()
    work = lambda model, chunk: model(input_ids=IDS).logits[0, -1, chunk].item()  # noqa: E731
    before = workers.run(model, work, [3, 4])
    for _ in range(2):
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.5)
        after = workers.run(model, work, [3, 4])
        assert after == [model(input_ids=IDS).logits[0, -1, chunk].item() for chunk in (3, 4)] != before


def test_a_chunk_that_always_kills_its_worker_is_an_error(workers, tmp_path):
    def dies(model, chunk):
        Path(tmp_path, f"{os.getpid()}").touch()
        os._exit(1)

    with pytest.raises(RuntimeError, match="lost its worker 2 times"):
        Workers(retries=1).run(tiny_model(), dies, [0])
    assert len(list(tmp_path.iterdir())) == 2


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="gpus in"):
        Workers(gpus=2)
    with pytest.raises(ValueError, match="its own size"):
        Workers("127.0.0.1:6379", count=2)
