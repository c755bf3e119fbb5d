"""The fields of OpenAI's requests: their types and ranges, and what the transformers server does with each."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

StopString = Annotated[str, StringConstraints(min_length=1)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None


class Fields(BaseModel):
    """What chats and completions have in common. Other fields are the model server's to judge."""

    model_config = ConfigDict(strict=True, extra="allow")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=128)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")], Bias] | None = None
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None


class ChatFields(Fields):
    """Those of `/v1/chat/completions`, apart from `messages`."""

    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionFields(Fields):
    """Those of `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: int | None = Field(None, ge=1, le=20)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    suffix: str | None = None


def find_fault(body: dict[str, Any], kind: type[Fields]) -> tuple[str, str] | None:
    """Return the field of a request that has a wrong type or is out of range, and what is wrong, without its value; or
    `None`."""
    try:
        kind.model_validate(body)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False, include_context=False)
        field = str(details[0]["loc"][0])
        reasons = dict.fromkeys(each["msg"] for each in details if each["loc"][0] == field)
        return field, " or ".join(reason.replace("Input should", "should") for reason in reasons)
    return None


IGNORED_BY_TRANSFORMERS: dict[str, Any] = {
    "audio": None,
    "best_of": 1,
    "echo": False,
    "function_call": None,
    "functions": None,
    "generation_config": None,
    "logprobs": False,
    "modalities": ["text"],
    "moderation": None,
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "reasoning_effort": None,
    "response_format": {"type": "text"},
    "suffix": None,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "verbosity": None,
    "web_search_options": None,
}
"""Fields that `transformers serve` accepts and ignores, or means something else by, with their neutral values."""

WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    }
)
"""Fields that do not concern a model server: they change no answer, or the endpoint itself obeys them."""

PASSED_ON = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "prompt",
        "seed",
        "stop",
        "stream",
        "temperature",
        "tools",
        "top_p",
    }
)
"""Fields that `transformers serve` obeys."""

ARGUMENTS_OF_TEMPLATES = frozenset(
    {
        "add_generation_prompt",
        "continue_final_message",
        "conversation",
        "load_audio_from_video",
        "max_length",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names in `chat_template_kwargs` that `transformers serve` takes for arguments of its own, not for the template's."""
