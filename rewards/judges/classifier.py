"""The classifier judge: a frozen classifier of pairs, trained on paraphrases or entailment."""

from __future__ import annotations

from typing import Any

from sleep_trl.rewards.judges.models import (
    batches,
    check_batch_size,
    choose_device,
    longest_input,
    read_without_weights,
    refuse_too_long,
    whole_statements,
)
from sleep_trl.rewards.judges.registry import judge


@judge("classifier")
class ClassifierJudge:
    """Judges two texts the same if a sequence classifier gives that label enough probability.

    Loads safetensors only and runs no remote code.

    Args:
        model (`str`):
            Name on the Hugging Face hub or folder of a model that takes pairs of texts.
        label (`int` or `str`, *optional*, defaults to `1`):
            Index or name of the label that means "the same". Ignored for a model with a single output, which goes
            through a sigmoid.
        threshold (`float`, *optional*, defaults to `0.5`):
            Minimum probability of that label, in (0, 1).
        both_ways (`bool`, *optional*, defaults to `True`):
            Classify (reference, candidate) and (candidate, reference) and require both. Two texts have the same meaning
            if each entails the other (Kuhn et al., arXiv 2302.09664): one direction alone rewards an empty candidate,
            or one that contains the reference among much else.
        batch_size (`int`, *optional*, defaults to `32`):
            Pairs in one forward pass.
        device (`str`, *optional*, defaults to `"auto"`):
            `"auto"`, `"cpu"`, `"cuda:1"`.

    Raises:
        `ValueError`: if a parameter is out of range; at `load()` if the model has no such label.
        `RewardError`: at a call, if a pair is longer than the model reads.
    """

    def __init__(
        self,
        model: str,
        label: int | str = 1,
        threshold: float = 0.5,
        both_ways: bool = True,
        batch_size: int = 32,
        device: str = "auto",
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}; it must be between 0 and 1.")
        check_batch_size(batch_size)
        self.model_name = model
        self.label = label
        self.threshold = threshold
        self.both_ways = both_ways
        self.batch_size = batch_size
        self.device = device
        self._model: Any = None
        self._tokenizer: Any = None
        self._label_index = 0

    def check(self) -> None:
        """Raise `ValueError` if the model cannot be read or has no such label; load no weights."""
        config, _ = read_without_weights("Judge 'classifier'", self.model_name)
        find_label(self.label, config.num_labels, config.label2id)

    def load(self) -> None:
        """Load model and tokenizer, once."""
        if self._model is not None:
            return
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model_name, trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_pretrained(
            self.model_name, use_safetensors=True, trust_remote_code=False
        )
        self._label_index = find_label(self.label, model.config.num_labels, model.config.label2id)
        self._tokenizer = tokenizer
        self._model = model.requires_grad_(False).eval().to(choose_device(self.device))

    def __call__(self, candidates: list[str], references: list[str], contexts: list[str] | None = None) -> list[float]:
        """Return 1.0 for each pair that the classifier labels the same, else 0.0."""
        self.load()
        said = whole_statements(candidates, contexts)
        meant = whole_statements(references, contexts)
        probabilities = self.probabilities(meant, said)
        if self.both_ways:
            backward = self.probabilities(said, meant)
            probabilities = [min(pair) for pair in zip(probabilities, backward, strict=True)]
        return [float(probability >= self.threshold) for probability in probabilities]

    def probabilities(self, first: list[str], second: list[str]) -> list[float]:
        """Return the probability of the label for each pair (first, second)."""
        import torch

        self.load()
        pairs = list(zip(first, second, strict=True))
        limit, found = longest_input(self._model, self._tokenizer), []
        lengths = [len(ids) for ids in self._tokenizer(first, second)["input_ids"]] if pairs else []
        refuse_too_long(lengths, limit, "classifier: pair")
        for batch in batches(pairs, self.batch_size):
            inputs = self._tokenizer(
                [pair[0] for pair in batch],
                [pair[1] for pair in batch],
                padding=True,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.inference_mode():
                logits = self._model(**inputs).logits.float()  # (batch, labels)
            probability = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)
            found += probability[:, self._label_index].tolist()
        return found


def find_label(label: int | str, num_labels: int, label2id: dict[str, int]) -> int:
    """Return the index of a label, given by index or by name.

    Raises:
        `ValueError`: if the model has no such label, with those it has.
    """
    if num_labels == 1:
        return 0
    if isinstance(label, int) and 0 <= label < num_labels:
        return label
    if isinstance(label, str) and label in label2id:
        return label2id[label]
    known = ", ".join(f"{index} ({name})" for name, index in label2id.items())
    raise ValueError(f"The classifier has no label {label!r}; it has: {known}.")
