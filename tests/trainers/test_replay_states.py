"""What a frozen teacher says of self-replay is read once in a run, and is what it would say in any step."""

import pytest
import torch
from datasets import Dataset

from sleep_trl.data.parts import PARTS
from sleep_trl.trainers import KnowledgeSeedingTrainer
from sleep_trl.trainers.knowledge_seeding.replay_states import ReplayStates
from tests.trainers import seedings
from tests.trainers.test_self_replay import rows, trainer

ALL = ("memory", "general", "earlier")


def states(t, batch):
    """Return what the teachers say of each token of the references, of shape `(tokens, hidden)` for each row."""
    mask = batch["reference_mask"].bool()
    [outputs] = t._teacher_outputs([(batch, batch["reference_ids"], batch["reference_mask"])])
    found = {}
    for output in (output for output in outputs if output.is_present):
        [(hidden, _)] = output.states
        found |= {int(row): of[mask[row]] for row, of in zip(output.rows, hidden, strict=True)}
    return found


@pytest.fixture
def read(monkeypatch):
    """How many rows were read together, pass by pass."""
    counted = list[int]()
    original = KnowledgeSeedingTrainer._read_behind

    def read_behind(self, reader, texts):
        counted.append(sum(len(ids) for (ids, _), _ in texts))
        return original(self, reader, texts)

    monkeypatch.setattr(KnowledgeSeedingTrainer, "_read_behind", read_behind)
    return counted


def test_a_reference_of_self_replay_is_read_once(tmp_path, read):
    t = trainer(tmp_path, rows(*ALL))
    batch = seedings.first_batch(t)
    read.clear()
    first, again = states(t, batch), states(t, batch)
    memories = int((batch["part"] == PARTS.index("memory")).sum())
    assert memories and read == [memories, memories]  # and no pass for the general rows alone
    assert len(t._replay_states._states) == 2  # though each row has a copy
    assert all(torch.equal(first[row], again[row]) for row in first)


@pytest.mark.parametrize(("room", "options"), [(0, {}), (1, {}), (None, {"expert_dropout": 0.5})])
def test_without_room_or_with_a_teacher_that_changes_they_are_read_in_each_step(tmp_path, read, room, options):
    """A room of one byte holds one reference."""
    t = trainer(tmp_path, rows(*ALL), **options)
    batch = seedings.first_batch(t)
    kept = states(t, batch) if not options else {}
    if room is not None:
        t._replay_states = ReplayStates(room)
    read.clear()
    found = [states(t, batch) for _ in range(2)][1]
    assert sum(read) == 2 * (6 - 2 * (room or 0))  # of six rows, three and their copies
    for row, of in kept.items():
        torch.testing.assert_close(found[row], of, rtol=1e-4, atol=1e-5)


def test_a_text_that_is_divided_elsewhere_is_not_read_again(tmp_path, read):
    """The last token of the prompt becomes the first of the reference."""
    ids = [7, 11, 5, 9, 6, 12]
    data = [
        {"prompt_ids": ids[:cut], "teacher_prompt_ids": ids[:cut], "reference_ids": ids[cut:], "part": "general"}
        for cut in (3, 2)
    ]
    t = trainer(tmp_path, Dataset.from_list(data))
    batch = seedings.first_batch(t)
    read.clear()
    found = states(t, batch)
    short, long = sorted((found[row] for row in (0, 1)), key=len)
    assert not read and sum(is_base for _, is_base, _ in t._replay_states._states) == 1
    assert torch.equal(long[1:], short) and len(long) == len(short) + 1


def test_what_is_kept_goes_with_the_trainer(tmp_path):
    t = trainer(tmp_path, rows(*ALL))
    states(t, seedings.first_batch(t))
    assert t._replay_states._states
    t.release()
    assert not t._replay_states._states


def test_a_row_that_stands_in_for_none_is_not_kept(tmp_path):
    """Where a batch has no self-replay, each process still reads something, which is a text of a memory."""
    t = trainer(tmp_path, rows("memory", "memory"), sft_weight=1.0)
    batch = seedings.first_batch(t)
    states(t, batch | {"part": t._taught_part(batch["part"])})
    assert not t._replay_states._states
