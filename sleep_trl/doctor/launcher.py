"""Starting processes: how `accelerate launch` will start a run, and Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..config.yaml_file import read_yaml

DEFAULT_PORT = 29500  # accelerate's and torchrun's, used if the configuration file names none
IMPORT_TIMEOUT = 180.0  # seconds; the first import of vLLM compiles its files


@dataclass(frozen=True)
class Launch:
    """How a run will be launched.

    Args:
        processes (`int`): number of processes on this machine.
        port (`int`): the port where they meet; 0 for any free one.
        is_deepspeed (`bool`): whether DeepSpeed is used.
        has_shards (`bool`): whether the weights are sharded over the processes (ZeRO-3).
        uses_cpu (`bool`): whether GPUs are ignored.
    """

    processes: int = 1
    port: int = 0
    is_deepspeed: bool = False
    has_shards: bool = False
    uses_cpu: bool = False

    @staticmethod
    def read(path: Path) -> Launch:
        """Read a configuration file of accelerate, such as launch/accelerate/zero3.yaml.

        Raises:
            `ValueError`: if it cannot be read, or a value that must be a number is not one.
        """
        options = read_yaml(path, "--config_file")
        try:
            processes = int(options.get("num_processes") or 1) // int(options.get("num_machines") or 1)
            port = options.get("main_process_port")
            stage = int((options.get("deepspeed_config") or {}).get("zero_stage") or 0)
            return Launch(
                processes=max(1, processes),
                port=0 if processes <= 1 else DEFAULT_PORT if port is None else int(port),
                is_deepspeed=options.get("distributed_type") == "DEEPSPEED",
                has_shards=stage == 3,
                uses_cpu=bool(options.get("use_cpu")),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"--config_file: {path} is not a configuration file of accelerate ({error}). Give one such as "
                f"launch/accelerate/ddp.yaml."
            ) from None


# -- Python in a child process, for what is slow, may crash, or leaves traces --------------------------


class ChildFailed(RuntimeError):
    """A child process raised, was killed, or timed out. The message is the last line of its `stderr`."""

    def __init__(self, message: str, stderr: str) -> None:
        super().__init__(message)
        self.stderr = stderr


def run_python(*arguments: str, timeout: float) -> str:
    """Run Python with this process's import paths, and return what it prints.

    Args:
        arguments (`str`):
            Arguments, such as `"-c", "import ray"`.
        timeout (`float`):
            Seconds after which it is killed.

    Raises:
        `ChildFailed`: if it fails or times out.
    """
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)  # -P drops the working directory
    try:
        child = subprocess.run(
            [sys.executable, "-P", *arguments],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        stderr = (error.stderr or b"").decode(errors="replace")  # bytes, in spite of text=True
        raise ChildFailed(f"not finished within {timeout:.0f} s", stderr) from None
    if child.returncode:
        lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
        raise ChildFailed(lines[-1] if lines else f"exit code {child.returncode}", child.stderr)
    return child.stdout


def import_error(statement: str) -> str | None:
    """Return why an import statement fails in a fresh process, or `None` if it works. Results are cached."""
    return _import_error(statement, tuple(sys.path))


@cache
def _import_error(statement: str, paths: tuple[str, ...]) -> str | None:
    try:
        run_python("-c", statement, timeout=IMPORT_TIMEOUT)
    except ChildFailed as error:
        return str(error)
    return None
