"""The embedding judge: sentence embeddings that point the same way."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sleep_trl.rewards.judges.models import (
    check_batch_size,
    choose_device,
    read_without_weights,
    refuse_too_long,
    whole_statements,
)
from sleep_trl.rewards.judges.registry import judge


@judge("sentence_transformer")
class SentenceTransformerJudge:
    """Judges two texts the same if the cosine of their sentence embeddings is high enough.

    Both texts are preceded by their context, which pulls the cosine towards 1. Choose the threshold on pairs of your
    own data, some of which differ only in the word that matters. Loads safetensors only and runs no remote code.

    Args:
        model (`str`):
            Name on the Hugging Face hub or folder of a sentence-transformers model.
        threshold (`float`, *optional*, defaults to `0.9`):
            Minimum cosine, in (-1, 1].
        batch_size (`int`, *optional*, defaults to `32`):
            Texts in one forward pass.
        device (`str`, *optional*, defaults to `"auto"`):
            `"auto"`, `"cpu"`, `"cuda:1"`.

    Raises:
        `ValueError`: if a parameter is out of range.
        `ImportError`: at `load()`, if sentence-transformers is not installed.
        `RewardError`: at a call, if a text is longer than the model reads.
    """

    def __init__(self, model: str, threshold: float = 0.9, batch_size: int = 32, device: str = "auto") -> None:
        if not -1 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; a cosine is above -1 and at most 1.")
        check_batch_size(batch_size)
        self.model_name = model
        self.threshold = threshold
        self.batch_size = batch_size
        self.device = device
        self._model: Any = None

    def check(self) -> None:
        """Raise `ValueError` if sentence-transformers is missing or the model cannot be read; load no weights."""
        if find_spec("sentence_transformers") is None:
            raise ValueError(
                "The judge sentence_transformer needs sentence-transformers; install it with: "
                "pip install 'sleep-trl[judges]'"
            )
        if not (Path(self.model_name) / "modules.json").is_file():  # its modules may lie in folders of their own
            read_without_weights("Judge 'sentence_transformer'", self.model_name)

    def load(self) -> None:
        """Load the model, once."""
        if self._model is not None:
            return
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                f"The judge sentence_transformer needs sentence-transformers ({error}); "
                f"install it with: pip install 'sleep-trl[judges]'"
            ) from error

        model = SentenceTransformer(
            self.model_name,
            device=str(choose_device(self.device)),
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        self._model = model.requires_grad_(False).eval()

    def __call__(self, candidates: list[str], references: list[str], contexts: list[str] | None = None) -> list[float]:
        """Return 1.0 for each pair whose cosine reaches the threshold, else 0.0."""
        cosines = self.cosines(whole_statements(candidates, contexts), whole_statements(references, contexts))
        return [float(cosine >= self.threshold) for cosine in cosines]

    def cosines(self, first: list[str], second: list[str]) -> list[float]:
        """Return the cosine of each pair's embeddings, in [-1, 1]."""
        self.load()
        if not first:
            return []
        texts = [*first, *second]
        lengths = [len(ids) for ids in self._model.tokenizer(texts)["input_ids"]]
        pairs = [max(lengths[i], lengths[i + len(first)]) for i in range(len(first))]
        refuse_too_long(pairs, self._model.max_seq_length, "sentence_transformer: pair")
        vectors = self._model.encode(
            texts,
            batch_size=self.batch_size,
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=False,
        ).float()  # (2 * pairs, dimension)
        products = vectors[: len(first)] * vectors[len(first) :]
        cosines: list[float] = products.sum(-1).clamp(-1, 1).tolist()
        return cosines
