"""Turn rendered templates into token ids, through the model's chat template if it has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from .templates import Example, PromptTemplate, Template, load_general

BLOCK = 2**20  # characters that the tokenizer reads at once, which bounds its memory


class Prompter:
    """Turns templates into prompts for one tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer; if it has a chat template, prompts become user messages.
        chat_template_kwargs (`dict`, *optional*):
            Variables for the chat template, such as `{"enable_thinking": False}`.
        examples_tokens (`int`, *optional*, defaults to `0`):
            Worked examples before a prompt with a context take at most this many tokens; those that do not fit are left
            out. For a chat model they are earlier turns.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: dict[str, Any] | None = None,
        examples_tokens: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.examples_tokens = examples_tokens
        self.has_chat = tokenizer.chat_template is not None
        self._chat_template_kwargs = chat_template_kwargs or {}

    def __call__(self, template: PromptTemplate, **variables: Any) -> tuple[list[int], str, tuple[str, ...]]:
        """Render a template and return its token ids, its text, and the strings that end a completion."""
        examples = self.examples_of(template) if variables.get("context") is not None else ()
        prompt = template.render(chat=self.has_chat, **variables)
        text = self._format(template, examples, prompt.text)
        if not self.has_chat:
            return self._plain(text), text, prompt.stop
        return self.tokenizer(text, add_special_tokens=False)["input_ids"], text, ()

    def examples_of(self, template: PromptTemplate) -> tuple[Example, ...]:
        """Return the first worked examples of a template that fit `examples_tokens`."""
        count = len(template.examples)
        while count and self._length(template, count) > self.examples_tokens:
            count -= 1
        return template.examples[:count]

    @lru_cache  # noqa: B019 - a prompter lives as long as its run
    def _length(self, template: PromptTemplate, count: int) -> int:
        return self.count_tokens(self._format(template, template.examples[:count], ""))

    def _format(self, template: PromptTemplate, examples: tuple[Example, ...], prompt: str) -> str:
        """Return the text of a prompt after worked examples."""
        shown = [(template.render(chat=self.has_chat, **dict(e.variables)).text, e.reply) for e in examples]
        if not self.has_chat:
            return "".join(f"{text} {reply}\n\n" for text, reply in shown) + prompt
        turns = [
            {"role": role, "content": text}
            for pair in shown
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return str(
            self.tokenizer.apply_chat_template(
                [*turns, {"role": "user", "content": prompt}],
                add_generation_prompt=True,
                tokenize=False,
                **self._chat_template_kwargs,
            )
        )

    @cached_property
    def answer_end(self) -> int | None:
        """The token that ends an answer: in a chat the one that the chat template writes after it, which for some
        models, such as Gemma, is not the end-of-sequence token."""
        if self.has_chat:
            turns = [{"role": "user", "content": "Ready?"}, {"role": "assistant", "content": "Yes"}]
            rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, **self._chat_template_kwargs)
            before, _, after = str(rendered).rpartition("Yes")
            special = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
            if before and (end := [token for token in self.ids(after) if token in special]):
                return end[0]
        return self.tokenizer.eos_token_id

    def text(self, template: PromptTemplate, **variables: Any) -> str:
        """Render a template without the chat template: a base model's prompt, or a user's message to a chat model."""
        return template.render(chat=self.has_chat, **variables).text

    def question(self, template: Template, question: str, context: str | None = None) -> list[int]:
        """Return the prompt that asks a question, with or without a context."""
        return self(template.respond, request=question, context=context)[0]

    def general(self, text: str | None = None) -> tuple[list[int], str, list[int]]:
        """Return the prompt of a general sample, as token ids and as text, and the token ids it starts with.

        A base model's sample starts with the text; a chat model is asked to continue it. The prompt is never empty,
        since generation needs at least one token.
        """
        ids, rendered, _ = self(load_general(), context=text)
        if self.has_chat or text is None:
            return ids or [self._start()], rendered, []
        start, empty_text, _ = self.general()
        return start, empty_text, ids[len(start) :] if ids[: len(start)] == start else ids

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def begin(self, text: str, tokens: int) -> str:
        """Return a text, or how it begins if it is longer than `tokens`."""
        ids = self.ids(text)
        return text if len(ids) <= tokens else str(self.tokenizer.decode(ids[:tokens])).rstrip("\ufffd")

    def count_tokens(self, text: str) -> int:
        """Return the length of a text in tokens, without special tokens. See [`Prompter.count_all`]."""
        return self.count_all([text])[0]

    def count_all(self, texts: Sequence[str]) -> list[int]:
        """Return the lengths of texts in tokens, without special tokens.

        Texts are read many at once, which is faster than one by one, and a text of more than a million characters in
        pieces, to take less memory: a token that crosses from one of its pieces to the next counts twice.
        """
        counts = [0] * len(texts)
        for block in _blocks(texts):
            for (number, _), ids in zip(block, self._ids_of([piece for _, piece in block]), strict=True):
                counts[number] += len(ids)
        return counts

    def can_spell(self, texts: Sequence[str]) -> list[bool]:
        """Return of each text whether the tokenizer knows all of it."""
        unknown, known = self.tokenizer.unk_token_id, [True] * len(texts)
        for block in _blocks(texts) if unknown is not None else ():
            for (number, _), ids in zip(block, self._ids_of([piece for _, piece in block]), strict=True):
                known[number] &= unknown not in ids
        return known

    def _ids_of(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(
            texts, add_special_tokens=False, verbose=False, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        if ids and ids[-1] == self.tokenizer.eos_token_id:  # some tokenizers append it to every text
            ids = ids[:-1]
        return ids or [self._start()]  # a prompt is never empty, since generation needs at least one token

    def _start(self) -> int:
        start = self.tokenizer.bos_token_id
        return int(start if start is not None else self.tokenizer.eos_token_id)


def _blocks(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Yield texts in blocks of at most `BLOCK` characters, each with its number. A longer one is cut."""
    block, size = list[tuple[int, str]](), 0
    for number, text in enumerate(texts):
        for piece in _cut(text):
            if block and size + len(piece) > BLOCK:
                yield block
                block, size = [], 0
            block.append((number, piece))
            size += len(piece)
    if block:
        yield block


def _cut(text: str) -> Iterator[str]:
    """Yield a text in pieces of at most `BLOCK` characters, which end with a line, or else before a space."""
    start = 0
    while len(text) - start > BLOCK:
        end = start + BLOCK
        end = text.rfind("\n", start, end) + 1 or max(text.rfind(" ", start + 1, end), 0) or end
        yield text[start:end]
        start = end
    yield text[start:]
