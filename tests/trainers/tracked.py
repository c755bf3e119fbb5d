"""Send the figures of a night to trackio twice, and print what its runs have: run by test_trackers.py."""

import json
import sys
from pathlib import Path

from trackio.sqlite_storage import SQLiteStorage

from sleep_trl.trainers.knowledge_seeding.from_config import seeding_arguments, track
from tests.trainers.test_trackers import RESULTS, config_of

config = config_of(Path(sys.argv[1]), "trackio")
for recall in (0.75, 1.0):
    track(config, RESULTS | {"recall": {"before": 0.0, "with_context": 1.0, "after": recall}})
project = seeding_arguments(config, sys.argv[1]).project
logs = {run: SQLiteStorage.get_logs(project, run) for run in SQLiteStorage.get_runs(project)}
values = {run: [row["eval/recall"] for row in rows if "eval/recall" in row] for run, rows in logs.items()}
sys.stdout.write(json.dumps(values) + "\n")
