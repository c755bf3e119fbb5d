"""The end of a night for whoever started it: the report, the table, whether it worked, and where everything is."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sleep_trl.config import RunConfig


def write_report_if_possible(config: RunConfig) -> bool:
    """Write the report of a night unless it is not wanted or plotly is not installed, and return whether there is
    one."""
    if not config.report or importlib.util.find_spec("plotly") is None:
        return False
    from sleep_trl.report import write_report

    write_report(config.output_dir)
    return True


def show_outcome(config: RunConfig, results: dict[str, Any], has_report: bool) -> None:
    """Print the table of a night, whether it worked, and what was written, on the main process."""
    from sleep_trl.distributed.progress import echo
    from sleep_trl.night.results import render_results
    from sleep_trl.planning.plan import where_routed
    from sleep_trl.report.words import silent_rewards, verdict

    echo(render_results(results))
    for line in silent_rewards(results["history"]):
        echo(line, style="yellow")
    echo(verdict(results).replace("\u00a0", " "))  # a terminal may know only ASCII
    model = "model/, " if (is_folded := results["fold_difference"] is not None) else ""
    report = ", report.html" if has_report else ""
    echo(f"Written to {config.output_dir}: {model}adapter/, ledger.jsonl, results.json{report}")
    if config.report and not has_report:
        echo("No report.html: plotly is not installed. Run pip install 'sleep-trl[report]'", "yellow")
    if not is_folded:
        echo(f"The experts are routed and do not fold; the grown model is {where_routed(config.output_dir)}")
