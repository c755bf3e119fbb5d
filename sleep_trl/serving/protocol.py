"""OpenAI's protocol: checks of requests before they reach a model server, and errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse

from ..wake.records import MAX_BYTES
from .backend import Backend
from .fields import (
    ARGUMENTS_OF_TEMPLATES,
    IGNORED_BY_TRANSFORMERS,
    PASSED_ON,
    WITHOUT_EFFECT,
    ChatFields,
    CompletionFields,
    find_fault,
)
from .messages import as_plain_messages, find_message_fault, find_part_without_text

BODY_TIMEOUT = 60.0  # seconds for the body of a request
LEAST_TEMPERATURE = 1e-5  # below, an answer is greedy, as with vLLM; logits divided by less overflow
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class ApiError(Exception):
    """An error returned to the client.

    Args:
        status (`int`): HTTP status.
        message (`str`): what was wrong and what to do, without any text of the request.
        code (`str`, *optional*): OpenAI's error code.
        param (`str`, *optional*): the invalid field of the request.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {
            401: {"WWW-Authenticate": "Bearer", "Connection": "close"},
            408: {"Connection": "close"},
            503: {"Retry-After": "5"},
        }.get(self.status)
        return JSONResponse(self.body(), self.status, headers)


async def read_request(request: Request, model: str) -> dict[str, Any]:
    """Read and check the body of a request, up to the maximum length.

    Args:
        request (`Request`):
            Request to `/v1/chat/completions` or `/v1/completions`.
        model (`str`):
            Name of the served model.

    Raises:
        `ApiError`: if it is too long, not a JSON object, for another model, or a field is missing, of a wrong type or
            out of range.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for piece in request.stream():
                content += piece
                if len(content) > MAX_BYTES:
                    size = f"{MAX_BYTES / 2**20:g} MiB"
                    raise ApiError(413, f"The request is longer than {size}. Shorten it.", "too_long")
    except TimeoutError:
        raise ApiError(408, f"The request's body did not arrive within {BODY_TIMEOUT:g} seconds.") from None
    try:
        body = json.loads(content)
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()  # no unpaired surrogate, no NaN
    except (ValueError, RecursionError):
        raise ApiError(
            400, "The request's body is not valid JSON, or contains characters that are not valid UTF-8."
        ) from None
    if not isinstance(body, dict):
        raise ApiError(400, "The request's body must be a JSON object.")
    check_model(body.get("model"), model)
    if request.url.path == CHAT and (wrong := find_message_fault(body.get("messages"))):
        raise ApiError(400, wrong, param="messages")
    if fault := find_fault(body, ChatFields if request.url.path == CHAT else CompletionFields):
        field, reason = fault
        raise ApiError(400, f"`{field}`: {reason}.", param=field)
    if body.get("stream_options") is not None and not body.get("stream"):
        raise ApiError(400, "`stream_options` needs `stream: true`.", param="stream_options")
    return body


def check_model(requested: Any, model: str) -> None:
    """Raise `ApiError` unless the request is for the served model."""
    if requested != model:
        raise ApiError(404, f"There is no such model here. Use {model!r}.", "model_not_found", "model")


def for_backend(body: dict[str, Any], backend: Backend, path: str) -> dict[str, Any]:
    """Convert a request for a model server. Chats get the night's variables for the chat template, such as
    `enable_thinking`, where the request does not set them: the model was taught with these.

    Raises:
        `ApiError`: if it uses a field that the server would silently ignore, brings its own chat template, or is a
            chat with a model that has none.
    """
    if path == CHAT and not backend.is_chat:
        raise ApiError(
            400, f"This model has no chat template. Use {COMPLETIONS}, or sleep on a chat model.", "no_chat_template"
        )
    template = body.get("chat_template_kwargs")
    if template is not None and (not isinstance(template, dict) or "chat_template" in template):
        message = "`chat_template_kwargs` must be an object without `chat_template`."
        raise ApiError(400, message, param="chat_template_kwargs")
    sent = {key: value for key, value in body.items() if key != "store"} | {"model": backend.model}
    if path == CHAT and (variables := {**backend.chat_template_kwargs, **(template or {})}):
        sent["chat_template_kwargs"] = variables
    if backend.kind != "transformers":
        return sent
    sent = {key: value for key, value in sent.items() if key not in WITHOUT_EFFECT}
    ignored = IGNORED_BY_TRANSFORMERS if path == CHAT else {**IGNORED_BY_TRANSFORMERS, "logit_bias": {}}
    for name, neutral in ignored.items():
        if (value := sent.pop(name, None)) is not None and value != neutral:
            raise ApiError(400, f"`{name}` needs vLLM; this endpoint runs on transformers. Leave it out.", param=name)
    known = PASSED_ON - {"prompt"} | {"chat_template_kwargs"} if path == CHAT else PASSED_ON - {"messages", "tools"}
    if unknown := [name for name in sent if name not in known]:
        raise ApiError(400, "A field is not known here. Leave it out, or use vLLM.", param=unknown[0])
    _check_for_transformers(sent, backend)
    return _as_transformers_reads(sent)


def _as_transformers_reads(sent: dict[str, Any]) -> dict[str, Any]:
    """Return a request in the form that the transformers server reads, with the same meaning."""
    sent = {field: value for field, value in sent.items() if value not in (None, [], {})}  # it fails at empty ones
    if "messages" in sent:
        sent["messages"] = as_plain_messages(sent["messages"])
    if bias := sent.get("logit_bias"):
        sent["logit_bias"] = {token: float(value) for token, value in bias.items()}  # it fails at integers
    if sent.get("temperature", 1) < LEAST_TEMPERATURE:
        sent["temperature"] = 0
    if (most := sent.pop("max_completion_tokens", None)) is not None:
        sent["max_tokens"] = most
    return sent


def _check_for_transformers(sent: dict[str, Any], backend: Backend) -> None:
    """Raise `ApiError` for values that the transformers server would fail at or ignore."""
    if "prompt" in sent and not isinstance(sent["prompt"], str):
        raise ApiError(400, "`prompt` must be a string; this endpoint runs on transformers.", param="prompt")
    if place := find_part_without_text(sent.get("messages") or []):
        raise ApiError(400, f"{place} is no text, and the model reads only text. Leave it out.", param="messages")
    if taken := sorted(ARGUMENTS_OF_TEMPLATES.intersection(sent.get("chat_template_kwargs") or ())):
        raise ApiError(
            400,
            f"`chat_template_kwargs` sets variables of the chat template; `{taken[0]}` is none of them. Leave it out.",
            param="chat_template_kwargs",
        )
    if sent.get("tools") and not backend.has_tools:
        raise ApiError(400, "`tools`: the model's chat template has no place for tools. Leave it out.", param="tools")
    if (sent.get("frequency_penalty") or 0) <= -1:
        raise ApiError(
            400,
            "`frequency_penalty` must be above -1; this endpoint runs on transformers.",
            param="frequency_penalty",
        )
    if beyond := [key for key in sent.get("logit_bias") or () if int(key) >= backend.vocabulary]:
        raise ApiError(
            400,
            f"`logit_bias`: the model has {backend.vocabulary} tokens, not a token {beyond[0]}.",
            param="logit_bias",
        )


def error_of(answer: httpx.Response) -> ApiError:
    """Convert a model server's error to OpenAI's form."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    detail = body.get("error", body.get("detail")) if isinstance(body, dict) else None
    if answer.status_code >= 500 or detail is None:
        return ApiError(502, "The model server failed at this request.", "model_server_failed")
    if isinstance(detail, dict):
        code = detail.get("code")  # vLLM has the status there
        code = code if isinstance(code, str) else None
        return ApiError(answer.status_code, str(detail.get("message")), code, detail.get("param"))
    return ApiError(answer.status_code, str(detail))
