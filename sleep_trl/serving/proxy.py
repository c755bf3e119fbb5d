"""The endpoint: checks keys and limits, and forwards requests to the model server in use."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..data.thoughts import without_thoughts
from .backend import Backend
from .keeper import Keeper, NoBackend
from .protocol import CHAT, COMPLETIONS, ApiError, check_model, error_of, for_backend, read_request
from .recording import Recorder
from .stopping import StopCutter, cut, stops_of

logger = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"
HEALTH = "/health"  # needs no key, and only reports that the endpoint runs
MODELS = "/v1/models"
LONGEST_PATH = 80  # characters of a path that are logged
ENDED = (httpx.NetworkError, httpx.RemoteProtocolError)  # what a request meets whose model server has ended
ENDING = 5.0  # seconds to wait until it has


class Proxy:
    """An OpenAI-compatible endpoint in front of a model server.

    Args:
        keeper (`Keeper`):
            Provides the model server in use.
        model (`str`):
            Name of the model for clients, independent of the night.
        recorder (`Recorder`, *optional*):
            Records conversations.
    """

    def __init__(self, keeper: Keeper, model: str, recorder: Recorder | None) -> None:
        self.keeper, self.model, self.recorder = keeper, model, recorder
        self.started = int(time.time())

    def app(self, api_key: str) -> ASGIApp:
        """Return the application, which requires the key."""
        routes = [
            Route(HEALTH, self.health),
            Route(MODELS, self.models),
            Route(f"{MODELS}/{{model:path}}", self.models),
            Route(CHAT, self.complete, methods=["POST"]),
            Route(COMPLETIONS, self.complete, methods=["POST"]),
        ]
        handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientGone: _nobody,
            Exception: _internal_error,
        }
        return KeyRequired(Starlette(routes=routes, exception_handlers=handlers), api_key)

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The served model; its field `night` names the night and entry."""
        card = {"id": self.model, "object": "model", "created": self.started, "owned_by": "sleep-trl"}
        card |= {"night": self.keeper.night}
        if (requested := request.path_params.get("model")) is None:
            return JSONResponse({"object": "list", "data": [card]})
        check_model(requested, self.model)
        return JSONResponse(card)

    async def complete(self, request: Request) -> Response:
        """Forward a request, and return its answer. If the model server ends first, the next one is asked, once."""
        body = await read_request(request, self.model)
        try:
            return await self._complete(request, body)
        except ENDED:
            logger.warning("The model server ended before it answered; asking the next one")
        try:
            return await self._complete(request, body)
        except ENDED:  # not a 5xx, which clients send again by themselves
            message = "The model server ended twice at this request. Make it shorter, or read the server's log."
            raise ApiError(400, message, "model_server_failed") from None

    async def _complete(self, request: Request, body: dict[str, Any]) -> Response:
        async with AsyncExitStack() as stack:
            try:
                backend = await stack.enter_async_context(self.keeper.backend())
            except NoBackend:
                raise ApiError(503, "The model server is restarting. Try again.", "no_model_server") from None
            sent = for_backend(body, backend, request.url.path)

            async def ask() -> httpx.Response:
                forwarded = backend.client.build_request("POST", request.url.path, json=sent)
                answer = await backend.client.send(forwarded, stream=True)
                stack.push_async_callback(answer.aclose)
                if not answer.is_success or not body.get("stream"):
                    await answer.aread()
                return answer

            try:
                answer = await unless_gone(request, ask())
            except ENDED:
                try:  # its connections close a moment before it is known to have ended
                    await asyncio.wait_for(backend.wait(), ENDING)
                except TimeoutError:
                    raise _incomplete() from None
                raise
            except httpx.TransportError:
                raise _incomplete() from None
            if not answer.is_success:
                raise error_of(answer)
            if body.get("stream"):
                return Relay(self.relay(body, answer, backend), stack.pop_all())
            found = answer.json() | self.identity(backend)
            if backend.kind == "transformers" and (stops := stops_of(body.get("stop"))):
                _put_text(found, cut(_text_of(found), stops))
            await self.record(body, _text_of(found))
            return JSONResponse(found)

    async def relay(self, body: dict[str, Any], answer: httpx.Response, backend: Backend) -> AsyncIterator[str]:
        """Forward the parts of a streamed answer, and record the answer if it is complete."""
        text, is_complete = "", False
        cutter = StopCutter(stops_of(body.get("stop")) if backend.kind == "transformers" else ())
        has_usage = backend.kind != "transformers" or bool((body.get("stream_options") or {}).get("include_usage"))
        try:
            async for data in events(answer):
                if data == "[DONE]":
                    break
                part = json.loads(data)
                if "error" in part:
                    raise ValueError
                is_last = bool(_first_choice(part).get("finish_reason"))
                shown = cutter.feed(_text_of(part)) + (cutter.end() if is_last else "")
                if cutter.stops and shown != _text_of(part):
                    _put_text(part, shown)
                text, is_complete = text + shown, is_complete or is_last
                usage = part.pop("usage", None) if backend.kind == "transformers" else None
                for choice in part.get("choices") or ():
                    choice.setdefault("finish_reason", None)  # as OpenAI and vLLM send it; transformers leaves it out
                yield f"data: {json.dumps(part | self.identity(backend))}\n\n"
                if usage and has_usage:
                    part = {**part, "choices": [], "usage": usage}
                    yield f"data: {json.dumps(part | self.identity(backend))}\n\n"
        except (httpx.TransportError, ValueError):
            is_complete = False
        if not is_complete:
            yield f"data: {json.dumps(_incomplete().body())}\n\n"
            return
        await self.record(body, text)
        yield DONE

    def identity(self, backend: Backend) -> dict[str, str]:
        """Fields that identify the model to clients: its name, and the night and entry."""
        return {"model": self.model, "system_fingerprint": backend.committed.fingerprint}

    async def record(self, body: dict[str, Any], answer: str) -> None:
        """Record an exchange, unless the request has `store: false` or there is no text."""
        is_text = "messages" in body or isinstance(body.get("prompt"), str)
        if self.recorder and body.get("store") is not False and is_text and without_thoughts(answer).strip():
            await self.recorder.record(body, answer)


