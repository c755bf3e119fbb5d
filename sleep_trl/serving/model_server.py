"""One model server, in a process of its own: `python -m sleep_trl.serving.model_server KIND MODEL SOCKET NAME [...]`.

It listens on a Unix socket, so that only the proxy reaches it, and ends when its standard input does, so that it never
outlives the proxy. vLLM's server is run as it is. Of `transformers serve` the same application is served: its command
can only listen on a port, which every user of the machine would reach without a key.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PATIENCE = 10.0  # seconds between asking a process to end and ending it
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # the model lies on the disk; a name that a request brings is not looked up anywhere
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}


def serve_vllm(model: Path, socket: str, name: str, options: Sequence[str]) -> None:
    """Run vLLM's OpenAI server."""
    module = "vllm.entrypoints.openai.api_server"
    sys.argv = [module, f"--model={model}", f"--uds={socket}", f"--served-model-name={name}", *options]
    runpy.run_module(module, run_name="__main__")


def serve_transformers(model: Path, socket: str, name: str, options: Sequence[str]) -> None:
    """Run the application of `transformers serve` with one model. It is known there by its folder's name.

    Raises:
        `ValueError`: if options are given; there are none.
    """
    if options:
        raise ValueError(f"{' '.join(options)} cannot be given to transformers. Leave it out, or install vLLM.")
    import uvicorn
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import GenerationState

    os.chdir(model.parent)  # a path may hold what transformers reads as a revision (@)
    models, state = ModelManager(force_model=model.name), GenerationState()
    chat, completion = ChatCompletionHandler(models, state), CompletionHandler(models, state)
    sample_by_default(models.load_model_and_processor(models.process_model_name(model.name))[0])
    app = build_server(models, chat, completion, None, None, state)
    uvicorn.run(app, uds=socket, access_log=False)


def sample_by_default(model: PreTrainedModel) -> None:
    """Let a request's `temperature` mean what it means elsewhere: 1 if it is left out, 0 is greedy. A checkpoint that
    does not ask for sampling would be greedy whatever is asked for."""
    config = model.generation_config
    config.do_sample = True
    config.top_k = config.top_k or 0  # 0 is off; left out it would be 50


KINDS: dict[str, Callable[[Path, str, str, Sequence[str]], None]] = {
    "vllm": serve_vllm,
    "transformers": serve_transformers,
}


def end_with_parent() -> None:
    """End this process and its children when standard input ends, which is when the parent has ended."""

    def wait() -> None:
        while os.read(0, 1):
            continue
        os.killpg(0, signal.SIGTERM)
        time.sleep(PATIENCE)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    kind, folder, *rest = sys.argv[1:]
    KINDS[kind](Path(folder), rest[0], rest[1], rest[2:])
