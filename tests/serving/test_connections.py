"""Connections: deadlines, delays, and one endpoint a port."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn

from sleep_trl.serving.connections import DeadlineProtocol
from sleep_trl.serving.server import _bind, _Server


@contextmanager
def listening(app) -> Iterator[tuple[str, int]]:
    """Serve an application as the endpoint does, on a port of its own."""
    with _bind("127.0.0.1", 0) as bound:
        config = uvicorn.Config(app, http=DeadlineProtocol, log_config=None, lifespan="off")
        serving = _Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(serving.serve(sockets=[bound])))
        thread.start()
        try:
            yield bound.getsockname()
        finally:
            serving.should_exit = True
            thread.join()


async def greet(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"])
def test_connections_without_a_request_are_closed(monkeypatch, sent):
    monkeypatch.setattr("sleep_trl.serving.connections.REQUEST_TIMEOUT", 0.3)
    with listening(greet) as address:
        opened = [socket.create_connection(address, timeout=5) for _ in range(20)]
        for client in opened:
            client.sendall(sent)
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as kept:
            assert [kept.get("/").text for _ in range(3)] == ["hi"] * 3  # on one connection
        began = time.monotonic()
        assert all(client.recv(100) == b"" for client in opened), "still open"
        assert time.monotonic() - began < 3
        for client in opened:
            client.close()


def test_answers_are_not_held_back_and_a_port_has_one_endpoint():
    with _bind("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname()) as client:
        accepted, _ = bound.accept()
        assert accepted.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY only on sockets that say so"
        accepted.close()
        with pytest.raises(ValueError, match="Address already in use"):
            _bind("127.0.0.1", client.getpeername()[1])
