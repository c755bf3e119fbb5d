"""Requests and answers without a model server: fields, formats, stop strings, errors."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from types import SimpleNamespace
from typing import get_type_hints

import httpx
import pytest
from fastapi import HTTPException
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat
from transformers import PreTrainedTokenizerBase

from sleep_trl.serving.fields import (
    ARGUMENTS_OF_TEMPLATES,
    IGNORED_BY_TRANSFORMERS,
    PASSED_ON,
    WITHOUT_EFFECT,
    ChatFields,
    CompletionFields,
    find_fault,
)
from sleep_trl.serving.messages import as_plain_messages, find_message_fault
from sleep_trl.serving.model_server import refuse_what_the_template_refuses
from sleep_trl.serving.protocol import CHAT, COMPLETIONS, ApiError, error_of, for_backend
from sleep_trl.serving.proxy import KeyRequired, Proxy, events
from sleep_trl.serving.stopping import StopCutter, cut
from tests.tiny import tiny_tokenizer

USER = {"role": "user", "content": "a"}


def server(kind: str, is_chat: bool = True, variables: dict | None = None, has_tools: bool = False) -> SimpleNamespace:
    given = {"has_tools": has_tools, "vocabulary": 50, "model": "model", "chat_template_kwargs": variables or {}}
    return SimpleNamespace(kind=kind, is_chat=is_chat, **given)


def test_requests_are_converted_for_each_model_server():
    asked = {"model": "chain", "prompt": "a", "store": True, "n": 1, "max_completion_tokens": 5, "echo": False}
    assert for_backend(asked, server("transformers"), COMPLETIONS) == {
        "model": "model",
        "prompt": "a",
        "max_tokens": 5,
    }
    assert for_backend(asked, server("vllm"), COMPLETIONS) == {
        "model": "model",
        "prompt": "a",
        "n": 1,
        "max_completion_tokens": 5,
        "echo": False,
    }
    assert asked["store"] is True, "a request is not changed"


@pytest.mark.parametrize(
    "asked", [{"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}}, {"presence_penalty": 0.5}]
)
def test_fields_that_transformers_would_ignore_are_refused(asked):
    [name] = asked
    with pytest.raises(ApiError, match=f"`{name}` needs vLLM") as refused:
        for_backend(asked, server("transformers"), COMPLETIONS)
    assert refused.value.param == name
    assert for_backend(asked, server("vllm"), COMPLETIONS)[name] == asked[name]


def test_tools_are_passed_on_where_the_template_has_a_place_for_them():
    asked = {"messages": [USER], "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]}
    sent = for_backend(asked, server("transformers", has_tools=True), CHAT)
    assert sent["tools"] == asked["tools"]
    with pytest.raises(ApiError, match="no place for tools") as refused:
        for_backend(asked, server("transformers"), CHAT)
    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 2.5}, "max_tokens", "valid integer"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"stop": 5}, "stop", "valid string or should be a valid list"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [None]}, "stop", "valid string"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stream_options": {"include_usage": 1}}, "stream_options", "valid boolean"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "match pattern"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "less than or equal to 100"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"user": 5}, "user", "valid string"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"tools": {}}, "tools", "valid list"),
    ],
)
def test_wrong_types_and_ranges_name_the_field(asked, field, says):
    found = find_fault({"model": "chain", "messages": [USER]} | asked, ChatFields)
    assert found is not None and found[0] == field and says in found[1], found


def test_good_values_are_no_faults():
    asked = {
        "temperature": 1,
        "top_p": 1,
        "max_tokens": None,
        "stop": "x",
        "seed": -5,
        "logit_bias": {"3": -100},
        "top_k": 5,
    }
    assert find_fault(asked | {"stream": True, "stream_options": {"include_usage": True}}, ChatFields) is None
    assert find_fault({"prompt": [[1, 2], [3]], "logprobs": 2}, CompletionFields) is None


@pytest.mark.parametrize(
    ("params", "path"),
    [(chat.CompletionCreateParamsStreaming, CHAT), (completions.CompletionCreateParamsStreaming, COMPLETIONS)],
)
def test_every_field_of_the_openai_client_is_obeyed_or_refused(params, path):
    """No field is passed on to be ignored: a new one has to be put into one of the three lists."""
    fields = set(get_type_hints(params))
    assert fields - {"extra_body"} <= PASSED_ON | WITHOUT_EFFECT | IGNORED_BY_TRANSFORMERS.keys()
    assert not PASSED_ON & (WITHOUT_EFFECT | IGNORED_BY_TRANSFORMERS.keys())


def test_texts_are_cut_before_a_stop_string_however_they_are_split():
    text, stops = "one two. three\n\nfour", ["\n\n", "two.x"]
    for size in range(1, len(text) + 1):
        cutter = StopCutter(stops)
        shown = [cutter.feed(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(shown) + cutter.end() == "one two. three" and cutter.is_cut
    cutter = StopCutter(["\n\n"])
    assert (cutter.feed("a\n"), cutter.feed("b\n"), cutter.end()) == ("a", "\nb", "\n")
    assert cut("a b c", ["c", "b"]) == "a " and cut("a b c", []) == "a b c"


def test_a_model_without_template_does_not_chat():
    with pytest.raises(ApiError, match="no chat template"):
        for_backend({"messages": [USER]}, server("vllm", is_chat=False), CHAT)
    assert for_backend({"prompt": "a"}, server("vllm", is_chat=False), COMPLETIONS)["prompt"] == "a"


def test_chats_get_the_variables_that_the_night_was_taught_with():
    taught = server("vllm", variables={"enable_thinking": False})
    assert for_backend({"messages": [USER]}, taught, CHAT)["chat_template_kwargs"] == {"enable_thinking": False}
    asked = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True, "other": 1}}
    assert for_backend(asked, taught, CHAT)["chat_template_kwargs"] == {"enable_thinking": True, "other": 1}
    assert "chat_template_kwargs" not in for_backend({"prompt": "a"}, taught, COMPLETIONS)


def test_a_request_cannot_bring_a_template():
    for given in ({"chat_template": "{{ 1 }}"}, "chat_template"):
        with pytest.raises(ApiError, match="without `chat_template`"):
            for_backend({"messages": [USER], "chat_template_kwargs": given}, server("transformers"), CHAT)
    asked = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}}
    assert for_backend(asked, server("transformers"), CHAT) == asked | {"model": "model"}


CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"content": [{"type": "text"}]}, "messages[1].content[0] must have `text`"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": None}]}, "messages[1].content[1]"),
        ({"content": [{"type": 5}]}, "messages[1] must be an object"),
        ({"tool_calls": "look"}, "messages[1].tool_calls must be a list"),
        ({"tool_calls": [{"type": "function"}]}, "messages[1].tool_calls"),
        ({"tool_calls": [CALL | {"function": {"name": "look", "arguments": "{"}}]}, "messages[1].tool_calls"),
        ({"tool_calls": [CALL | {"function": {"name": "look", "arguments": "[]"}}]}, "messages[1].tool_calls"),
    ],
)
def test_messages_that_no_server_takes_are_named(message, says):
    found = find_message_fault([USER, {"role": "assistant"} | message])
    assert found is not None and found.startswith(says)


def test_messages_get_the_form_that_transformers_reads():
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    sent_back = {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None}
    messages = [USER, {"role": "assistant", "content": parts, "tool_calls": None, "annotations": []}, sent_back]
    assert find_message_fault(messages) is None
    assert as_plain_messages(messages) == [
        USER,
        {"role": "assistant", "content": "a b"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]


def test_what_transformers_would_drop_or_fail_at_is_refused_or_converted():
    image = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}
    with pytest.raises(ApiError, match=r"messages\[0\].content\[1\] is no text") as refused:
        for_backend({"messages": [image]}, server("transformers"), CHAT)
    assert refused.value.param == "messages"
    assert for_backend({"messages": [image]}, server("vllm"), CHAT)["messages"] == [image]
    empty = {"stop": [], "logit_bias": {}, "tools": [], "seed": None, "temperature": 1e-300}
    expected = {"messages": [USER], "model": "model", "temperature": 0}
    assert for_backend({"messages": [USER]} | empty, server("transformers"), CHAT) == expected
    for path, field in ((CHAT, "prompt"), (COMPLETIONS, "messages"), (COMPLETIONS, "tools")):
        given = {"messages": [USER]} if path == CHAT else {"prompt": "a"}
        with pytest.raises(ApiError, match="not known here") as refused:
            for_backend(given | {field: "b"}, server("transformers"), path)
        assert refused.value.param == field


def test_variables_of_templates_are_not_arguments_of_the_server():
    own = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert own - {"self", "kwargs", "documents", "chat_template"} | {"load_audio_from_video"} == ARGUMENTS_OF_TEMPLATES
    for name in ARGUMENTS_OF_TEMPLATES:
        with pytest.raises(ApiError, match=f"`{name}` is none of them") as refused:
            for_backend({"messages": [USER], "chat_template_kwargs": {name: 1}}, server("transformers"), CHAT)
        assert refused.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    ("template", "options", "says"),
    [
        ("{{ raise_exception('Roles must alternate.') }}", {}, "it says: Roles must alternate."),
        ("{{ messages[0].content + none }}", {}, "TypeError"),
        ("{{ messages[0].content }}", {"documents": 5}, "TypeError"),
    ],
)
def test_what_a_template_refuses_is_a_fault_of_the_request(template, options, says):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    refuse_what_the_template_refuses(tokenizer)
    with pytest.raises(HTTPException) as refused:
        tokenizer.apply_chat_template([USER], **options)
    assert refused.value.status_code == 400 and refused.value.detail["param"] == "messages"
    assert says in refused.value.detail["message"]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (422, b'{"detail": "Unexpected fields"}', (422, "Unexpected fields", None, None)),
        (400, b'{"error": {"message": "no", "param": "n", "code": 400}}', (400, "no", "n", None)),  # as vLLM does
        (400, b'{"detail": {"message": "no", "param": "n", "code": "c"}}', (400, "no", "n", "c")),
        (500, b'{"error": {"message": "a text"}}', (502, "The model server", None, "model_server_failed")),
        (400, b"<html>", (502, "The model server failed", None, "model_server_failed")),
    ],
)
def test_errors_of_model_servers_in_openais_form(status, body, expected):
    error = error_of(httpx.Response(status, content=body))
    expected_status, message, *rest = expected
    assert (error.status, error.param, error.code) == (expected_status, *rest) and error.message.startswith(message)


def test_events_are_split_at_line_feeds_only():
    pieces = [b'data: {"a": "x\xe2\x80\xa8y\xc2\x85', b'z"}\n\n: a comment\n\nda', b"ta: [DONE]\r\n\r\n"]

    async def stream():
        for piece in pieces:
            yield piece

    async def read() -> list[str]:
        return [data async for data in events(httpx.Response(200, content=stream()))]

    assert asyncio.run(read()) == ['{"a": "x\u2028y\x85z"}', "[DONE]"]


def test_every_part_of_a_streamed_answer_has_a_finish_reason():
    """OpenAI sends null until the last; `transformers serve` leaves it out."""
    sent = [{"text": "a "}, {"text": "cat"}, {"text": "", "finish_reason": "stop"}]

    class Answer:
        async def aiter_bytes(self):
            for choice in sent:
                yield f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n".encode()

    async def parts() -> list[str]:
        backend = SimpleNamespace(kind="transformers", committed=SimpleNamespace(fingerprint="night"))
        proxy = Proxy(SimpleNamespace(), "chain", None)
        return [part.removeprefix("data: ") async for part in proxy.relay({"prompt": "x"}, Answer(), backend)]

    *found, done = asyncio.run(parts())
    assert [json.loads(part)["choices"][0]["finish_reason"] for part in found] == [None, None, "stop"]
    assert done.strip() == "[DONE]"


def test_the_log_names_an_unknown_path_on_one_line(caplog):
    async def missing(scope, receive, send):
        await send({"type": "http.response.start", "status": 404})

    async def receive_or_send(*message):
        pass

    caplog.set_level(logging.INFO, "sleep_trl.serving.proxy")
    for path in ("/v1/responses", "/a\nGET /v1/models: 200", "/" + "x" * 200):
        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"authorization", b"Bearer key")]}
        asyncio.run(KeyRequired(missing, "key")(scope, receive_or_send, receive_or_send))
    shown = [message.split(": 404 in ")[0] for message in caplog.messages]
    assert shown == ["POST /v1/responses", "POST /a%0AGET%20/v1/models%3A%20200", "POST /" + "x" * 79 + "…"]
