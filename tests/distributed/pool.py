"""One pool of engines for all processes of a launch, and dreams' workers in the same Ray, as a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sleep_trl.config import RunConfig
from sleep_trl.distributed import ray as cluster
from sleep_trl.launch.sleep import _init_processes
from sleep_trl.rollout.choice import make_engine
from tests.rollout.engines import GREEDY, PROMPTS, grown_model, on_the_model_itself, teach
from tests.tiny import tiny_tokenizer


def ids_of(completions: Sequence[Any]) -> list[list[int]]:
    return [completion.ids for completion in completions]


if __name__ == "__main__":
    config = RunConfig.model_validate(
        {"model": "none", "memories": "none", "rollout": {"engine": "ray", "num_engines": 1}}
    )
    _init_processes(config)
    cluster.prepare()
    memory = grown_model()
    engine, _ = make_engine(config.rollout, memory, tiny_tokenizer(), 8)
    itself = on_the_model_itself(memory)
    drawn = [ids_of(engine.generate(PROMPTS, GREEDY)), ids_of(itself.generate(PROMPTS, GREEDY))]
    teach(memory, memory.activate(), seed=2)
    drawn += [ids_of(engine.generate(PROMPTS, GREEDY)), ids_of(itself.generate(PROMPTS, GREEDY))]
    rank = PartialState().process_index
    drawn += [ids_of(engine.generate_each(PROMPTS[rank::2], GREEDY)), drawn[-1][rank::2]]
    cluster.connect()  # as dreams' workers do, on all processes
    import ray

    group: Any = torch.distributed.group.WORLD
    seen = {
        "drawn": drawn,
        "cluster": ray.get_runtime_context().gcs_address,
        "patience_s": group._get_backend(torch.device("cpu")).options._timeout.total_seconds(),
    }
    PartialState().wait_for_everyone()  # the first one's Ray ends with it
    engine.close()
    Path(sys.argv[1], f"seen-{rank}.json").write_text(json.dumps(seen))
