"""What frozen teachers say about the texts of self-replay, read once in a run (ours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sleep_trl.models.head import REPLAY_BYTES

from .hidden import Padded, last_hidden, predicting, stack
from .teachers import Teacher

Behind = tuple[Padded, Padded]  # prompts, padded on the left, and what follows them, padded on the right


class ReplayStates:
    """Hidden states of teachers on texts of self-replay. Each text comes back every few steps, divided anew into prompt
    and reference, and a frozen teacher says the same of it.

    A text is read by itself, so that a run that was resumed gets the same bits.

    Args:
        most_bytes (`int`, *optional*, defaults to [`REPLAY_BYTES`]):
            What all kept states may take.
    """

    def __init__(self, most_bytes: int = REPLAY_BYTES) -> None:
        self._left = most_bytes
        self._states: dict[tuple[int, bool, bytes], torch.Tensor] = {}

    def read(
        self,
        teacher: Teacher,
        is_base: bool,
        texts: Sequence[Behind],
        replayed: Sequence[Sequence[int]],
        read_others: Callable[[list[Behind]], list[torch.Tensor]],
    ) -> list[torch.Tensor]:
        """
        Return the hidden states from which texts behind prompts are predicted.

        Args:
            teacher (`Teacher`):
                The teacher, as it is at this moment.
            is_base (`bool`):
                Whether it is the pretrained model that the student contains.
            texts (`Sequence[tuple[Padded, Padded]]`):
                Ids and mask, each of shape `(rows, length)`, of its prompts and of what follows them.
            replayed (`Sequence[Sequence[int]]`):
                For each text, the rows that come back in later steps.
            read_others (`Callable`):
                Reads texts in which there is no such row, or no room for it.

        Returns:
            `list[torch.Tensor]`: for each text, of shape `(rows, length, hidden)`.
        """
        kept = [self._find(teacher, is_base, *text, rows) for text, rows in zip(texts, replayed, strict=True)]
        others = [
            [row for row in range(len(ids)) if row not in of] for (_, (ids, _)), of in zip(texts, kept, strict=True)
        ]
        asked: list[Behind] = [
            ((prompts[rows], prompt_mask[rows]), (ids[rows], mask[rows]))
            for ((prompts, prompt_mask), (ids, mask)), rows in zip(texts, others, strict=True)
            if rows
        ]
        found = iter(read_others(asked) if asked else [])
        read = []
        for (_, (ids, _)), of, rows in zip(texts, kept, others, strict=True):
            by_row = of | (dict(zip(rows, next(found), strict=True)) if rows else {})
            read.append(stack([by_row[row] for row in range(len(ids))], ids.shape[1]))
        return read

    def _find(
        self, teacher: Teacher, is_base: bool, prompts: Padded, references: Padded, rows: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        """Return what is kept of rows, each of shape `(tokens, hidden)`. What is not kept yet is read."""
        found = {}
        for row in rows:
            (prompt, reference) = (ids[row][mask[row].bool()] for ids, mask in (prompts, references))
            text = torch.cat([prompt, reference])[None]
            key = (id(teacher.model), is_base, bytes(text.int().cpu().numpy().tobytes()))
            if key not in self._states and self._left > 0:
                self._states[key] = last_hidden(teacher.model, text, torch.ones_like(text))
                self._left -= self._states[key].nbytes
            if key in self._states:
                found[row] = predicting(self._states[key], reference[None])[0]
        return found
