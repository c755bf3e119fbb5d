"""A night that notes the peak resident memory of its phases, for `phase_memory.py`: FILE [options of a night]."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _peaks import peak_since_reset, reset_peak
from _report import ROOT

from sleep_trl.runs.host_memory import give_back
from sleep_trl.runs.phases import Phases

peaks: dict[str, float] = {}
once = Phases.once


def noted(self: Phases, name: str, work: Callable[[], Any]) -> Any:
    """Run a phase. Its peak is read when its work is done."""

    def measured() -> Any:
        give_back()
        reset_peak()
        result = work()
        peaks[name] = peak_since_reset()
        return result

    # parts of a phase, which have a folder of their own, do not reset its peak
    return once(self, name, measured if self.folder.name == "phases" else work)


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    Phases.once = noted  # type: ignore[method-assign]
    sys.argv[0] = str(ROOT / "launch" / "sleep.py")
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        file.write_text(json.dumps(peaks), "utf-8")
