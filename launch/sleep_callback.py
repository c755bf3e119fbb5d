"""A night every N steps of an ordinary run of a Trainer, on the model that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sleep_trl.config import RunConfig
from sleep_trl.config.command_line import explain, nested, read_options
from sleep_trl.config.paths import with_paths
from sleep_trl.distributed.progress import echo
from sleep_trl.launch.checks import check_trainer
from sleep_trl.launch.nights_of_run import EXPERTS, NightsOfRun
from sleep_trl.launch.ordinary_run import check_model, check_run, lent
from sleep_trl.launch.outcome import show_outcome, write_report_if_possible
from sleep_trl.memory import Memory, MemorySpec, attach
from sleep_trl.night.run import NothingUsable, run_night
from sleep_trl.planning.begun import Changed, night_lock
from sleep_trl.planning.chain import quarantine, quarantined_nights
from sleep_trl.planning.live_inputs import LiveInputs
from sleep_trl.planning.preflight import preflight
from sleep_trl.runs.files import read_json
from sleep_trl.runs.folder import RunFolder, night_folder
from sleep_trl.runs.ledger import active_entries, read_ledger
from sleep_trl.trainers.knowledge_seeding.from_config import seed_expert
from sleep_trl.trainers.trackers import log_to_run, trackers_of_caller
from sleep_trl.wake.buffer import WakeBuffer

THE_MODEL = "the model that is trained"  # stands for `model` until there is one


class SleepCallback(TrainerCallback):
    """A [`~transformers.TrainerCallback`] that lets the model sleep every N optimizer steps of an ordinary run, such as
    one of `SFTTrainer`, `DPOTrainer` or `GRPOTrainer`.

    A night learns what is new in `memories` into one new expert, and measures and commits it, as a night of
    `launch/sleep.py` does. It works on the model and the tokenizer of the run. Afterwards the run goes on as it was: it
    trains the same parameters with the same optimizer, and its random numbers are those of a run without the callback.
    Checkpoints and `save_model` have the experts of the nights folded in. The figures of each night reach the run's
    trackers (`report_to`) as `eval/night_…`, and its log history.

    Nights are in `output_dir` of the configuration, by default a folder beside the run's, each a night of one chain. A
    run that is resumed from a checkpoint goes on with the night that was interrupted, and takes over those that were
    finished since.

    Args:
        every (`int`):
            Optimizer steps between two nights.
        config (`RunConfig`, `dict`, `str` or `Path`):
            The options of the nights, or a YAML file of them. `model` is that of the run and can be left out.

    Raises:
        `ValueError`: if an option is not allowed; when the Trainer is made, if nights cannot take place in such a run;
            and when training begins, if the first night could not be run.
    """

    def __init__(self, every: int, config: RunConfig | Mapping[str, Any] | str | Path) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}.")
        self.every = every
        self.config = read_config(config)
        check_config(self.config)
        self.nights = NightsOfRun(self.config.output_dir)
        self._has_begun = False

    # -- events of the run --------------------------------------------------------------------------------------------

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: object,
    ) -> None:
        self._set_up(args, model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: object,
    ) -> None:
        self._set_up(args, model)  # again: the callback may have been added after the Trainer was made
        memory = self._memory(model)
        if state.global_step == 0 and any(RunFolder(night).is_finished for night in self.nights.folders()):
            raise ValueError(
                f"{self.nights.folder} holds the nights of an earlier run. Resume it (resume_from_checkpoint), move "
                f"that folder away, or give SleepCallback another output_dir."
            )
        done = self.nights.done(state.global_step)
        expected = self.nights.experts_of(done[-1]) if done else []
        if {record.index for record in expected} != set(memory.records) - set(self.nights.own):
            raise ValueError(
                f"After step {state.global_step} the model should have the experts of {len(done)} nights in "
                f"{self.nights.folder}, but it has others. Give the checkpoint that this run wrote, and the "
                f"callback to the Trainer's constructor."
            )
        with lent(model, self.nights.own):
            inputs = self._inputs(len(done) + 1, args, memory, processing_class)
            if inputs is not None and not RunFolder(inputs.config.output_dir).is_begun:
                preflight(inputs, check_trainer)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: object,
    ) -> None:
        if state.global_step % self.every == 0:
            memory = self._memory(model)
            with lent(model, self.nights.own):
                results = self._sleep(state.global_step, args, memory, processing_class)
            if results is not None:
                log_to_run(trackers_of_caller(), args, state, control, results)

    def _set_up(self, args: TrainingArguments, model: Any) -> None:
        check_run(args)
        check_model(model)
        if "output_dir" not in self.config.model_fields_set:
            # Beside the run's folder, which goes to the Hub.
            self.nights.folder = Path(f"{Path(str(args.output_dir))}-nights")
        folder = self.nights.folder
        if args.push_to_hub and folder.absolute().is_relative_to(Path(str(args.output_dir)).absolute()):
            raise ValueError(
                f"output_dir: the nights in {folder} hold texts of memories, and push_to_hub uploads all of "
                f"{args.output_dir}. Give SleepCallback another output_dir, or leave it out."
            )
        model.load_state_dict = partial(self._load_state_dict, model)

    # -- a night ------------------------------------------------------------------------------------------------------

    def _sleep(
        self, step: int, args: TrainingArguments, memory: Memory, processing_class: Any
    ) -> dict[str, Any] | None:
        """Run the night after a step, or take over a finished one, and return its results, if there is one."""
        done = self.nights.done(step - 1)
        folder = night_folder(self.nights.folder, len(done) + 1)
        last = done[-1] if done else None
        self.nights.adopt(memory, last)  # an entry may have been dropped
        inputs = self._inputs(len(done) + 1, args, memory, processing_class)
        if folder.exists() and not self.nights.is_same_night(folder, step, memory, inputs):
            self.nights.discard_from(len(done) + 1)
            inputs = self._inputs(len(done) + 1, args, memory, processing_class)
        if RunFolder(folder).is_finished:
            echo(f"{folder} is finished; its expert is taken over.")
            self.nights.adopt(memory, folder)
            return dict(read_json(RunFolder(folder).results))
        if inputs is None:
            echo(f"No night after step {step}: {self.config.memories} has nothing new.")
            return None
        if (count := len(memory.records)) >= memory.spec.max_experts:
            echo(
                f"No night after step {step}: all {count} experts are taken, and {len(inputs.available)} memories wait."
                f" Give memory.max_experts of {count + 1} or more.",
                style="yellow",
            )
            return None
        echo(f"After step {step}, a night begins: {folder}")
        try:
            for warning in preflight(inputs, check_trainer).warnings:
                echo(warning, style="yellow")
            with night_lock(inputs.config):
                self.nights.record_step(folder, step)
                results = run_night(inputs, seed_expert, memory=memory)
            show_outcome(inputs.config, results, write_report_if_possible(inputs.config))
            return results
        except NothingUsable as error:
            echo(f"This night is left out, and its files are in {quarantine(folder)}: {error}", style="yellow")
            self.nights.adopt(memory, last)
        except Changed as error:
            echo(f"This night is left out: {error}", style="yellow")
            self.nights.adopt(memory, last)
        return None

    def _inputs(self, number: int, args: TrainingArguments, memory: Memory, processing_class: Any) -> LiveInputs | None:
        """Return the inputs of a night, or `None` if there is nothing new to learn."""
        folder = night_folder(self.nights.folder, number)
        before = night_folder(self.nights.folder, number - 1) if number > 1 else None
        config = self._config_of(folder, before, args, memory)
        buffer = config.source.buffer
        if buffer is not None and buffer.is_file() and not RunFolder(folder).is_begun:
            with WakeBuffer(buffer) as opened:
                if not opened.memories("new"):
                    return None
        known = set()
        if before is not None:
            entries = active_entries(read_ledger(RunFolder(before).ledger))
            known = {source.sha256 for entry in entries for source in entry.sources}
        for night in quarantined_nights(self.nights.folder):  # nothing usable was written about them
            if (began := RunFolder(night).began).is_file():
                known.update(read_json(began)["memories"])
        inputs = LiveInputs(config, memory.model, _tokenizer(processing_class), known)
        return inputs if inputs.available else None

    def _config_of(self, folder: Path, before: Path | None, args: TrainingArguments, memory: Memory) -> RunConfig:
        model, config, spec = memory.model, self.config, memory.spec
        name = str(model.dtype).removeprefix("torch.")
        if config.dtype not in ("auto", name):
            raise ValueError(f"dtype: {config.dtype} was given, but the model that is trained is {name}. Leave it out.")
        for option in ("width", "max_experts"):
            given, fixed = getattr(config.memory, option), getattr(spec, option)
            if option in config.memory.model_fields_set and given != fixed:
                raise ValueError(
                    f"memory.{option}: {given} was given, but the memory of this model has {fixed}. Leave it out, or "
                    f"attach the memory with MemorySpec({option}={given})."
                )
        extra = {"use_cpu": True} if args.use_cpu and torch.accelerator.is_available() else {}
        return config.model_copy(
            update={
                "model": model.config._name_or_path or type(model).__name__,
                "output_dir": folder,
                "continue_from": before,
                "resume": RunFolder(folder).is_begun,
                "dtype": name,
                "memory": config.memory.model_copy(update={"width": spec.width, "max_experts": spec.max_experts}),
                "rollout": config.rollout.model_copy(update={"engine": "transformers"}),
                "seeding": config.seeding.model_copy(update={"extra": extra | config.seeding.extra}),
            }
        )

    # -- the experts --------------------------------------------------------------------------------------------------

    def _memory(self, model: PreTrainedModel) -> Memory:
        """Return the memory of the model, attached if it had none. The run goes on training what it trained."""
        memory = Memory.of(model)
        if memory is None:
            trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
            size = self.config.memory
            memory = attach(model, MemorySpec(size.width, size.max_experts, seed=self.config.seed))
            for parameter, is_trained in trained:
                parameter.requires_grad_(is_trained)
        if not self._has_begun:
            self.nights.own, self._has_begun = tuple(memory.records), True
        return memory

    def _load_state_dict(self, model: PreTrainedModel, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint of the run: the model gets the experts of the nights that are folded into it."""
        memory = self._memory(model)
        trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        is_folded, night = self.nights.night_in(memory, state_dict)
        if is_folded:
            self.nights.adopt(memory, night)
            experts = {name: value for name, value in model.state_dict().items() if EXPERTS in name}
            state_dict = experts | dict(state_dict)
        result = type(model).load_state_dict(model, state_dict, *args, **kwargs)
        if is_folded:
            self.nights.adopt(memory, night)  # in float32, whatever they were folded in
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)
        return result


