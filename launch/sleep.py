"""Run a night: `accelerate launch launch/sleep.py --model MODEL --memories docs.jsonl`, or a chain of several:
`--nights monday.jsonl,tuesday.jsonl`. See --help.

Exit codes: 0 done, 1 the disk is full or read-only, 2 a user error, 75 another process works on the run or has changed
what the night began with (try again), 130 stopped by Ctrl-C, 143 by SIGTERM. With PYTHONDEVMODE=1, errors
during the night end in a traceback.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

if importlib.util.find_spec("sleep_trl") is None:  # run as a file from a clone, not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sleep_trl.config import RunConfig
from sleep_trl.config.command_line import explain, parse
from sleep_trl.config.exit_codes import DONE, FAILURE, STOPPED, TERMINATED, TRY_AGAIN, USER_ERROR
from sleep_trl.config.visible import show_warnings_visibly, visible
from sleep_trl.launch.checks import check_reward_names, check_trainer
from sleep_trl.launch.outcome import show_outcome, write_report_if_possible
from sleep_trl.launch.sigterm import sigterm_as_interrupt

WAIT_FOR_POOL = timedelta(days=1)  # generation can take longer than the default of ten minutes on GPUs
NOTHING_BEGUN = "Stopped before the run began."


def main(argv: Sequence[str] | None = None, prog: str = "sleep.py", flags: Mapping[str, str] | None = None) -> int:
    """Check a run and execute it: one night, or the unfinished nights of a chain.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments without the program's name; `sys.argv`'s if left out.
        prog (`str`, *optional*, defaults to `"sleep.py"`):
            What the help calls the program.
        flags (`Mapping[str, str]`, *optional*):
            Flags that the program takes out of `argv` itself, with their help.

    Returns:
        `int`: the exit code.
    """
    with sigterm_as_interrupt() as is_terminated:
        try:
            code = _run(argv, prog, flags)
        except KeyboardInterrupt:
            if not is_terminated():
                raise
            _print_error("Stopped. Run the same command again, with --resume if a night had begun.")
            code = STOPPED
    return TERMINATED if code == STOPPED and is_terminated() else code


def _run(argv: Sequence[str] | None, prog: str, flags: Mapping[str, str] | None) -> int:
    """Do what [`main`] says, and return the exit code."""
    show_warnings_visibly()
    try:
        config = parse(sys.argv[1:] if argv is None else argv, prog, flags)
        from sleep_trl.planning.chain import is_auto, is_finished, nights_of, unfinished
        from sleep_trl.planning.paths import check_paths

        nights = nights_of(config)
        check_reward_names(config)
        check_paths([night for night in nights if not (config.nights and is_finished(night.output_dir))])
        waiting = unfinished(nights) if config.nights else nights
        _init_processes(config)  # first import of torch and transformers
        if config.starts_ray or (_may_have_pool(config) and config.rollout.ray_address is None):
            from sleep_trl.distributed.ray import prepare

            prepare()  # before TRL imports what imports Ray
    except ValueError as error:
        _print_error(f"Error: {explain(error)}")
        return USER_ERROR
    except KeyboardInterrupt:
        _print_error(NOTHING_BEGUN)
        return STOPPED
    for night in nights[: len(nights) - len(waiting)]:
        _print_error(f"{night.output_dir} is finished, skipping.")
    if len(waiting) < len(nights):
        _write_missing_report(nights[len(nights) - len(waiting) - 1])
    while waiting:
        for night in waiting:
            if (code := _sleep(night, is_in_chain=bool(config.nights))) != DONE or config.dry_run:
                return code
        try:
            nights = nights_of(config)  # with auto there may be another
            waiting = unfinished(nights) if is_auto(config) else []
        except ValueError as error:
            _print_error(f"Error: {explain(error)}")
            return USER_ERROR
    if config.nights and _is_first_process():
        from sleep_trl.distributed.progress import echo
        from sleep_trl.evaluation.retention import describe_chain, render_chain
        from sleep_trl.runs.folder import RunFolder
        from sleep_trl.runs.ledger import read_ledger

        echo(render_chain(describe_chain(read_ledger(RunFolder(nights[-1].output_dir).ledger))))
    return DONE


def _sleep(config: RunConfig, is_in_chain: bool) -> int:
    """Check a night, run it, and return the exit code. No other process works on its folder meanwhile."""
    from sleep_trl.planning.begun import Changed, night_lock
    from sleep_trl.runs.lock import RunInUse

    if config.dry_run:
        return _sleep_alone(config, is_in_chain)
    try:
        with night_lock(config):
            return _sleep_alone(config, is_in_chain)
    except (RunInUse, Changed) as error:
        _print_error(f"Error: {error}")
        return TRY_AGAIN


def _sleep_alone(config: RunConfig, is_in_chain: bool) -> int:
    """Check a night, run it, and return the exit code."""
    if config.resume and not config.dry_run and _write_missing_report(config):
        return DONE
    try:
        from sleep_trl.models.gguf import local_checkpoint
        from sleep_trl.planning.inputs import RunInputs
        from sleep_trl.planning.preflight import preflight, render

        if not config.dry_run:
            for name in (config.model, *config.teacher_model):
                local_checkpoint(name)
        inputs = RunInputs(config)
        plan = preflight(inputs, check_trainer)
    except ValueError as error:
        _print_error(f"Error: {explain(error)}")
        return USER_ERROR
    except KeyboardInterrupt:
        _print_error(NOTHING_BEGUN)
        return STOPPED
    from sleep_trl.distributed.progress import echo

    if config.dry_run:
        echo(render(plan))
        return DONE
    for warning in plan.warnings:
        echo(warning, style="yellow")

    _check_processes()

    from sleep_trl.night.run import NothingUsable, run_night
    from sleep_trl.planning.begun import Changed
    from sleep_trl.planning.chain import quarantine
    from sleep_trl.planning.output_dir import disk_trouble
    from sleep_trl.rewards import RewardError
    from sleep_trl.runs.folder import RunFolder
    from sleep_trl.trainers.dreaming.from_config import dream
    from sleep_trl.trainers.knowledge_seeding.from_config import seed_expert, track

    try:
        results = run_night(inputs, seed_expert, dream)
        if _is_first_process():
            track(config, results)
        has_report = _is_first_process() and write_report_if_possible(config)
    except (ValueError, RewardError) as error:
        if sys.flags.dev_mode:
            raise
        _print_night_error(error)
        if isinstance(error, RewardError):
            _print_error("Correct the reward, then resume with the same command and --resume.")
        if isinstance(error, NothingUsable) and is_in_chain and _is_first_process():
            _print_error(f"The night was taken out of the chain; its files are in {quarantine(config.output_dir)}.")
        return USER_ERROR
    except KeyboardInterrupt:
        if RunFolder(config.output_dir).is_begun:
            _print_error(f"Stopped. Resume {config.output_dir} with the same command and --resume.")
        else:
            _print_error(NOTHING_BEGUN)
        return STOPPED
    except Changed:
        raise
    except Exception as error:
        if sys.flags.dev_mode or (trouble := disk_trouble(config.output_dir, error)) is None:
            raise
        _print_error(f"Error: {trouble}, then resume with the same command and --resume: finished phases are on disk.")
        return FAILURE
    show_outcome(config, results, has_report)
    return DONE


def _write_missing_report(config: RunConfig) -> bool:
    """Write the report of a finished night that was killed before it had one, and return whether it was missing."""
    from sleep_trl.runs.folder import RunFolder

    run = RunFolder(config.output_dir)
    if not (run.is_finished and config.report) or run.report.is_file():
        return False
    if _is_first_process():
        from sleep_trl.report import write_report

        try:
            _print_error(f"{config.output_dir} is finished; wrote its missing {write_report(config.output_dir).name}.")
        except ValueError as error:  # plotly is not installed, or a file is broken; the night itself is complete
            _print_error(f"{config.output_dir} is finished, but its report cannot be written: {error}")
    return True


def _init_processes(config: RunConfig) -> None:
    """Set up the process group where accelerate would not: without an accelerator each process would believe that it is
    alone, and with a pool the others have to wait for the first one, which drives it with its own deadlines."""
    from accelerate import PartialState
    from torch import accelerator

    from sleep_trl.distributed.zero3 import expect_no_gpu, is_deepspeed
    from sleep_trl.runs.host_memory import bound_caches

    options: dict[str, Any] = {"timeout": WAIT_FOR_POOL} if _may_have_pool(config) else {}
    if not accelerator.is_available():
        expect_no_gpu()  # before TRL imports DeepSpeed
        bound_caches()
        if "LOCAL_RANK" in os.environ:
            os.environ["ACCELERATE_USE_CPU"] = str(not is_deepspeed())  # else accelerate leaves DeepSpeed out
            os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # holds ninja
            options["cpu"] = True
    if options and "LOCAL_RANK" in os.environ:
        PartialState(**options)


def _may_have_pool(config: RunConfig) -> bool:
    """Whether several processes may share a pool of engines; which engine `auto` takes is known only later."""
    return config.rollout.engine == "ray" or (
        config.rollout.engine == "auto" and int(os.environ.get("WORLD_SIZE", 1)) > 1
    )


def _check_processes() -> None:
    """Check that the process group holds every process that was launched.

    Raises:
        `RuntimeError`: if a process does not know of the others.
    """
    from accelerate import PartialState

    launched = int(os.environ.get("WORLD_SIZE", 1))
    if (found := PartialState().num_processes) != launched:
        raise RuntimeError(
            f"{launched} processes were launched, but this one knows of {found}. Launch with "
            f"--config_file launch/accelerate/ddp.yaml."
        )


def _is_first_process() -> bool:
    """Whether this is the launched process that prints."""
    return _rank() == 0


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))


def _print_night_error(error: Exception) -> None:
    """Print an error raised during the night, on every process: it may concern only this one."""
    where = "" if _is_first_process() else f"Process {_rank()}: "
    message = f"{where}Error: {explain(error)}\nSet PYTHONDEVMODE=1 to see the traceback."
    print(visible(message), file=sys.stderr)


def _print_error(message: str) -> None:
    if _is_first_process():
        print(visible(message), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
