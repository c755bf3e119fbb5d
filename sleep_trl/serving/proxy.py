"""The endpoint itself: keys, limits, and requests passed on to the model server that is in use."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .backend import Backend
from .keeper import Keeper, NoBackend
from .protocol import CHAT, COMPLETIONS, ApiError, check_model, error_of, for_backend, read_request
from .recording import Recorder

logger = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"
OPEN = "/health"  # needs no key, and says nothing but that the endpoint is there


class Proxy:
    """An OpenAI-compatible endpoint in front of a model server.

    Args:
        keeper (`Keeper`):
            Knows the model server in use.
        model (`str`):
            What clients call the model, whichever night's it is.
        recorder (`Recorder`, *optional*):
            Where conversations are recorded.
    """

    def __init__(self, keeper: Keeper, model: str, recorder: Recorder | None) -> None:
        self.keeper, self.model, self.recorder = keeper, model, recorder
        self.since = int(time.time())

    def app(self, api_key: str) -> ASGIApp:
        """Return the application, behind a key."""
        routes = [
            Route(OPEN, self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.models),
            Route(CHAT, self.complete, methods=["POST"]),
            Route(COMPLETIONS, self.complete, methods=["POST"]),
        ]
        handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
            ApiError: _tell,
            HTTPException: _tell_http,
            Exception: _tell_failure,
        }
        return WithKey(Starlette(routes=routes, exception_handlers=handlers), api_key)

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The one model that is served. `night` says whose it is now."""
        card = {"id": self.model, "object": "model", "created": self.since, "owned_by": "sleep-trl"}
        card |= {"night": self.keeper.night}
        if (asked := request.path_params.get("model")) is None:
            return JSONResponse({"object": "list", "data": [card]})
        check_model(asked, self.model)
        return JSONResponse(card)

    async def complete(self, request: Request) -> Response:
        """Pass a request on, and its answer back."""
        body = await read_request(request, self.model)
        async with AsyncExitStack() as stack:
            try:
                backend = await stack.enter_async_context(self.keeper.backend())
            except NoBackend:
                raise ApiError(503, "The model server is being started again. Try again.", "no_model_server") from None
            sent = for_backend(body, backend, request.url.path)
            try:
                passed = backend.client.build_request("POST", request.url.path, json=sent)
                answer = await backend.client.send(passed, stream=True)
                stack.push_async_callback(answer.aclose)
                if not answer.is_success or not body.get("stream"):
                    await answer.aread()
            except httpx.TransportError:
                raise _cut_short() from None
            if not answer.is_success:
                raise error_of(answer)
            if body.get("stream"):
                return Relay(self.relay(body, answer, backend), stack.pop_all())
            found = answer.json() | self.signed(backend)
            await self.record(body, _text_of(found))
            return JSONResponse(found)

    async def relay(self, body: dict[str, Any], answer: httpx.Response, backend: Backend) -> AsyncIterator[str]:
        """Pass the parts of an answer on as they come, and record it if it came to its end."""
        said, is_whole = "", False
        try:
            async for data in events(answer):
                if data == "[DONE]":
                    break
                part = json.loads(data)
                if "error" in part:
                    raise ValueError
                said += _text_of(part)
                is_whole |= bool(_first_choice(part).get("finish_reason"))
                yield f"data: {json.dumps(part | self.signed(backend))}\n\n"
        except (httpx.TransportError, ValueError):
            is_whole = False
        if not is_whole:
            yield f"data: {json.dumps(_cut_short().body())}\n\n"
            return
        await self.record(body, said)
        yield DONE

    def signed(self, backend: Backend) -> dict[str, str]:
        """What an answer says of its origin: the model as clients call it, and the night that it is of."""
        return {"model": self.model, "system_fingerprint": backend.committed.name}

    async def record(self, body: dict[str, Any], answer: str) -> None:
        """Record an exchange, unless the request says `store: false`, or there is no text."""
        is_text = "messages" in body or isinstance(body.get("prompt"), str)
        if self.recorder and body.get("store") is not False and is_text and answer.strip():
            await self.recorder.record(body, answer)


class Relay(StreamingResponse):
    """A streamed answer that lets go of its model server when it ends, however it ends."""

    def __init__(self, content: AsyncIterator[str], stack: AsyncExitStack) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


class WithKey:
    """Asks every request for the key, and writes one line for each into the log, which holds nothing of its content."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        given = dict(scope["headers"]).get(b"authorization", b"")
        if scope["path"] == OPEN or hmac.compare_digest(given, self._expected):
            await self.app(scope, receive, note)
        else:
            refusal = ApiError(401, "The API key is missing or wrong.", "invalid_api_key")
            await refusal.response()(scope, receive, note)
        path = scope["path"] if scope["path"] in (CHAT, COMPLETIONS) else "other"
        logger.info("%s %s: %d in %.3f s", scope["method"], path, status, time.monotonic() - began)


async def events(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield the data of server-sent events. Lines end at line feeds only: JSON may hold other separators."""
    rest = b""
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].decode().strip()


def _first_choice(answer: dict[str, Any]) -> dict[str, Any]:
    return next((choice for choice in answer.get("choices") or () if choice.get("index", 0) == 0), {})


def _text_of(answer: dict[str, Any]) -> str:
    """Return the text of an answer's first choice, or of a part of it."""
    choice = _first_choice(answer)
    said = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
    return said.get("content") or ""


def _cut_short() -> ApiError:
    return ApiError(502, "The model server ended before its answer did. Try again.", "model_server_failed")


async def _tell(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _tell_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{error.detail}.").response()


async def _tell_failure(_: Request, error: Exception) -> Response:
    return ApiError(500, "The endpoint failed at this request.").response()
