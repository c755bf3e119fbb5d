"""Requests that fit the schema, and requests that do not, made by Schemathesis: none is too much for the endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sleep_trl.serving.fields import ChatFields, CompletionFields, Fields
from sleep_trl.serving.protocol import CHAT, COMPLETIONS
from tests.serving.test_endpoint import KEY, Served, serving, write_night

schemathesis = pytest.importorskip("schemathesis", reason="no Schemathesis: run make test-slow, which installs it")
hypothesis = pytest.importorskip("hypothesis", reason="no Hypothesis: run make test-slow, which installs it")
pytestmark = pytest.mark.slow

EXAMPLES = 20  # requests of each kind
PART = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "image_url"]}, "text": {"type": "string"}},
    "required": ["type"],
}
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": PART}, {"type": "null"}]},
    },
    "required": ["role", "content"],
}


def body_of(kind: type[Fields]) -> dict[str, Any]:
    """Return the JSON Schema of a request's body, whose model is the one that is served."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    schema["properties"]["model"] = {"enum": ["chain"]}
    schema["required"] = [*schema.get("required", []), "model"]
    schema["additionalProperties"] = False  # other fields are vLLM's to judge
    if kind is ChatFields:
        schema["properties"]["messages"] = {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": 4}
        schema["required"].append("messages")
    else:
        schema["properties"]["prompt"] = {"type": "string"}  # of the kinds, the one that transformers takes
    return schema


def openapi() -> dict[str, Any]:
    """Return the endpoint as OpenAPI describes it."""
    bodies = {CHAT: body_of(ChatFields), COMPLETIONS: body_of(CompletionFields)}
    parts = {name: part for kind in (ChatFields, CompletionFields) for name, part in definitions(kind).items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sleep-trl serve", "version": "1"},
        "components": {"schemas": parts},
        "paths": {
            path: {
                "post": {
                    "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
                    "responses": {"200": {"description": "an answer"}},
                }
            }
            for path, schema in bodies.items()
        },
    }


def definitions(kind: type[Fields]) -> dict[str, Any]:
    found: dict[str, Any] = kind.model_json_schema(ref_template="#/components/schemas/{model}").get("$defs", {})
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    chain = tmp_path_factory.mktemp("chains") / "chain"
    write_night(chain, 1)
    with serving(chain, "--backend", "transformers", "--record", str(chain / "wake.db")) as endpoint:
        yield endpoint


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_every_request_is_answered_or_refused_with_the_field_named(served, path, mode):
    operation = schemathesis.openapi.from_dict(openapi())[path]["POST"]
    address = served.url.removesuffix("/v1")
    answered: list[int] = []

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(schemathesis.GenerationMode(mode)))
    def ask(case: Any) -> None:
        answer = case.call(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        answered.append(answer.status_code)
        assert answer.status_code < 500, answer.text
        if answer.status_code == 200:
            assert '"model_server_failed"' not in answer.text, "the stream ended before its answer was complete"
        elif isinstance(case.body, dict):
            error = answer.json()["error"]
            assert error["param"] is not None or error["code"], error

    ask()
    assert (200 if mode == "positive" else 400) in answered
