"""Name the runs of several nights in each process of a launch, and print the names: run by test_trackers.py."""

import sys
from pathlib import Path

from accelerate import PartialState

from sleep_trl.trainers.knowledge_seeding.from_config import seeding_arguments
from sleep_trl.trainers.trackers import one_run
from tests.trainers.test_trackers import config_of

state, names = PartialState(cpu=True), []
for night in range(20):
    folder = Path(sys.argv[1], f"night-{night}")
    arguments = seeding_arguments(config_of(folder, "tensorboard"), folder)
    state.wait_for_everyone()
    with one_run(arguments, folder):
        names.append(arguments.run_name)
Path(sys.argv[1], f"{state.process_index}.txt").write_text("\n".join(names))
