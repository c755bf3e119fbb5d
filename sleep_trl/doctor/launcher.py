"""What the configuration file of `accelerate launch` says about a run's processes on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config.command_line import read_yaml

DEFAULT_PORT = 29500  # of accelerate and torchrun, where the file names none


@dataclass(frozen=True)
class Launch:
    """How a run is launched.

    Args:
        processes (`int`): on this machine.
        port (`int`): at which they find each other; 0 is any free one.
        is_deepspeed (`bool`): whether DeepSpeed drives them.
        has_shards (`bool`): whether the weights are spread over them.
        uses_cpu (`bool`): whether GPUs are left alone.
    """

    processes: int = 1
    port: int = 0
    is_deepspeed: bool = False
    has_shards: bool = False
    uses_cpu: bool = False

    @staticmethod
    def read(path: Path) -> Launch:
        """Read a file such as launch/accelerate/zero3.yaml.

        Raises:
            `ValueError`: if it cannot be read, or holds no numbers where they are needed.
        """
        given = read_yaml(path, "--config_file")
        try:
            processes = int(given.get("num_processes") or 1) // int(given.get("num_machines") or 1)
            port = given.get("main_process_port")
            stage = int((given.get("deepspeed_config") or {}).get("zero_stage") or 0)
            return Launch(
                processes=max(1, processes),
                port=0 if processes <= 1 else DEFAULT_PORT if port is None else int(port),
                is_deepspeed=given.get("distributed_type") == "DEEPSPEED",
                has_shards=stage == 3,
                uses_cpu=bool(given.get("use_cpu")),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"--config_file: {path} is no configuration of accelerate ({error}). Give such as "
                f"launch/accelerate/ddp.yaml."
            ) from None
