"""A model server in its own process: `python -m sleep_trl.serving.model_server KIND MODEL SOCKET NAME [...]`.

It listens on a Unix socket, so that only the proxy can reach it, and ends when its standard input is closed, so that it
never outlives the proxy. vLLM's server is run unchanged. For transformers, the application of `transformers serve` is
run here, because that command can only listen on a port, which every user of the machine could reach without a key.
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

STOP_TIMEOUT = 10.0  # seconds between terminating a process and killing it
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # the model is on disk; names in requests are not looked up
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}


def serve_vllm(model: Path, socket: str, name: str, options: Sequence[str]) -> None:
    """Run vLLM's OpenAI server."""
    module = "vllm.entrypoints.openai.api_server"
    sys.argv = [module, f"--model={model}", f"--uds={socket}", f"--served-model-name={name}", *options]
    runpy.run_module(module, run_name="__main__")


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
    chat, completion = ChatCompletionHandler(models, state), CompletionHandler(models, state)
    sample_by_default(models.load_model_and_processor(models.process_model_name(model.name))[0])
    app = build_server(models, chat, completion, None, None, state)
    uvicorn.run(app, uds=socket, access_log=False)


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
    kind, folder, *rest = sys.argv[1:]
    KINDS[kind](Path(folder), rest[0], rest[1], rest[2:])
