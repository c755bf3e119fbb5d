"""How a batch of Knowledge Seeding is rolled out: given token ids, stop strings by row, and no general rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sleep_trl.models.head import Head
from sleep_trl.rollout import Sampling, TransformersEngine
from sleep_trl.rollout.in_trl import EngineRollouts, changed_sampling
from sleep_trl.rollout.stopping import tokens_before

from ..trl_private import unwrap_model_for_generation
from .loss import log_probs_per_token
from .parts import Tensors, written_mask
from .shared_prompts import SharedPrompts
from .teachers import Teacher


class Rollouts(SharedPrompts):
    """A [`~trl.GRPOTrainer`] that generates with what is set for each batch: `_given_prompt_ids`, token ids that are
    used as they are; `_stops` and `_limits`, the stop strings and the most tokens of each row; `_general`, the rows
    that are not rolled out.

    With unsharded weights and TRL's sampling, rollouts come from [`TransformersEngine`]: a prompt is read once for all
    its rollouts, and those that have ended leave the batch. Anything else is left to TRL.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._given_prompt_ids: list[list[int]] | None = None
        self._stops: list[Sequence[str]] = []
        self._limits: list[int] = []
        self._general: list[bool] = []
        super().__init__(*args, **kwargs)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        if self._given_prompt_ids is None:
            return super()._tokenize_prompts(prompts)
        return self._given_prompt_ids, None, {}

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        completion_ids, logprobs = self._roll_out(prompt_ids, *args, **kwargs)
        if not any(self._stops) and all(limit == self.max_completion_length for limit in self._limits):
            return completion_ids, logprobs  # with tools, TRL calls this for some of the rows
        kept = [
            max(1, tokens_before(ids[:limit], stop, self._tokenizer) if stop else limit)
            for ids, stop, limit in zip(completion_ids, self._stops, self._limits, strict=True)
        ]
        completion_ids = [ids[:n] for ids, n in zip(completion_ids, kept, strict=True)]
        return completion_ids, logprobs and [values[:n] for values, n in zip(logprobs, kept, strict=True)]

    def _roll_out(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate the completions of all rows but general ones, which are taught by their references alone (ours):
        they are long, have no reward, and would take most of a step. An end-of-sequence token stands for theirs."""
        rows = [i for i, is_general in enumerate(self._general) if not is_general]
        asked: Sequence[int] = rows
        if self._rolls_out_itself:
            generated, drawn = self._roll_out_itself([prompt_ids[i] for i in rows], rows), None
        elif len(rows) == len(self._general):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        else:
            if not self._takes_any_rows:
                asked = range(len(prompt_ids))
            elif not rows:  # every process generates something: engines and sharded weights want all of them
                asked = range(min(self.num_generations, len(prompt_ids)))
            generated, drawn = super()._generate_single_turn([prompt_ids[i] for i in asked], *args, **kwargs)
        completion_ids = [[self._tokenizer.eos_token_id] for _ in prompt_ids]
        logprobs: Any = drawn and [[0.0] for _ in prompt_ids]
        for place, row in enumerate(asked):
            if not self._general[row]:
                completion_ids[row] = generated[place]
                if drawn:
                    logprobs[row] = drawn[place]
        return completion_ids, logprobs

    def _check_generation(self) -> None:
        """Raise `ValueError` if rows ask for what tools or a `rollout_func` do not do."""
        has_tools = bool(self.tools or getattr(self, "environment_factories", None))
        is_cut = any(self._stops) or any(limit < self.max_completion_length for limit in self._limits)
        if (is_cut and (has_tools or self.rollout_func)) or (has_tools and any(self._general)):
            by = "tools" if has_tools else "rollout_func"
            raise ValueError(
                f"{by}: rows have `stop`, `max_completion_length` or the `part` 'general', which only this trainer's "
                f"own generation takes. Leave these out of the rows, or generate without {by}."
            )

    def _leave_out(self, output: Tensors) -> None:
        """Leave general rows, for which nothing was rolled out, out of the loss and of TRL's figures, and with
        `mask_truncated_completions` rollouts that did not end out of the loss. One that was cut before a stop string
        has ended."""
        ids, mask = output["completion_ids"], output["completion_mask"]
        lengths, device = mask.sum(1), mask.device
        last = ids.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        ends = [token for token in (*self.eos_token_ids, self._tokenizer.pad_token_id) if token is not None]
        has_ended = torch.isin(last, torch.tensor(ends, device=device))
        has_ended |= torch.tensor([bool(stop) for stop in self._stops], device=device) & (
            lengths < torch.tensor(self._limits, device=device)
        )
        figures = torch.stack([written_mask(output).sum(1), ~has_ended], dim=1).float()  # (batch, 2)
        figures[self._general] = torch.nan
        if self._masks_truncated:
            mask[~has_ended] = 0
        mask[self._general] = 0
        output["num_items_in_batch"] = self.accelerator.gather(written_mask(output).sum()).sum()
        written, is_cut = self.accelerator.gather(figures).T
        written, is_cut = written[~written.isnan()], is_cut[~is_cut.isnan()].bool()
        metrics = self._metrics["train" if self.model.training else "eval"]
        for kind, counts in (("", written), ("terminated_", written[~is_cut])):
            counts = counts if len(counts) else torch.zeros(1)
            for name, of in (("mean", torch.mean), ("min", torch.min), ("max", torch.max)):
                metrics[f"completions/{name}_{kind}length"][-1] = of(counts).item()
        metrics["completions/clipped_ratio"][-1] = is_cut.float().mean().item() if len(is_cut) else 0.0

    @property
    def _takes_any_rows(self) -> bool:
        """Whether processes may generate for different numbers of rows. TRL's vLLM divides them equally."""
        return not self.use_vllm or isinstance(self.vllm_generation, EngineRollouts)

    @property
    def _rolls_out_itself(self) -> bool:
        """Whether rollouts come from our engine in this process, which reads a prompt once for all its rollouts."""
        is_plain = not (self.use_vllm or self.use_transformers_continuous_batching or self.tools or self._is_vlm)
        return is_plain and self.args.alpha > 0 and self._is_whole and not changed_sampling(self.args)

    def _roll_out_itself(self, prompt_ids: list[list[int]], rows: list[int]) -> list[list[int]]:
        model, args = self.accelerator.unwrap_model(self.model), self.args
        engine = TransformersEngine(model, self._tokenizer, batch_size=max(1, len(rows)), room=self._room(model))
        completion_ids: list[list[int]] = [[] for _ in rows]
        by_stop: dict[tuple[str, ...], list[int]] = {}
        for place, row in enumerate(rows):
            by_stop.setdefault(tuple(self._stops[row]), []).append(place)
        was_training = model.training
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs
        ):
            model.eval()
            for stop, places in by_stop.items():
                longest = max(self._limits[rows[place]] for place in places)
                sampling = Sampling(longest, temperature=self.temperature, stop=stop)
                for n, completion in engine.generate_share([prompt_ids[place] for place in places], sampling):
                    completion_ids[places[n]] = completion.ids or [self._tokenizer.eos_token_id]
            model.train(was_training)
        return completion_ids

    def _score_rollouts(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, length: int) -> torch.Tensor:
        """Return the log-probabilities of the last `length` tokens of each row, shape `(rows, length)`: 0 for general
        rows, which are not rolled out. Read with them, each rollout would be padded to their length."""
        rows = [i for i, is_general in enumerate(self._general) if not is_general]
        scored = torch.zeros(ids.shape[0], length, device=ids.device)
        if rows:
            ids, mask, reader = ids[rows], mask[rows], Teacher(self.accelerator.unwrap_model(model), model)
            prompts, written = (ids[:, :-length], mask[:, :-length]), (ids[:, -length:], mask[:, -length:])
            with self.accelerator.autocast():
                (hidden,) = self._read_behind(reader, [(prompts, written)])
                log_probs, _ = log_probs_per_token(hidden, Head.of(reader.model), *written, self.temperature)
            scored[rows] = log_probs.to(scored.dtype)
        return scored
