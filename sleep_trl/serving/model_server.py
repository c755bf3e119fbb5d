"""A model server in its own process: `python -m sleep_trl.serving.model_server KIND MODEL SOCKET NAME [...]`.

It listens on a Unix socket, so that only the proxy can reach it, and ends when its standard input is closed, so that it
never outlives the proxy. vLLM's server is run unchanged. For transformers, the application of `transformers serve` is
run here, because that command can only listen on a port, which every user of the machine could reach without a key.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ..runs.host_memory import bound_caches

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from transformers import GenerationConfig, PreTrainedModel

STOP_TIMEOUT = 10.0  # seconds between terminating a process and killing it
MEMORY_SHARE = 0.45  # of a device's memory, so that two vLLM servers fit during a swap
asked: ContextVar[int | None] = ContextVar("asked", default=None)
"""`max_tokens` of the request that a task answers."""
left: ContextVar[threading.Event | None] = ContextVar("left", default=None)
"""Is set when the client of the request that a task answers has left."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # the model is on disk; names in requests are not looked up
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}


def serve_vllm(model: Path, socket: str, name: str, options: Sequence[str]) -> None:
    """Run vLLM's OpenAI server."""
    from vllm.platforms import current_platform

    module, share = "vllm.entrypoints.openai.api_server", memory_share(current_platform.is_cpu())
    given = [f"--model={model}", f"--uds={socket}", f"--served-model-name={name}", f"--gpu-memory-utilization={share}"]
    sys.argv = [module, *given, *options]
    runpy.run_module(module, run_name="__main__")


def memory_share(is_cpu: bool) -> float:
    """Return the share of the memory that vLLM's server takes if none is asked for. Of the machine's own memory other
    programs use much, and vLLM does not start if less is free: there it is a share of what is free."""
    if not is_cpu:
        return MEMORY_SHARE
    memory = psutil.virtual_memory()
    return round(MEMORY_SHARE * memory.available / memory.total, 3)


def serve_transformers(model: Path, socket: str, name: str, options: Sequence[str]) -> None:
    """Run the application of `transformers serve` with one model, named as its folder.

    Raises:
        `ValueError`: if options are given.
    """
    if options:
        raise ValueError(f"{' '.join(options)} cannot be given to transformers. Leave it out, or install vLLM.")
    import uvicorn
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import GenerationState

    os.chdir(model.parent)  # transformers would read an @ in a path as a revision
    models, state = ModelManager(force_model=model.name), GenerationState()

    class Chat(WithinContext, ChatCompletionHandler):
        field = "messages"

    class Completion(WithinContext, CompletionHandler):
        field = "prompt"

    chat, completion = Chat(models, state), Completion(models, state)
    loaded, tokenizer = models.load_model_and_processor(models.process_model_name(model.name))
    sample_by_default(loaded)
    stop_where_asked(loaded, tokenizer)
    refuse_what_the_template_refuses(tokenizer)
    app = build_server(models, chat, completion, None, None, state)
    uvicorn.run(NoticesLeaving(app), uds=socket, access_log=False)


def stop_where_asked(model: PreTrainedModel, tokenizer: Any) -> None:
    """Let a model's `generate` stop at stop strings and when `generation_config.left` is set. The criterion of
    transformers looks for strings in the vocabulary, which it cannot read for every tokenizer, and `transformers serve`
    stops only streamed answers for a client that left."""
    from ..rollout.in_process import StopStrings, StopWhen

    generate = model.generate

    def generate_until_asked(input_ids: Any, generation_config: GenerationConfig, **options: Any) -> Any:
        criteria: list[Any] = []
        if stops := generation_config.stop_strings:
            generation_config.stop_strings = None
            found = StopStrings(tokenizer, (stops,) if isinstance(stops, str) else tuple(stops), input_ids.shape[1])
            criteria.append(found)
        if event := vars(generation_config).pop("left", None):
            criteria.append(StopWhen(event.is_set))
        if criteria:
            options["stopping_criteria"] = criteria
        return generate(input_ids=input_ids, generation_config=generation_config, **options)

    model.generate = generate_until_asked


