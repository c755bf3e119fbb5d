"""GPUs by name."""

import pytest

from sleep_trl.planning.gpus import GPUS, parse_gpus


def test_a_count_and_a_name_are_read():
    assert parse_gpus("8xH100") == (8, GPUS["H100"])
    assert parse_gpus("2xa100-80gb") == (2, GPUS["A100-80GB"])
    assert parse_gpus("L40S") == (1, GPUS["L40S"])


@pytest.mark.parametrize("text", ["0xH100", "8xH999", "8 H100", "8x", ""])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"Give, for example, 8xH100; .*L40S"):
        parse_gpus(text)


def test_every_figure_names_its_maker():
    assert all(gpu.source.startswith("https://www.nvidia.com/") and name == gpu.name for name, gpu in GPUS.items())
