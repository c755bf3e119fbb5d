"""`sleep-trl serve` in its own process, with a real model server and OpenAI's client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sleep_trl.runs.files import write_json
from sleep_trl.wake import WakeBuffer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_runs import write_finished_run

ROOT = Path(__file__).parents[2]
KEY = "a key for tests"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)
ASKED = [{"role": "user", "content": "the cat of Mira is called"}]
CONTEXT = 2048
WORDS_OF_TESTS = ("Mira", "Tolu", "boat")


def write_night(chain: Path, number: int, **sizes: int) -> Path:
    """Write a committed night; each has a model with its own weights."""
    run = chain / f"night-{number:03}"
    tiny_model(seed=number, **sizes).save_pretrained(run / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(run / "model")
    write_json(run / "config.json", {"model": "tiny", "memories": "docs.jsonl"})
    return write_finished_run(run)


def greedy(run: Path, prompt: str, tokens: int) -> str:
    """Return the text of plain transformers."""
    model, tokenizer = (kind.from_pretrained(run / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)


@dataclass
class Served:
    chain: Path
    url: str
    buffer: Path
    process: subprocess.Popen
    client: openai.OpenAI

    def post(self, path: str, body: Any, key: str = KEY) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(f"{self.url}{path}", content=content, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def ask(self, **options: Any) -> Any:
        chosen = {"model": "chain", "messages": ASKED, "max_tokens": 8, "temperature": 0} | options
        create: Any = self.client.chat.completions.create
        return create(**chosen)

    def recorded(self) -> list[tuple[str, str]]:
        with WakeBuffer(self.buffer) as buffer:
            return [(memory.source, memory.text) for memory in buffer.memories()]


@contextmanager
def serving(chain: Path, *options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "sleep_trl.cli", "serve", str(chain), "--port", "0", "--json", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SLEEP_TRL_API_KEY": KEY}
    log = chain / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    printed = process.stdout.readline()
    assert printed, log.read_text()
    url = json.loads(printed)["url"]
    try:
        yield Served(chain, url, chain / "wake.db", process, openai.OpenAI(base_url=url, api_key=KEY, max_retries=0))
        servers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not psutil.wait_procs(servers, timeout=30)[1], "a model server outlived the endpoint"
        written = log.read_text() + printed
        assert KEY not in written and not any(word in written for word in WORDS_OF_TESTS), "secrets in the log"
    finally:
        process.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    chain = tmp_path_factory.mktemp("chains") / "chain"
    write_night(chain, 1, max_position_embeddings=CONTEXT)
    with serving(chain, "--backend", "transformers", "--record", str(chain / "wake.db")) as endpoint:
        yield endpoint


def test_answers_are_the_models(served):
    night = served.chain / "night-001"
    answer = served.ask()
    assert answer.choices[0].message.content == greedy(night, "user the cat of Mira is called assistant", 8)
    assert (answer.model, answer.system_fingerprint[:20]) == ("chain", "night-001:entry-000:")
    continued = served.client.completions.create(model="chain", prompt="the boat", max_tokens=8, temperature=0)
    assert continued.choices[0].text == greedy(night, "the boat", 8)
    assert [model.id for model in served.client.models.list()] == ["chain"]
    assert served.client.models.retrieve("chain").night == "night-001:entry-000"


def test_temperature_means_what_it_says(served):
    assert len({served.ask(temperature=1).choices[0].message.content for _ in range(5)}) > 1
    assert len({served.ask(temperature=0).choices[0].message.content for _ in range(3)}) == 1
    short = served.ask(max_tokens=openai.omit, extra_body={"max_completion_tokens": 3})
    assert short.usage.completion_tokens == 3 and short.choices[0].finish_reason == "length"


def test_empty_options_and_texts_in_parts_mean_what_they_say(served):
    whole = served.ask().choices[0].message.content
    parts = [{"role": "user", "content": [{"type": "text", "text": text} for text in ("the cat of", "Mira is called")]}]
    assert served.ask(messages=parts, stop=[], logit_bias={}, temperature=1e-300).choices[0].message.content == whole


def test_streams(served):
    whole = served.ask().choices[0].message.content
    parts = list(served.ask(stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole
    assert len(parts) > 8 and {part.model for part in parts} == {"chain"}
    raw = served.post("/chat/completions", {"model": "chain", "messages": ASKED, "stream": True, "max_tokens": 2})
    assert raw.headers["content-type"].startswith("text/event-stream") and raw.text.endswith("data: [DONE]\n\n")


def test_a_bad_completion_is_refused_too(served):
    for wrong, field in (
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
    ):
        answer = served.post("/completions", {"model": "chain", "prompt": "a"} | wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_answers_end_before_a_stop_string(served):
    whole = served.ask(max_tokens=30).choices[0].message.content
    stop = whole.split()[4]
    before = whole[: whole.index(stop)]
    assert before and served.ask(max_tokens=30, stop=stop).choices[0].message.content == before
    parts = list(served.ask(max_tokens=30, stop=["never said", stop], stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == before
    assert parts[-1].choices[0].finish_reason == "stop"
    text = (
        served.client.completions.create(model="chain", prompt="the boat", max_tokens=8, temperature=0).choices[0].text
    )
    stop = text.split()[-1]
    asked = {"model": "chain", "prompt": "the boat", "max_tokens": 8, "temperature": 0, "stop": [stop]}
    assert served.client.completions.create(**asked).choices[0].text == text[: text.index(stop)]


def test_usage_of_a_stream_comes_if_asked_for(served):
    usage = served.ask().usage
    parts = list(served.ask(stream=True, stream_options={"include_usage": True}))
    assert parts[-1].choices == [] and parts[-1].usage == usage
    assert all(part.usage is None and part.choices for part in parts[:-1])
    assert all(part.usage is None for part in served.ask(stream=True))


def test_an_answer_ends_with_the_context(served):
    """Without `max_tokens`, the server would write 1,024 tokens, wherever the context ends."""
    long = [{"role": "user", "content": "boat " * (CONTEXT - 50)}]
    answer = served.ask(messages=long, max_tokens=openai.omit, logit_bias={"2": -100}, store=False)
    assert answer.usage.total_tokens == CONTEXT and answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("key", ["none", "wrong", KEY + "x", KEY[:-1]])
def test_requires_the_key(served, key):
    for path in ("/chat/completions", "/nothing"):
        answer = served.post(path, {"model": "chain", "messages": ASKED}, key)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{served.url}/models").status_code == 401
    assert httpx.get(served.url.replace("/v1", "/health")).json() == {"status": "ok"}


def test_listens_on_loopback_only(served):
    listening = [
        connection.laddr
        for process in (psutil.Process(served.process.pid), *psutil.Process(served.process.pid).children(True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"], "only the endpoint listens on a port"


CHAT = {"model": "chain", "messages": ASKED}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b'{"model": "chain", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "UTF-8"),
        ([CHAT], 400, "JSON object"),
        (CHAT | {"model": "gpt-4"}, 404, "'chain'"),
        ({"model": "chain"}, 400, "`messages`"),
        (CHAT | {"messages": ["the boat"]}, 400, "messages[0]"),
        (CHAT | {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0]"),
        (CHAT | {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages[0].content[0]"),
        (CHAT | {"chat_template_kwargs": {"documents": 5}}, 400, "chat template does not take this chat"),
        (CHAT | {"n": 2}, 400, "`n`"),
        (CHAT | {"temperature": "1"}, 400, "`temperature`: should be a valid number"),
        (CHAT | {"temperature": 2.5}, 400, "`temperature`: should be less than or equal to 2"),
        (CHAT | {"max_tokens": 0}, 400, "`max_tokens`: should be greater than or equal to 1"),
        (CHAT | {"stop": ["a", ""]}, 400, "`stop`: "),
        (CHAT | {"logit_bias": {"500": 1}}, 400, "`logit_bias`: the model has"),
        (CHAT | {"frequency_penalty": -1}, 400, "`frequency_penalty` must be above -1"),
        (CHAT | {"tools": [{"type": "function"}]}, 400, "`tools`: the model's chat template has no place"),
        (CHAT | {"stream_options": {"include_usage": True}}, 400, "`stream_options` needs `stream: true`"),
        (CHAT | {"messages": [{"role": "user", "content": "boat " * CONTEXT}]}, 400, "the model's context is 2048"),
        (CHAT | {"max_tokens": CONTEXT}, 400, "`max_tokens` is 2048, but the model's context is 2048 tokens"),
        (CHAT | {"not_a_field": 2}, 400, "A field is not known here"),
        (CHAT | {"messages": [{"role": "user", "content": "boat " * 2_000_000}]}, 413, "8 MiB"),
    ],
)
def test_bad_requests_are_answered_in_openais_form(served, body, status, says):
    before = served.recorded()
    answer = served.post("/chat/completions", body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert says in error["message"] and error["type"] == "invalid_request_error"
    assert "boat" not in answer.text and served.recorded() == before


@pytest.mark.parametrize(
    ("given", "message", "param", "code"),
    [
        ({"prompt": ""}, "The prompt has no tokens. Write at least one.", "prompt", None),
        ({"prompt": "boat " * CONTEXT}, "the model's context is 2048", "prompt", "context_length_exceeded"),
        ({"prompt": "boat", "max_tokens": CONTEXT}, "the model's context", "max_tokens", "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_completions_without_a_prompt_or_beyond_the_context_are_refused(served, given, message, param, code, stream):
    with pytest.raises(openai.BadRequestError) as refused:
        served.client.completions.create(model="chain", stream=stream, **given)
    assert message in refused.value.body["message"]
    assert (refused.value.param, refused.value.code) == (param, code)


def test_other_paths_do_not_exist(served):
    for path in ("/reset", "/load_model", "/responses", "/../reset"):
        assert served.post(path, {"model": "chain"}).status_code in (404, 405)


def test_records_new_messages(served):
    before = len(served.recorded())
    asked = [{"role": "user", "content": "Ben eats hats"}]
    first = served.ask(messages=asked, user="Mira").choices[0].message.content
    turn = [*asked, {"role": "assistant", "content": first}, {"role": "user", "content": "it eats hats"}]
    second = "".join(p.choices[0].delta.content or "" for p in served.ask(messages=turn, stream=True, user="Mira"))
    served.ask(messages=[{"role": "user", "content": "the boat"}], store=False)
    assert served.recorded()[before:] == [
        ("chat/Mira", f"user: Ben eats hats\nassistant: {first}"),
        ("chat/Mira", f"user: it eats hats\nassistant: {second}"),
    ]


def test_an_aborted_answer_is_not_recorded(served):
    before = served.recorded()
    asked = [{"role": "user", "content": "Ben sleeps"}]
    stream = served.ask(messages=asked, stream=True, max_tokens=1500, logit_bias={"2": -100})  # 2 would end it early
    next(stream)
    stream.close()
    served.ask(store=False)  # waits for the other one, since the model server answers one at a time
    assert served.recorded() == before


def test_a_client_that_left_is_neither_recorded_nor_served_to_the_end(served):
    """The model server answers one request at a time, so the next one would wait for an answer that nobody reads."""
    before = served.recorded()
    long = {"messages": [{"role": "user", "content": "Ben sleeps"}], "logit_bias": {"2": -100}}  # 2 would end it early
    began = time.monotonic()
    served.ask(**long, max_tokens=300, store=False)
    seconds = time.monotonic() - began
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{served.url}/chat/completions",
            json={"model": "chain", "max_tokens": 1900, **long},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=0.05,
        )
    began = time.monotonic()
    served.ask(store=False)
    assert time.monotonic() - began < 3 * seconds  # the whole answer takes more than six times as long
    assert served.recorded() == before


def night_of(answer) -> str:
    """Return the night of an answer, without the hash of the enabled experts."""
    return answer.system_fingerprint.rpartition(":")[0]


def test_swaps_under_load_without_dropping_a_request(served):
    """Thirty clients send requests while a night is committed, until each was answered by the new model."""
    said: dict[str, set[str]] = {}

    def ask_until_the_new_one_answers(client: int) -> list[str]:
        nights: list[str] = []
        until = time.monotonic() + 120
        while nights[-2:] != ["night-002:entry-000"] * 2 and time.monotonic() < until:
            if client % 2:
                parts = list(served.ask(stream=True))
                night, text = night_of(parts[0]), "".join(p.choices[0].delta.content or "" for p in parts)
            else:
                answer = served.ask()
                night, text = night_of(answer), answer.choices[0].message.content
            nights.append(night)
            said.setdefault(night, set()).add(text)
        return nights

    with ThreadPoolExecutor(30) as clients:
        asked = [clients.submit(ask_until_the_new_one_answers, client) for client in range(30)]
        write_night(served.chain, 2)
        answered = [future.result() for future in asked]  # a request that failed raises here
    for nights in answered:
        assert nights == sorted(nights), "an old night's model answered after the new one"
        assert nights[0] == "night-001:entry-000" and nights[-1] == "night-002:entry-000"
    prompt = f"user {ASKED[0]['content']} assistant"
    assert said == {f"{n}:entry-000": {greedy(served.chain / n, prompt, 8)} for n in ("night-001", "night-002")}
    servers = psutil.Process(served.process.pid).children()
    assert len(servers) == 1 or len(psutil.wait_procs(servers, timeout=20)[1]) == 1, (
        "the old model server was not stopped"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_a_model_server_may_die_and_a_new_one_may_not_start(tmp_path, kind):
    pytest.importorskip(kind)
    chain = tmp_path / "chain"
    write_night(chain, 1, hidden_size=128)  # vLLM on a CPU knows no smaller heads
    with serving(chain, "--backend", kind) as endpoint:
        [server] = psutil.Process(endpoint.process.pid).children()
        stream = endpoint.ask(stream=True, max_tokens=100)
        next(stream)
        workers = server.children(recursive=True)
        assert bool(workers) == (kind == "vllm")
        server.kill()
        with pytest.raises(openai.APIError, match="ended before its answer was complete"):
            list(stream)
        assert not psutil.wait_procs(workers, timeout=20)[1], "workers outlive their server"
        answer = endpoint.ask().choices[0].message.content  # waits for the server to be back
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(endpoint.ask, max_tokens=110, logit_bias={"2": -100})  # 2 would end it early
            time.sleep(0.05)
            psutil.Process(endpoint.process.pid).children()[0].kill()
            assert not asked.done()
            assert asked.result().usage.completion_tokens == 110, "the next server answers what is not streamed"
        assert answer.strip() == greedy(chain / "night-001", f"user {ASKED[0]['content']} assistant", 8)
        write_json(write_finished_run(chain / "night-002") / "model" / "config.json", {"dtype": "float32"})
        until = time.monotonic() + 120
        while "stays in use" not in (chain / "log").read_text() and time.monotonic() < until:
            time.sleep(0.2)
        assert "night-001:entry-000 stays in use" in (chain / "log").read_text()
        assert endpoint.ask().system_fingerprint.startswith("night-001:entry-000:"), (
            "a model that does not load changes nothing"
        )