class NoticesLeaving:
    """Lets an application know by `left` when the client of a request has closed its connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        event = threading.Event()
        left.set(event)
        watching: list[asyncio.Task[None]] = []

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            event.set()

        async def receive_and_watch() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                watching.append(asyncio.create_task(watch()))  # nothing but a disconnect comes after the body
            return message

        try:
            await self.app(scope, receive_and_watch, send)
        finally:
            for task in watching:
                task.cancel()


def refuse_what_the_template_refuses(tokenizer: Any) -> None:
    """Let a chat that the model's template does not take be a fault of the request, not of the server: templates raise
    errors, for instance where roles do not alternate."""
    from fastapi import HTTPException
    from jinja2 import TemplateError

    apply = tokenizer.apply_chat_template

    def apply_or_refuse(*args: Any, **options: Any) -> Any:
        try:
            return apply(*args, **options)
        except Exception as error:  # a template runs on the request alone, so whatever it raises is about that
            reason = f"it says: {error}" if isinstance(error, TemplateError) else f"it raised {type(error).__name__}"
            message = f"The model's chat template does not take this chat; {reason.rstrip('.')}."
            raise HTTPException(400, {"message": message, "param": "messages"}) from error

    tokenizer.apply_chat_template = apply_or_refuse


class WithinContext:
    """Lets a handler of `transformers serve` refuse prompts that the model cannot read, and end answers at the end of
    its context; beyond, a model writes garbage."""

    field: str
    """The field of a request that has its prompt."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        asked.set(body.get("max_tokens"))
        return await super().handle_request(body, request_id)  # type: ignore[misc]

    def _streaming(
        self, request_id: str, model: Any, processor: Any, name: str, inputs: Any, *args: Any, **kw: Any
    ) -> Any:
        fit(model, inputs, args[0], self.field)
        return super()._streaming(request_id, model, processor, name, inputs, *args, **kw)  # type: ignore[misc]

    async def _non_streaming(
        self, request_id: str, model: Any, processor: Any, name: str, inputs: Any, *args: Any, **kw: Any
    ) -> Any:
        fit(model, inputs, args[0], self.field)
        args[0].left = left.get()
        return await super()._non_streaming(request_id, model, processor, name, inputs, *args, **kw)  # type: ignore[misc]


def fit(model: PreTrainedModel, inputs: Any, generation: GenerationConfig, field: str) -> None:
    """Limit an answer to what is left of the model's context. `field` has the prompt.

    Raises:
        `fastapi.HTTPException`: with status 400, if nothing is left, or less than `max_tokens`, or there is no prompt.
    """
    from fastapi import HTTPException

    from ..models.loading import context_limit

    limit, length = context_limit(model.config), len(inputs["input_ids"][0])
    most = asked.get()
    if not length:
        raise HTTPException(400, {"message": "The prompt has no tokens. Write at least one.", "param": field})
    if length + (most or 1) > limit:
        answer = f" and `max_tokens` is {most}" if most else ""
        message = f"The prompt has {length} tokens{answer}, but the model's context is {limit} tokens. Shorten it."
        detail = {"message": message, "param": "max_tokens" if most and length < limit else field}
        raise HTTPException(400, detail | {"code": "context_length_exceeded"})
    generation.max_new_tokens = min(generation.max_new_tokens or limit, limit - length)


def sample_by_default(model: PreTrainedModel) -> None:
    """Give `temperature` its usual meaning: 1 by default, 0 for greedy decoding. Without this, a checkpoint that does
    not enable sampling always decodes greedily."""
    config = model.generation_config
    config.do_sample = True
    config.top_k = config.top_k or 0  # 0 is off; the default would be 50


KINDS: dict[str, Callable[[Path, str, str, Sequence[str]], None]] = {
    "vllm": serve_vllm,
    "transformers": serve_transformers,
}


def end_with_parent() -> None:
    """End this process and its children when standard input is closed, which happens when the parent ends."""

    def wait() -> None:
        while os.read(0, 1):
            continue
        os.killpg(0, signal.SIGTERM)
        time.sleep(STOP_TIMEOUT)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    bound_caches()  # a server lives long, and prompts have all lengths
    kind, folder, *rest = sys.argv[1:]
    KINDS[kind](Path(folder), rest[0], rest[1], rest[2:])
