"""Two processes share one pool, which the first makes and updates."""

import json
from importlib.util import find_spec

import pytest

from tests.distributed.launching import launch

HOUR = 3600


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make setup installs it")
def test_two_processes_share_one_pool(tmp_path):
    launch("ddp", "tests/distributed/pool.py", tmp_path)
    first, second = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(2))
    for seen in (first, second):
        before, itself, after, taught, mine, expected = seen["drawn"]
        assert before == itself != after == taught and mine == expected
        assert seen["patience_s"] > HOUR  # the second one waits while the first draws for both
    assert first["drawn"][:4] == second["drawn"][:4]
    assert first["cluster"] == second["cluster"]
