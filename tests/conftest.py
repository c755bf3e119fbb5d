"""Shared fixtures, how tests are divided among pytest-xdist's workers, and which are left out of `--fast`.

Ray's token is set first: TRL imports vLLM where it is installed, and vLLM imports Ray, which reads its token only then.
"""

import gc
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from sleep_trl.distributed.ray import prepare

prepare()

# A background job of a shell ignores SIGINT, and so do its children; some tests send it to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.tiny_runs import write_memories, write_model  # noqa: E402  (may import TRL)

TESTS = Path(__file__).parent
ONE_AT_A_TIME = (
    "distributed/test_zero3.py",
    "distributed/test_zero3_pool.py",
    "distributed/test_pool.py",
    "rollout/test_ray_pool.py",
    "rollout/test_routed.py",
    "rollout/test_vllm.py",
    "batched_lora/test_ray_workers.py",
    "night/test_dream.py",
    "doctor/test_ray.py",
    "doctor/test_smoke_test.py",
)
"""Modules that start clusters or several processes, or wait for DeepSpeed's build: one worker runs them all, first."""

OVER_A_SECOND = TESTS / "over_a_second.txt"
"""What `--fast` leaves out: a module, or `module::name` for one of its tests or those that use a fixture."""


@pytest.fixture
def default_sigterm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM as it is in a new process: Ray and launched trainers of earlier tests may have left theirs."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, former)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help=f"leave out what tests/{OVER_A_SECOND.name} lists")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the tests that run one at a time, which take longest. With `--fast`, deselect slow ones."""
    left_out = set(OVER_A_SECOND.read_text("utf-8").split()) if config.getoption("--fast") else set()
    kept, deselected, first = [], [], []
    for item in items:
        module = item.path.relative_to(TESTS).as_posix()
        if left_out & _names(item, module):
            deselected.append(item)
        else:
            (first if module in ONE_AT_A_TIME else kept).append(item)
    config.hook.pytest_deselected(items=deselected)
    items[:] = [*first, *kept]


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collector's sight: each night collects several times, and would look
    through half a million objects that stay as long as the process."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Keep the tests of a module on one worker, since they share fixtures, and those that run one at a time.

    Not by `--dist loadgroup`: with pytest 9.2, pytest-xdist 3.8 ignores the groups without saying so.
    """
    return ByModule(config, log)


class ByModule(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "one at a time" if module.removeprefix("tests/") in ONE_AT_A_TIME else module


def _names(item: pytest.Item, module: str) -> set[str]:
    """Return the lines of `OVER_A_SECOND` that mean a test."""
    names = [item.name.partition("[")[0], *getattr(item, "fixturenames", ())]
    return {module, *(f"{module}::{name}" for name in names)}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With `--fast`, name tests that `OVER_A_SECOND` should list; twice the time is allowed, for a busy machine."""
    if config.getoption("--fast"):
        reports = [report for found in terminalreporter.stats.values() for report in found]
        slow = {report.nodeid: report.duration for report in reports if getattr(report, "duration", 0) > 2}
        for name, seconds in sorted(slow.items(), key=lambda item: -item[1])[:10]:
            terminalreporter.write_line(f"{seconds:.1f} s: {name} (tests/{OVER_A_SECOND.name} lists slow tests)")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of a good model, and good memories."""
    shutil.copytree(model, tmp_path / "model")
    write_memories(tmp_path / "docs.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path
