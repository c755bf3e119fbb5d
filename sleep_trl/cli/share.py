"""`sleep-trl serve` and `sleep-trl export`: share the grown model."""

from __future__ import annotations

import logging
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..config.visible import VisibleFormatter
from ..runs.finished import newest_committed_night
from . import paths
from .output import Json, redirect_to_stderr, show

Run = Annotated[Path, typer.Argument(parser=paths.path, help="Folder of a finished run, or of a chain of nights.")]


def serve(
    run: Run,
    options: Annotated[list[str] | None, typer.Argument(metavar="-- OPTION", help="Options of vLLM's server.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Beyond loopback, use a TLS proxy.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api_key", envvar="SLEEP_TRL_API_KEY", help="API key of clients. Default: generated and printed."
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(parser=paths.path, metavar="WAKE_BUFFER", help="Record conversations to this wake buffer."),
    ] = None,
    backend: Annotated[
        Literal["vllm", "transformers"] | None,
        typer.Option(help="The model server. Default: vllm if it is installed."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Model name for clients. Default: the folder's name.")] = None,
    json: Json = False,
) -> None:
    """Serve the newest committed model over an OpenAI-compatible API; switch to each new night without downtime."""
    if missing := [package for package in ("starlette", "uvicorn") if find_spec(package) is None]:
        raise ValueError(f"Serving needs {', '.join(missing)}. Install it: pip install 'sleep-trl[serve]'.")
    newest_committed_night(run)  # a wrong folder is refused before torch is imported
    from ..serving.server import Endpoint, ServeOptions
    from ..serving.server import serve as run_server

    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("sleep_trl.serving").setLevel(logging.INFO)

    def print_endpoint(endpoint: Endpoint) -> None:
        key = "(as given)" if api_key else endpoint.api_key
        row = asdict(endpoint) | {"api_key": key, "record": str(record) if record else None}
        show([row], json, lambda row: "\n".join(f"{name:<8} {value or 'off'}" for name, value in row.items()))

    run_server(ServeOptions(run, host, port, api_key, record, backend, name, tuple(options or ())), print_endpoint)


def export(
    run: Run,
    to: Annotated[
        Literal["checkpoint", "adapter", "peft"],
        typer.Option(help="checkpoint: the folded model. adapter: the experts alone. peft: refused, with the reason."),
    ],
    output: Annotated[
        Path, typer.Option(parser=paths.path, metavar="DIR", help="Destination folder, missing or empty.")
    ],
    pad_to: Annotated[
        int | None,
        typer.Option(
            "--pad_to",
            min=1,
            metavar="WIDTH",
            help="Pad the MLPs of a checkpoint with units of zeros to a width divisible by this, such as 128 or 256.",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option("--push_to_hub", metavar="REPO", help="Also upload to NAMESPACE/NAME on the Hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Create a public repository. Default: private.")] = False,
    json: Json = False,
) -> None:
    """Export the newest committed model to a folder, with a model card."""
    from ..publish.export import check_repository, push
    from ..publish.export import export as write

    if public and not push_to_hub:
        raise ValueError("--public has no effect without --push_to_hub. Give both, or neither.")
    if push_to_hub:
        check_repository(push_to_hub)
    with redirect_to_stderr():
        written = write(run, to, output, pad_to)
        pushed = push(written, push_to_hub, not public) if push_to_hub else None
    row = {"written": str(written), "to": to, "pushed": pushed}
    show([row], json, lambda row: f"Written to {row['written']}" + (f", pushed to {row['pushed']}" if pushed else ""))
