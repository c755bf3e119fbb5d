from sleep_trl.config.counting import counted


def test_one_is_singular():
    assert [counted(number, "memory") for number in (0, 1, 2)] == ["0 memories", "1 memory", "2 memories"]
    assert (counted(1, "window"), counted(12_000, "window")) == ("1 window", "12,000 windows")
