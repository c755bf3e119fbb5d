"""The language-model judge: a frozen causal LM answers by the probabilities of its next token."""

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

TEMPLATE = """\
Do these two texts say the same? Answer yes or no.

First: {{ reference }}
Second: {{ candidate }}
Answer:"""


@judge("lm")
class LanguageModelJudge:
    """Judges two texts the same if a causal LM finds "yes" more probable than "no" as its next token.

    Loads safetensors only and runs no remote code.

    Args:
        model (`str`):
            Name on the Hugging Face hub or folder of a causal language model.
        template (`str`, *optional*):
            Jinja template of the question, with `reference` and `candidate` (each preceded by its context) and
            `context`. It must contain a chat model's special tokens.
        yes (`str`, *optional*, defaults to `" yes"`):
            The word for "the same"; its first token is compared.
        no (`str`, *optional*, defaults to `" no"`):
            The word for "not the same".
        batch_size (`int`, *optional*, defaults to `8`):
            Questions in one forward pass.
        device (`str`, *optional*, defaults to `"auto"`):
            `"auto"`, `"cpu"`, `"cuda:1"`.
        dtype (`str`, *optional*, defaults to `"auto"`):
            The checkpoint's own, or a name of torch's, such as `"bfloat16"`.

    Raises:
        `ValueError`: if the template does not parse or lacks a text; at `load()` if both words begin with the same
            token.
        `RewardError`: at a call, if a question is longer than the model reads.
    """

    def __init__(
        self,
        model: str,
        template: str = TEMPLATE,
        yes: str = " yes",
        no: str = " no",
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        check_batch_size(batch_size)
        self._template = read_template(template)
        self.model_name = model
        self.yes = yes
        self.no = no
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self._model: Any = None
        self._tokenizer: Any = None
        self._answers: list[int] = []

    def check(self) -> None:
        """Raise `ValueError` if the model cannot be read or has no tokens for the answers; load no weights."""
        _, tokenizer = read_without_weights("Judge 'lm'", self.model_name)
        self._find_answers(tokenizer)

    def load(self) -> None:
        """Load model and tokenizer, once."""
        if self._model is not None:
            return
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model_name, trust_remote_code=False)
        self._answers = self._find_answers(tokenizer)
        model = AutoModelForCausalLM.from_pretrained(
            self.model_name, use_safetensors=True, trust_remote_code=False, dtype=self.dtype
        )
        tokenizer.padding_side = "left"  # so that the last position is the next token's
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._tokenizer = tokenizer
        self._model = model.requires_grad_(False).eval().to(choose_device(self.device))

    def _find_answers(self, tokenizer: Any) -> list[int]:
        answers = [first_token(tokenizer, word) for word in (self.yes, self.no)]
        if answers[0] == answers[1]:
            raise ValueError(
                f"The words {self.yes!r} and {self.no!r} begin with the same token of the judge's "
                f"model; choose others with the parameters yes and no."
            )
        return answers

    def __call__(self, candidates: list[str], references: list[str], contexts: list[str] | None = None) -> list[float]:
        """Return 1.0 for each pair for which "yes" is more probable than "no", else 0.0."""
        said = whole_statements(candidates, contexts)
        meant = whole_statements(references, contexts)
        before = contexts if contexts is not None else [""] * len(said)
        questions = [
            self._template.render(candidate=candidate, reference=reference, context=context)
            for candidate, reference, context in zip(said, meant, before, strict=True)
        ]
        return [float(margin > 0) for margin in self.margins(questions)]

    def margins(self, questions: list[str]) -> list[float]:
        """Return log p(yes) - log p(no) of the next token after each question."""
        import torch

        self.load()
        if not questions:
            return []
        lengths = [len(ids) for ids in self._tokenizer(questions)["input_ids"]]
        refuse_too_long(lengths, longest_input(self._model, self._tokenizer), "lm: pair")
        found: list[float] = []
        for batch in batches(questions, self.batch_size):
            inputs = self._tokenizer(list(batch), padding=True, return_tensors="pt")
            inputs = inputs.to(self._model.device)
            # Left padding shifts positions, so they are counted from each question's first token.
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits = self._model(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    position_ids=positions,
                ).logits[:, -1, self._answers]  # (batch, 2)
            found += (logits[:, 0].float() - logits[:, 1].float()).tolist()
        return found


def read_template(text: str) -> Any:
    """Parse the question's Jinja template.

    Raises:
        `ValueError`: if it does not parse, or lacks `reference` or `candidate`.
    """
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.meta import find_undeclared_variables

    from sleep_trl.data.sandbox import LimitedEnvironment

    environment = LimitedEnvironment(undefined=StrictUndefined)
    try:
        used = find_undeclared_variables(environment.parse(text))
    except TemplateSyntaxError as error:
        raise ValueError(f"The judge's template does not parse: {error}.") from None
    if unknown := used - {"reference", "candidate", "context"}:
        raise ValueError(
            f"The judge's template uses {', '.join(sorted(unknown))}; there are: reference, candidate, context."
        )
    if missing := {"reference", "candidate"} - used:
        raise ValueError(f"The judge's template does not use {', '.join(sorted(missing))}.")
    return environment.from_string(text)


def first_token(tokenizer: Any, word: str) -> int:
    """Return the first token of a word.

    Raises:
        `ValueError`: if the word has none, or only the unknown token.
    """
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids or ids[0] == tokenizer.unk_token_id:
        raise ValueError(f"The judge's model has no token for {word!r}; choose another word.")
    return int(ids[0])
