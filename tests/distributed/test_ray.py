import signal
import sys
from types import SimpleNamespace

from sleep_trl.distributed.ray import _init


def test_ray_does_not_replace_a_handler_of_sigterm(monkeypatch) -> None:
    def init(*args: object, **options: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _init("local")
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, former)
