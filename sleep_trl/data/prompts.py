"""Turn rendered templates into token ids, through the model's chat template if it has one."""

from __future__ import annotations

from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from .templates import Template, load_general, render


class Prompter:
    """Turns templates into prompts for one tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer; if it has a chat template, prompts become user messages.
        chat_template_kwargs (`dict`, *optional*):
            Variables for the chat template, such as `{"enable_thinking": False}`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.has_chat = tokenizer.chat_template is not None
        self._chat_template_kwargs = chat_template_kwargs or {}

    def __call__(self, template: jinja2.Template, **variables: Any) -> tuple[list[int], str, tuple[str, ...]]:
        """Render a template and return its token ids, its text, and the strings that end a completion."""
        prompt = render(template, chat=self.has_chat, **variables)
        if not self.has_chat:
            return self._plain(prompt.text), prompt.text, prompt.stop
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.text}],
            add_generation_prompt=True,
            tokenize=False,
            **self._chat_template_kwargs,
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"], str(text), ()

    def text(self, template: jinja2.Template, **variables: Any) -> str:
        """Render a template without the chat template: a base model's prompt, or a user's message to a chat model."""
        return render(template, chat=self.has_chat, **variables).text

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

    def count_tokens(self, text: str) -> int:
        """Return the length of a text in tokens, without special tokens."""
        return len(self.ids(text))

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        if ids and ids[-1] == self.tokenizer.eos_token_id:  # some tokenizers append it to every text
            ids = ids[:-1]
        return ids

    def _start(self) -> int:
        start = self.tokenizer.bos_token_id
        return int(start if start is not None else self.tokenizer.eos_token_id)