class ClientGone(Exception):
    """The client has closed its connection."""


async def unless_gone(request: Request, answer: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
    """Wait for an answer as long as the client does.

    Raises:
        `ClientGone`: if the client has left; then the model server is asked to stop.
    """
    asked, gone = asyncio.create_task(answer), asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait([asked, gone], return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientGone
        return asked.result()
    finally:
        for task in (asked, gone):
            task.cancel()
        await asyncio.gather(asked, gone, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Relay(StreamingResponse):
    """A streamed answer that releases its model server when it ends, even by an error."""

    def __init__(self, content: AsyncIterator[str], stack: AsyncExitStack) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


class KeyRequired:
    """Requires the key for every request, and logs one line for each, without its content."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        given = dict(scope["headers"]).get(b"authorization", b"")
        if scope["path"] == HEALTH or hmac.compare_digest(given, self._expected):
            await self.app(scope, receive, send_and_note_status)
        else:
            refusal = ApiError(401, "The API key is missing or wrong.", "invalid_api_key")
            await refusal.response()(scope, receive, send_and_note_status)
        path = as_logged(scope["path"])
        logger.info("%s %s: %d in %.3f s", scope["method"], path, status, time.monotonic() - began)


def as_logged(path: str) -> str:
    """Return a path as it is logged: percent-encoded, so that it stays on one line, and its first 80 characters."""
    shown = quote(path)
    return shown if len(shown) <= LONGEST_PATH else f"{shown[:LONGEST_PATH]}…"


async def events(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield the data of server-sent events. Lines end only at line feeds, since JSON may contain other separators."""
    rest = b""
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].decode().strip()


def _first_choice(answer: dict[str, Any]) -> dict[str, Any]:
    return next((choice for choice in answer.get("choices") or () if choice.get("index", 0) == 0), {})


def _text_of(answer: dict[str, Any]) -> str:
    """Return the text of the first choice of an answer, or of a part of an answer."""
    choice = _first_choice(answer)
    message = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
    return message.get("content") or ""


def _put_text(answer: dict[str, Any], text: str) -> None:
    """Replace the text of the first choice of an answer, or of a part of an answer."""
    choice = _first_choice(answer)
    if "text" in choice:
        choice["text"] = text
    elif choice:
        choice.setdefault("message" if "message" in choice else "delta", {})["content"] = text


def _incomplete() -> ApiError:
    return ApiError(502, "The model server ended before its answer was complete. Try again.", "model_server_failed")


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _nobody(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx logs it; nobody reads it


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{error.detail}.").response()


async def _internal_error(_: Request, error: Exception) -> Response:
    return ApiError(500, "The endpoint failed at this request.").response()
