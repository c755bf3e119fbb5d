"""The loss of Knowledge Seeding, held to GRPO, to TRL's generalized JSD and to the plain formula."""

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gkd import GKDTrainer

from sleep_trl.data.parts import PARTS
from sleep_trl.memory import Memory, MemorySpec, attach
from sleep_trl.rollout import TransformersEngine
from sleep_trl.trainers import KnowledgeSeedingTrainer
from tests.tiny import tiny_model
from tests.trainers.seedings import first_batch, logged, of_memories, rows, student, trainer


@pytest.mark.parametrize("extra", [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}])
def test_alpha_zero_is_grpo_to_the_last_bit(tmp_path, extra):
    ours = trainer(tmp_path / "a", alpha=0.0, **extra)
    ours.train()
    theirs = trainer(tmp_path / "b", GRPOTrainer, GRPOConfig, **extra)  # which sets the seed again
    theirs.train()
    for key in ("loss", "grad_norm", "reward", "entropy"):
        assert logged(ours, key) == logged(theirs, key) and len(logged(ours, key)) == 5
    for (name, a), (_, b) in zip(ours.model.named_parameters(), theirs.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_alpha_one_lambda_one_has_the_gradient_of_gkd(tmp_path, beta):
    t = trainer(tmp_path, data=of_memories(rows(2)), alpha=1.0, lmbda=1.0, divergence_beta=beta)
    model, memory = t.model, Memory.of(t.model)
    with torch.no_grad():  # away from the zero start, where half of the gradient vanishes
        for _, p in memory.expert_parameters(0):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    batch = first_batch(t)
    t._compute_loss(model, batch).backward()
    ours = {name: p.grad.clone() for name, p in memory.expert_parameters(0)}
    model.zero_grad()

    ids, mask = batch["completion_ids"], batch["completion_mask"]

    def logits(prompt):
        joined = torch.cat([batch[f"{prompt}_ids"], ids], 1)
        attention = torch.cat([batch[f"{prompt}_mask"], mask], 1)
        return model(input_ids=joined, attention_mask=attention).logits[:, -ids.size(1) - 1 : -1]

    with torch.no_grad(), memory.as_teacher():
        teacher = logits("teacher_prompt")
    labels = ids.masked_fill(mask == 0, -100)
    GKDTrainer.generalized_jsd_loss(logits("prompt"), teacher, labels, beta=beta).backward()
    for name, p in memory.expert_parameters(0):
        assert p.grad.abs().max() > 1e-6
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("passes", [1, 3])  # of three passes over two references, one reads a row of weight 0
@pytest.mark.parametrize("form", ["llama", "qwen3", "gemma2", "gpt_neox", "phi3"])
def test_divergence_is_the_plain_formula(tmp_path, form, passes):
    """KL(teacher || student) on rollout and reference from full logits, weighted by part, versus the trainer's loss."""
    t = trainer(tmp_path, model=student(form), alpha=1.0, lmbda=0.25, replay_weight=0.5, reference_passes=passes)
    model, memory = t.model, Memory.of(t.model)
    with torch.no_grad():
        for _, p in memory.expert_parameters(0):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    batch = first_batch(t)
    loss = t._compute_loss(model, batch).item()

    def kl(kind, general):
        """Mean per token of the divergence, with this weight for general rows."""
        ids, mask = batch[f"{kind}_ids"], batch[f"{kind}_mask"]

        def log_probs(prompt):
            joined = torch.cat([batch[f"{prompt}_ids"], ids], 1)
            attention = torch.cat([batch[f"{prompt}_mask"], mask], 1)
            with torch.no_grad():
                return (
                    model(input_ids=joined, attention_mask=attention).logits[:, -ids.size(1) - 1 : -1].log_softmax(-1)
                )

        student_log = log_probs("prompt")
        with memory.as_teacher():
            teacher_log = log_probs("teacher_prompt")
        per_token = (teacher_log.exp() * (teacher_log - student_log)).sum(-1) * mask
        weight = torch.where(batch["part"] == 0, 1.0, general)
        return ((per_token * weight[:, None]).sum() / mask.sum()).item()

    assert batch["completion_mask"][batch["part"] == PARTS.index("general")].sum() == 0
    expected = 0.25 * kl("completion", 0.0) + 0.75 * kl("reference", 0.5 / 0.75)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert {k for k in t._metrics["train"] if k.startswith("divergence/")} == {
        "divergence/memory/rollout",
        "divergence/memory/reference",
        "divergence/general/reference",
    }


def count_rollouts(monkeypatch, owner, method) -> list[int]:
    """Collect how many prompts each call of a method generates for."""
    asked, generate = [], getattr(owner, method)

    def count(self, prompt_ids, *args, **kwargs):
        asked.append(len(prompt_ids))
        return generate(self, prompt_ids, *args, **kwargs)

    monkeypatch.setattr(owner, method, count)
    return asked


@pytest.mark.parametrize(
    ("sampling", "owner", "method", "of_general"),
    [({}, TransformersEngine, "generate_share", []), ({"top_k": 90}, GRPOTrainer, "_generate_single_turn", [4])],
)
def test_general_rows_are_not_rolled_out(tmp_path, monkeypatch, sampling, owner, method, of_general):
    """Neither alone nor next to others, and not if all of a batch are general: by our engine, or by TRL, which has to
    generate something."""
    asked = count_rollouts(monkeypatch, owner, method)
    data = rows(2)
    assert data["part"] == ["memory", "general"]
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    t = trainer(tmp_path / "a", data=data, max_steps=1, **sizes, **sampling)
    t.train()
    assert asked == [4] and logged(t, "divergence/general/reference")[0] >= 0
    asked.clear()
    data = data.map(lambda row: {"part": "general"})
    t = trainer(tmp_path / "c", data=data, max_steps=3, alpha=1.0, **sampling)
    t.train()
    assert asked == of_general * 3
    learned = logged(t, "divergence/general/reference")
    assert 0 < learned[-1] < learned[0] and not logged(t, "divergence/general/rollout")


@pytest.mark.parametrize("is_general", [False, True])
def test_rollouts_are_scored_as_trl_scores_them(tmp_path, monkeypatch, is_general):
    """But without general rows, to whose length TRL would pad them."""
    score, seen = KnowledgeSeedingTrainer._score_rollouts, []

    def compare(self, model, ids, mask, length):
        ours = score(self, model, ids, mask, length)
        theirs = GRPOTrainer._get_per_token_logps_and_entropies(self, model, ids, mask, length)[0]
        written = mask[:, -length:].bool() & ~torch.tensor(self._general)[:, None]
        seen.append((int(written.sum()), ours.masked_select(~written), (ours - theirs).masked_select(written)))
        return ours

    monkeypatch.setattr(KnowledgeSeedingTrainer, "_score_rollouts", compare)
    data = rows(8).map(lambda row: {"part": "general"}) if is_general else rows(8)
    # more batches a generation than a step, so that the policy of the rollouts is not that of the loss
    t = trainer(tmp_path, data=data, max_steps=1, gradient_accumulation_steps=2, steps_per_generation=4)
    t.train()
    [(count, others, differences)] = seen
    assert (count > 16) != is_general and not others.any()
    torch.testing.assert_close(differences, torch.zeros(count), atol=1e-5, rtol=0)


def test_alpha_zero_rolls_out_every_row_as_grpo_does(tmp_path, monkeypatch):
    asked = count_rollouts(monkeypatch, GRPOTrainer, "_generate_single_turn")
    trainer(tmp_path, data=rows(2), max_steps=1, alpha=0.0, rollout_start=1.0).train()
    assert asked == [8]


@pytest.mark.parametrize(
    ("options", "rolled_out"),
    [
        ({"rollout_start": 0.5}, [0, 0, 1, 1]),
        ({"rollout_start": 1.0}, [0] * 4),
        ({"alpha": 1.0, "lmbda": 0.0}, [0] * 4),
        ({"lmbda": 1.0, "rollout_start": 0.5}, [1] * 4),
    ],
)
def test_rollouts_begin_when_they_should(tmp_path, monkeypatch, options, rolled_out):
    """And before it the loss is alpha times the divergence on the references, whatever lmbda is."""
    asked = count_rollouts(monkeypatch, TransformersEngine, "generate_share")
    t = trainer(tmp_path, data=of_memories(rows(2)), max_steps=4, **options)
    t.train()
    assert len(asked) == sum(rolled_out)
    assert [("reward" in entry) for entry in t.state.log_history[:4]] == [bool(each) for each in rolled_out]
    if not rolled_out[0]:
        assert logged(t, "loss")[0] == pytest.approx(
            t.args.alpha * logged(t, "divergence/memory/reference")[0], rel=1e-4
        )


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_sft_weight_moves_the_loss_on_memories_to_their_cross_entropy(tmp_path, weight):
    """The plain formula, from the logits of each row; self-replay keeps its divergence."""
    options = {"data": rows(4), "alpha": 1.0, "lmbda": 0.0, "replay_weight": 0.5}
    without = trainer(tmp_path / "a", **options)
    batch = first_batch(without)
    t = trainer(tmp_path / "b", sft_weight=weight, **options)
    difference = t._compute_loss(t.model, first_batch(t)) - without._compute_loss(without.model, batch)
    expected = torch.zeros(())
    for row in range(len(batch["part"])):
        if batch["part"][row] != PARTS.index("memory") or batch["reference_weight"][row] == 0:
            continue
        prompts, ids = (batch[f"{name}_ids"][row][batch[f"{name}_mask"][row] == 1] for name in ("prompt", "reference"))
        teacher = batch["teacher_prompt_ids"][row][batch["teacher_prompt_mask"][row] == 1]
        with torch.no_grad():
            mine, theirs = (
                t.model(torch.cat([p, ids])[None]).logits[0, len(p) - 1 : -1].log_softmax(-1)
                for p in (prompts, teacher)
            )
        divergence = (theirs.exp() * (theirs - mine)).sum()
        cross_entropy = -mine.gather(1, ids[:, None]).sum()
        expected += weight * (cross_entropy - divergence) * batch["reference_weight"][row]
    assert difference.item() == pytest.approx(expected.item(), rel=1e-3) and abs(expected) > 0.1


def test_no_teacher_reads_a_reference_that_is_learned_by_cross_entropy_alone(tmp_path, monkeypatch):
    """By default that is how a model that teaches itself learns; self-replay keeps its teacher."""
    t = trainer(tmp_path, data=rows(4), sft_weight=None)
    batch, read = first_batch(t), list[int]()
    original = t._teacher_outputs

    def teacher_outputs(texts, *others):
        outputs = original(texts, *others)
        read.extend(part for output in outputs[0] for part in texts[0][0]["part"][output.rows].tolist())
        return outputs

    monkeypatch.setattr(t, "_teacher_outputs", teacher_outputs)
    t._compute_loss(t.model, batch)
    assert set(read) == {PARTS.index("general")}
    logs = {name for name in t._metrics["train"] if name.startswith(("divergence/", "sft/"))}
    assert logs == {"sft/memory/reference", "divergence/general/reference", "divergence/memory/rollout"}


def test_a_short_reference_counts_as_much_as_a_long_one(tmp_path):
    data = rows(2).map(lambda row, i: {"part": "memory", "reference": " ".join(["Tolu"] * (1 + 5 * i))}, True)
    batch = first_batch(trainer(tmp_path, data=data, alpha=1.0, lmbda=0.0))
    lengths, weight = batch["reference_mask"].sum(1), batch["reference_weight"]
    torch.testing.assert_close((weight * lengths)[weight > 0], torch.full((2,), 1 / 2))
    assert lengths.unique().numel() == 2


def test_accumulation_gives_the_same_expert(tmp_path):
    """One batch of eight rollouts and two of four, whose references are read at once, add up to the same gradient."""
    data = rows(2)
    whole = trainer(tmp_path / "a", data=data, max_steps=2, alpha=1.0, reference_passes=2)
    whole.train()
    halves = trainer(
        tmp_path / "b", data=data, max_steps=2, alpha=1.0, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    halves.train()
    for (name, a), (_, b) in zip(
        Memory.of(whole.model).expert_parameters(0), Memory.of(halves.model).expert_parameters(0), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_the_student_approaches_the_teacher(tmp_path):
    t = trainer(tmp_path, data=rows(2), max_steps=30, alpha=1.0)
    t.train()
    losses = logged(t, "divergence/memory/reference")
    assert losses[-1] < 0.8 * losses[0]


def test_checkpointing_changes_no_gradient(tmp_path):
    finished = []
    for extra in ({}, {"gradient_checkpointing": True}):
        t = trainer(tmp_path / str(len(finished)), max_steps=2, **extra)
        t.train()
        finished.append(dict(Memory.of(t.model).expert_parameters(0)))
    for name, value in finished[0].items():
        torch.testing.assert_close(value, finished[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["gpt2", "llama"])
def test_padding_does_not_shift_positions(tmp_path, form):
    """A zero expert on a row without context diverges nowhere, though a neighbour's context pads it further."""
    mixed = rows(2).to_list()
    mixed[1]["teacher_prompt"] = mixed[1]["prompt"]
    model = tiny_model(form, **({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if form == "gpt2" else {}))
    attach(model, MemorySpec(width=8, max_experts=2)).activate()
    t = trainer(tmp_path, model=model, data=Dataset.from_list(mixed), alpha=1.0)
    t._compute_loss(t.model, first_batch(t))
    logs = t._metrics["train"]
    assert logs["divergence/memory/reference"][0] > 1e-3
    assert logs["divergence/general/reference"][0] < 1e-6