def read_config(config: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    """Return the options of the nights.

    Raises:
        `ValueError`: if an option is unknown, or a value is not allowed.
    """
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, Mapping):
        options = with_paths(nested(config, "config"))
    else:
        options = read_options(Path(config).expanduser(), "config")
    try:
        return RunConfig.model_validate({"model": THE_MODEL, **options})
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def check_config(config: RunConfig) -> None:
    """Raise `ValueError` for options that nights in the midst of a run cannot have."""
    reasons = {
        "continue_from": (config.continue_from, "each night continues the one before"),
        "nights": (config.nights, "each night learns what is new in memories: give a folder, a file or a wake buffer"),
        "memories": (config.source.forget, "remove entries with `sleep-trl night`"),
        "resume": (config.resume, "an interrupted night is resumed with its run"),
        "dry_run": (config.dry_run, "the first night is checked when training begins"),
        "dream.rounds": (config.dream.rounds, "dream in nights of `sleep-trl night`"),
        "levels": (
            config.levels.chunks or config.levels.when_full != "stop",
            "consolidate in nights of `sleep-trl night`",
        ),
        "memory.routing": (config.memory.routing != "dense", "routed experts do not fold into the run's checkpoints"),
        "rollout.engine": (
            config.rollout.engine not in ("auto", "transformers"),
            "the model that is trained generates itself",
        ),
        "seeding.extra": ("report_to" in config.seeding.extra, "report_to would end the run's own trackers"),
    }
    for option, (is_given, reason) in reasons.items():
        if is_given:
            raise ValueError(f"{option} is not for SleepCallback: {reason}. Leave it out.")


def _tokenizer(processing_class: Any) -> PreTrainedTokenizerBase:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"SleepCallback needs the model's tokenizer, and the Trainer has a {type(tokenizer).__name__}. Give it "
            f"processing_class=AutoTokenizer.from_pretrained(...)."
        )
    return tokenizer
