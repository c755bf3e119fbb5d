"""Reward models by name, as TRL takes them: a sequence classifier that scores the prompt with its completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sleep_trl.rewards.judges.models import (
    batches,
    check_batch_size,
    choose_device,
    longest_input,
    read_without_weights,
    refuse_too_long,
)


class RewardModel:
    """Scores prompt and completion with a sequence classifier of one output, as TRL does with the name of a model.

    Loads safetensors only and runs no remote code.

    Args:
        model (`str`):
            Name on the Hugging Face hub or folder.
        batch_size (`int`, *optional*, defaults to `32`):
            Texts in one forward pass.
        device (`str`, *optional*, defaults to `"auto"`):
            `"auto"`, `"cpu"`, `"cuda:1"`.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.

    Raises:
        `ValueError`: if a parameter is out of range; at `check()` if the model cannot be read or has several outputs.
        `RewardError`: at a call, if a text is longer than the model reads.
    """

    def __init__(self, model: str, batch_size: int = 32, device: str = "auto", revision: str | None = None) -> None:
        check_batch_size(batch_size)
        self.model_name = model
        self.batch_size = batch_size
        self.device = device
        self.revision = revision
        self._model: Any = None
        self._tokenizer: Any = None

    def check(self) -> None:
        """Raise `ValueError` if the model cannot be read or is no reward model; load no weights."""
        config, _ = read_without_weights(f"Reward {self.model_name!r}", self.model_name, self.revision)
        architectures = config.architectures or []
        if not any("SequenceClassification" in name for name in architectures):
            found = ", ".join(architectures) or "no architecture"
            raise ValueError(
                f"Reward {self.model_name!r} is not a reward model: it has {found}, not a sequence classifier "
                f"(...ForSequenceClassification). Give a reward model, or the name of a function."
            )
        if config.num_labels != 1:
            raise ValueError(
                f"Reward {self.model_name!r} has {config.num_labels} outputs, and a reward model has one. A classifier "
                f"of pairs can judge what the model says: see the judge `classifier` of the reward `imitation`."
            )

    def load(self) -> None:
        """Load model and tokenizer, once."""
        if self._model is not None:
            return
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        given = {"revision": self.revision, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(self.model_name, **given)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForSequenceClassification.from_pretrained(
            self.model_name, num_labels=1, use_safetensors=True, **given
        )
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # it scores the last token before these
        self._tokenizer = tokenizer
        self._model = model.requires_grad_(False).eval().to(choose_device(self.device))

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return the model's score for each prompt with its completion."""
        import torch

        self.load()
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        lengths = [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]
        refuse_too_long(lengths, longest_input(self._model, self._tokenizer), f"{self.model_name}: sample", "model")
        found: list[float] = []
        for batch in batches(texts, self.batch_size):
            inputs = self._tokenizer(
                list(batch), return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
            ).to(self._model.device)
            with torch.inference_mode():
                found += self._model(**inputs).logits[:, 0].float().tolist()  # (batch, 1)
        return found

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        from trl import apply_chat_template

        return str(apply_chat_template({"messages": prompt + completion}, self._tokenizer)["text"])
