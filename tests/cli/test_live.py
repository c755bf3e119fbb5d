"""What `sleep-trl live` prints of an event."""

from sleep_trl.cli.live import _message


def test_one_is_singular() -> None:
    assert _message("done", {"nights": 1}) == "Finished 1 night."
    assert _message("pending", {"records": 1, "tokens": None}) == "Pending: 1 record"
    assert _message("pending", {"records": 2_000, "tokens": 7}) == "Pending: 2,000 records, 7 tokens"
