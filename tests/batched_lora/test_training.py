import copy
import hashlib
import itertools
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import get_scheduler

from sleep_trl.batched_lora import (
    LoraJob,
    LoraSpec,
    LoraTraining,
    export_adapter,
    head,
    train_adapters,
    using_adapters,
)
from sleep_trl.batched_lora.adapters import find_targets, initial_adapter
from sleep_trl.batched_lora.batches import data_order, divide, make_passes
from sleep_trl.memory import MemorySpec, attach
from tests.tiny import FORMS, tiny_model

SPEC = LoraSpec(rank=4, alpha=8)
TRAINING = LoraTraining(steps=6, learning_rate=1e-3, weight_decay=0.01, seed=3)
IDS = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(1))


def make_jobs(count: int, sequences: int = 1, seed: int = 0) -> list[LoraJob]:
    """Make jobs of different lengths and step counts; in every third one only the second half counts."""
    generator = torch.Generator().manual_seed(seed)
    jobs = []
    for i in range(count):
        lengths = [5 + (7 * i + 3 * k) % 17 for k in range(sequences)]
        ids = tuple(tuple(torch.randint(3, 97, (n,), generator=generator).tolist()) for n in lengths)
        half = tuple(tuple(place >= n // 2 for place in range(n)) for n in lengths)
        jobs.append(LoraJob(f"job {i}", ids, half if i % 3 == 2 else None, steps=3 + i % 5))
    return jobs


def checksum(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def peft_config(targets) -> LoraConfig:
    names = [target.name for target in targets]
    is_conv = type(targets[0].module).__name__ == "Conv1D"
    return LoraConfig(
        r=SPEC.rank, lora_alpha=SPEC.alpha, lora_dropout=0.0, target_modules=names, fan_in_fan_out=is_conv
    )


def trained_alone(model, job: LoraJob, training: LoraTraining) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Train one job by PEFT and torch's AdamW, with labels as transformers takes them, and return its A and B."""
    targets = find_targets(model, SPEC)
    first = initial_adapter(targets, SPEC, training.seed, job.id)
    adapted = get_peft_model(copy.deepcopy(model), peft_config(targets))
    layers = {name: adapted.get_submodule(f"base_model.model.{name}") for name in first.weights}
    for name, (down, up) in first.weights.items():
        layers[name].lora_A["default"].weight.data.copy_(down)
        layers[name].lora_B["default"].weight.data.copy_(up)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    steps = job.steps or training.steps
    optimizer = torch.optim.AdamW(
        trained,
        lr=job.learning_rate or training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
    )
    name = training.schedule if training.schedule != "constant" else "constant_with_warmup"
    schedule = get_scheduler(name, optimizer, training.warmup_steps, steps)
    for chosen in itertools.islice(data_order(job, training.batch_size, training.seed), steps):
        longest = max(len(job.sequences[n]) for n in chosen)
        ids, mask = torch.zeros(len(chosen), longest, dtype=torch.long), torch.zeros(len(chosen), longest).long()
        labels = torch.full_like(ids, -100)
        for row, n in enumerate(chosen):
            sequence = torch.tensor(job.sequences[n])
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
            counted = torch.tensor(job.counted[n]) if job.counted else torch.ones(len(sequence), dtype=torch.bool)
            labels[row, : len(sequence)] = torch.where(counted, sequence, -100)
        optimizer.zero_grad()
        adapted(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        if training.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
        optimizer.step()
        schedule.step()
    return {name: (m.lora_A["default"].weight, m.lora_B["default"].weight) for name, m in layers.items()}


def difference(one, other) -> float:
    assert one.keys() == other.keys()
    return max(float((a - b).detach().abs().max()) for name in one for a, b in zip(one[name], other[name], strict=True))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_each_adapter_equals_one_trained_by_peft(count):
    model = tiny_model()
    before = checksum(model)
    jobs = make_jobs(count)
    results = train_adapters(model, jobs, SPEC, TRAINING)
    assert checksum(model) == before
    for job, result in zip(jobs, results, strict=True):
        assert (result.id, result.error, result.updates) == (job.id, None, job.steps)
        assert difference(result.adapter.weights, trained_alone(model, job, TRAINING)) <= 1e-5
        first = initial_adapter(find_targets(model, SPEC), SPEC, TRAINING.seed, job.id)
        assert difference(result.adapter.weights, first.weights) > 1e-3  # it was trained


@pytest.mark.parametrize(
    "training",
    [
        LoraTraining(steps=5, batch_size=2, schedule="linear", max_grad_norm=0.5),
        LoraTraining(steps=5, batch_size=3, betas=(0.8, 0.95), weight_decay=0.1),
        LoraTraining(steps=6, batch_size=2, schedule="cosine", warmup_steps=2),
        LoraTraining(steps=6, warmup_steps=3),
    ],
)
def test_jobs_of_several_sequences(training):
    model = tiny_model()
    jobs = [*make_jobs(3, sequences=3), *make_jobs(5)[3:]]
    for job, result in zip(jobs, train_adapters(model, jobs, SPEC, training), strict=True):
        assert difference(result.adapter.weights, trained_alone(model, job, training)) <= 1e-5


def test_a_job_has_rows_in_several_passes_of_a_step():
    """60 pairs of a short and a long sequence, in two passes whose adapters are not adjacent and occur twice."""
    generator = torch.Generator().manual_seed(0)
    lengths = [(20 + 29 * i % 80, 5 + 31 * i % 90) for i in range(60)]
    sequences = [tuple(tuple(torch.randint(3, 97, (n,), generator=generator).tolist()) for n in two) for two in lengths]
    jobs = [LoraJob(f"job {i}", two) for i, two in enumerate(sequences)]
    model, training = tiny_model(), LoraTraining(steps=3, batch_size=2)
    passes = [rows.owners for rows in make_passes(model, [job.rows() for job in jobs])]
    assert all(len(set(owners)) < len(owners) for owners in passes) and set(passes[0]) & set(passes[1])
    for job, result in zip(jobs, train_adapters(model, jobs, SPEC, training), strict=True):
        alone = train_adapters(model, [job], SPEC, training)[0]
        assert difference(result.adapter.weights, alone.adapter.weights) <= 1e-5


REFUSED = {"falcon": "has no linear layer whose name", "qwen2_moe": "shared_expert.gate_proj cannot be a target"}


@pytest.mark.parametrize("form", REFUSED)
def test_a_form_without_plain_linear_layers_is_refused(form):
    with pytest.raises(ValueError, match=REFUSED[form]):
        train_adapters(tiny_model(form), make_jobs(3), SPEC, TRAINING)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in REFUSED])
def test_every_form_with_a_memory_attached(form):
    model = tiny_model(form)
    memory = attach(model, MemorySpec(width=8, max_experts=2))
    for index in (
        memory.activate(),
        memory.activate(),
    ):  # one is settled and computed inside its host, the other is learning
        with torch.no_grad():
            for _, parameter in memory.expert_parameters(index):
                parameter.normal_(0, 0.2)
    model.train()
    before, flags = checksum(model), [p.requires_grad for p in model.parameters()]
    jobs = make_jobs(3)
    results = train_adapters(model, jobs, SPEC, TRAINING)
    assert checksum(model) == before and all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == flags and any(flags)
    assert model.training and not any("forward" in module.__dict__ for module in model.modules())
    model.eval()
    for job, result in zip(jobs, results, strict=True):
        assert difference(result.adapter.weights, trained_alone(model, job, TRAINING)) <= 1e-5


def test_each_has_a_learning_rate_of_its_own():
    model, rates = tiny_model(), (1e-3, 4e-3, None)
    jobs = [replace(job, learning_rate=rate) for job, rate in zip(make_jobs(3), rates, strict=True)]
    for job, result in zip(jobs, train_adapters(model, jobs, SPEC, TRAINING), strict=True):
        assert difference(result.adapter.weights, trained_alone(model, job, TRAINING)) <= 1e-5


def test_other_jobs_of_a_call_change_nothing():
    model = tiny_model()
    jobs = make_jobs(7)
    whole = {o.id: o for o in train_adapters(model, jobs, SPEC, TRAINING)}
    for options in ({"chunk": 2}, {"max_tokens": 16}, {"chunk": 3, "max_tokens": 1}):
        for result in train_adapters(model, jobs[::-1], SPEC, TRAINING, **options):
            assert difference(result.adapter.weights, whole[result.id].adapter.weights) <= 1e-5
            assert result.losses == pytest.approx(whole[result.id].losses, abs=1e-5)


def test_each_stops_by_its_own_loss():
    model = tiny_model()
    repeated = LoraJob("easy", ((7, 31, 52, 11) * 3,))
    jobs = [repeated, *(LoraJob(d.id, d.sequences) for d in make_jobs(3))]
    training = LoraTraining(steps=40, learning_rate=2e-3)
    free = train_adapters(model, jobs, SPEC, training)
    limit = free[0].losses[9]
    stopped = train_adapters(model, jobs, SPEC, LoraTraining(steps=40, learning_rate=2e-3, stop_loss=limit + 1e-6))
    for one, other in zip(stopped, free, strict=True):
        expected = next((n for n, loss in enumerate(other.losses) if loss <= limit + 1e-6), 40)
        assert one.updates == expected
        assert len(one.losses) == min(expected + 1, 40)
    assert len({result.updates for result in stopped}) > 1
    short = train_adapters(model, [repeated], SPEC, LoraTraining(steps=stopped[0].updates, learning_rate=2e-3))
    assert difference(short[0].adapter.weights, stopped[0].adapter.weights) <= 1e-5


def test_patience_counts_steps_without_improvement():
    model, jobs = tiny_model(), [LoraJob(d.id, d.sequences) for d in make_jobs(4, sequences=2)]
    free = train_adapters(model, jobs, SPEC, LoraTraining(steps=20, learning_rate=0.1))
    patient = train_adapters(model, jobs, SPEC, LoraTraining(steps=20, learning_rate=0.1, patience=2))
    for one, other in zip(patient, free, strict=True):
        waited = [n - min(range(n + 1), key=other.losses.__getitem__) for n in range(20)]
        assert one.updates == next((n for n, steps in enumerate(waited) if steps == 2), 20)
    assert min(result.updates for result in patient) < 20


def test_a_failing_job_is_an_error_and_affects_no_other():
    model = tiny_model(tie_word_embeddings=False)  # or the poisoned word would spoil every job's logits
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    good = make_jobs(3)
    bad = [
        LoraJob("poisoned", ((8, 5, 9, 10),)),
        LoraJob("empty", ()),
        LoraJob("one token", ((8,),)),
        LoraJob("unknown id", ((8, 97),)),
        LoraJob("too long", ((8,) * 200,)),
        LoraJob("nothing counts", ((8, 9),), ((True, False),)),
        LoraJob("shape", ((8, 9),), ((True,),)),
        LoraJob("no rate", ((8, 9),), learning_rate=float("nan")),
    ]
    good = [LoraJob(d.id, tuple(tuple(6 if t == 5 else t for t in s) for s in d.sequences), d.counted) for d in good]
    results = {o.id: o for o in train_adapters(model, [bad[0], *good, *bad[1:]], SPEC, TRAINING)}
    for job in bad:
        assert results[job.id].adapter is None and job.id in str(results[job.id].error)
    assert "loss nan in step 1" in str(results["poisoned"].error)
    assert "at most 128" in str(results["too long"].error) and "97" in str(results["unknown id"].error)
    for job, alone in zip(good, train_adapters(model, good, SPEC, TRAINING), strict=True):
        assert results[job.id].error is None
        assert difference(results[job.id].adapter.weights, alone.adapter.weights) <= 1e-5


def test_wrong_calls_are_refused():
    model, jobs = tiny_model(), make_jobs(2)
    with pytest.raises(ValueError, match="id of its own"):
        train_adapters(model, [jobs[0], jobs[0]], SPEC, TRAINING)
    with pytest.raises(ValueError, match="ending with down_proj, gate_proj, k_proj"):
        train_adapters(model, jobs, LoraSpec(targets=("qproj",)), TRAINING)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        LoraTraining(steps=0)
    adapter = train_adapters(model, jobs[:1], SPEC, TRAINING)[0].adapter
    with pytest.raises(ValueError, match="indices from 0 to 0"), using_adapters(model, [adapter], [1]):
        pass
    with pytest.raises(ValueError, match="given for 3 rows"), using_adapters(model, [adapter], [0, 0, 0]):
        model(input_ids=IDS)
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("form", ["llama", "gpt2", "phi3"])
def test_peft_loads_what_is_exported(form, tmp_path):
    model = tiny_model(form)
    before = model(input_ids=IDS).logits
    adapter = train_adapters(model, make_jobs(1), SPEC, LoraTraining(learning_rate=1e-2))[0].adapter
    export_adapter(adapter, model, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with using_adapters(model, [adapter], [0, 0]):
        expected = model(input_ids=IDS).logits
    assert (expected - before).abs().max() > 0.1
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    assert (loaded(input_ids=IDS).logits - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 0, 1, 1, 2, 2], [3, 0, 2, 2, 1], [2, 2, 0, 0], [1]])
def test_each_row_uses_its_adapter(rows):
    model = tiny_model()
    results = train_adapters(model, make_jobs(3), SPEC, LoraTraining(learning_rate=1e-2))
    adapters = [*(result.adapter for result in results), None]  # the last one is the model alone
    ids = torch.randint(3, 97, (len(rows), 9), generator=torch.Generator().manual_seed(2))
    with using_adapters(model, adapters, rows):
        together = model(input_ids=ids).logits
        generated = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    for place, row in enumerate(rows):
        one = ids[place : place + 1]
        if adapters[row] is None:
            alone = model(input_ids=one).logits
            expected = model.generate(
                input_ids=one, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        else:
            with using_adapters(model, [adapters[row]], [0]):
                alone = model(input_ids=one).logits
                expected = model.generate(
                    input_ids=one, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
                )
        assert (together[place] - alone[0]).abs().max() <= 1e-5
        assert torch.equal(generated[place], expected[0])


def test_the_output_layer_can_be_a_target():
    model, spec = tiny_model(), LoraSpec(4, 8, ("lm_head", "q_proj"))
    jobs = make_jobs(3)
    results = train_adapters(model, jobs, spec, TRAINING)
    assert set(results[0].adapter.weights) == {"lm_head", *(f"model.layers.{i}.self_attn.q_proj" for i in range(2))}
    for job, result in zip(jobs, results, strict=True):
        alone = train_adapters(model, [job], spec, TRAINING)[0]
        assert difference(result.adapter.weights, alone.adapter.weights) <= 1e-5
        assert result.adapter.weights["lm_head"][1].abs().max() > 1e-3


def test_rows_are_divided_with_the_least_padding():
    assert divide((9, 9, 3, 3), 100, 1) == [(0, 2), (2, 4)]  # 24 tokens and 2 of overhead, against 36 and 1
    assert divide((9, 9, 3, 3), 100, 20) == [(0, 4)]
    assert divide((9, 9, 3, 3), 9, 1) == [(0, 1), (1, 2), (2, 4)]
    assert divide((50,), 9, 1) == [(0, 1)]  # a single row may exceed the limit


@pytest.mark.parametrize("form", ["llama", "gemma2"])
def test_computing_logits_in_tiles_changes_nothing(form, monkeypatch):
    """Gemma-2 caps its logits after the output layer, so they are computed all at once."""
    model, widest = tiny_model(form), []
    forward = type(model.get_output_embeddings()).forward

    def measured(self, x):
        if self is model.get_output_embeddings():
            widest.append(x.numel() // x.shape[-1])
        return forward(self, x)

    monkeypatch.setattr(type(model.get_output_embeddings()), "forward", measured)
    monkeypatch.setattr(head, "LOGITS", {"cpu": 97 * 4})
    jobs = make_jobs(3)
    results = train_adapters(model, jobs, SPEC, TRAINING)
    assert (max(widest[1:]) == 4) == (form == "llama")  # the first is the pass that finds the sites
    for job, result in zip(jobs, results, strict=True):
        assert difference(result.adapter.weights, trained_alone(model, job, TRAINING)) <= 1e-5
