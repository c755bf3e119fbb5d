"""Rewards by name: registered ones, functions of a module, functions in a file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from sleep_trl.config.reward import RewardSpec
from sleep_trl.rewards.factories import Factories, check_params, make_from
from sleep_trl.rewards.guard import GuardedReward, guard, unwrap
from sleep_trl.rewards.reward_model import RewardModel

logger = logging.getLogger(__name__)

REWARDS = Factories(
    "reward",
    "Your own is named package.module:function or path/to/file.py:function, a reward model org/name or ./folder.",
)
reward = REWARDS.register
"""Register a factory of rewards: its signature is the signature of `params`, and it returns a `RewardFunc`. It must be
cheap, since it is called to check a configuration: a model is loaded in a method `load()` of the reward it returns."""

BATCH = ("prompts", "completions", "completion_ids")
FROM_TRL = (*BATCH, "trainer_state", "log_extra", "log_metric", "environments")


def resolve(
    spec: RewardSpec | str | Mapping[str, Any],
    *,
    columns: Callable[[], Collection[str]] = tuple,
    **defaults: Any,
) -> GuardedReward:
    """Turn the name of a reward into a guarded function for TRL, without loading a model.

    Args:
        spec (`RewardSpec`, `str` or `Mapping`):
            Which reward, or what validates as a `RewardSpec`. Only what is named is imported; naming a module or a
            file runs its code.
        columns (`Callable`, *optional*):
            Returns the columns of the dataset. They are no parameters to set, so that a message does not offer them.
        **defaults:
            Values for parameters that a *registered* reward takes and the spec does not set, such as `gamma` or
            `eos_token_ids`. Those that it does not take are left out.

    Returns:
        `GuardedReward`: to be called by TRL. Its `load()` loads what the reward needs, otherwise the first call does.

    Raises:
        `ValueError`: if there is no such reward, module, file or function, TRL cannot call it, or a parameter is
            unknown, missing or out of range.
    """
    spec = RewardSpec.model_validate(spec)
    if spec.is_model:
        model = make_from(partial(RewardModel, spec.name), spec.params, f"Reward {spec.name!r}")
        return guard(model, name=Path(spec.name).name, timeout_s=spec.timeout_s, on_error=spec.on_error)
    if ":" in spec.name:
        function = import_function(spec.name)
        what = f"Reward {spec.name!r}"
        if makes_reward(function):
            func = make_from(function, spec.params, what)
            _check_signature(func, f"What {spec.name!r} returns")
        else:
            _check_signature(function, what)
            check_params(function, spec.params, what, FROM_TRL, columns)
            func = partial(function, **spec.params) if spec.params else function
        return guard(func, timeout_s=spec.timeout_s, on_error=spec.on_error)
    made = REWARDS.make(spec.name, spec.params, defaults)
    return guard(made, name=spec.name, timeout_s=spec.timeout_s, on_error=spec.on_error)


def check(
    spec: RewardSpec | str | Mapping[str, Any],
    columns: Collection[str] | None = None,
    more_columns: Callable[[], Collection[str]] = tuple,
    **defaults: Any,
) -> None:
    """Raise `ValueError` if a reward cannot be made or called, or its model cannot be read. Loads no weights.

    Args:
        spec (`RewardSpec`, `str` or `Mapping`):
            Which reward, as for [`resolve`].
        columns (`Collection[str]`, *optional*):
            Columns of the dataset that it will be called with.
        more_columns (`Callable`, *optional*):
            Returns further ones; called if those are not enough.
        **defaults:
            As for [`resolve`].
    """
    guarded = resolve(spec, columns=lambda: (*(columns or ()), *more_columns()), **defaults)
    guarded.check()
    _check_installed(guarded)
    if columns is None or not guarded.missing({*columns, *FROM_TRL}):
        return
    known = (*columns, *more_columns())
    if missing := guarded.missing({*known, *FROM_TRL}):
        raise ValueError(
            f"Reward {guarded.__name__!r} needs {', '.join(missing)}, which the rows do not have; they have "
            f"{', '.join(known)}. Add it as a key to the memories, set it in params, or remove the reward."
        )


def _check_installed(guarded: GuardedReward) -> None:
    """Raise if a reward of TRL needs a package that is not installed. It says so only when it is called, so it is, with
    an empty batch."""
    func = unwrap(guarded.func)
    if not getattr(func, "__module__", "").startswith("trl.rewards"):
        return
    empty: dict[str, list[Any]] = {name: [] for name in (*BATCH, *guarded.missing(BATCH))}
    try:
        guarded.func(**empty)
    except ImportError as error:
        raise ValueError(
            f"Reward {guarded.__name__!r} needs a package that is not installed: {error}. Install it (pip install "
            f"'math-verify[antlr4_13_2]' for math_verify), or remove the reward."
        ) from None
    except Exception:
        logger.debug("Reward %r does not score an empty batch", guarded.__name__, exc_info=True)


def makes_reward(function: Any) -> bool:
    """Return whether a function makes a reward instead of being one: it takes nothing of the batch and its annotation
    says that it returns a function, as those of `trl.rewards` do."""
    if not inspect.isfunction(function):
        return False
    signature = inspect.signature(function)
    returned = str(signature.return_annotation)
    return signature.parameters.keys().isdisjoint(BATCH) and ("Callable" in returned or "RewardFunc" in returned)


def import_function(name: str) -> Callable[..., Any]:
    """Import the function that `package.module:function` or `path/to/file.py:function` names. Runs the module's code.

    Raises:
        `ValueError`: if there is no such module, file or function, or it does not import.
    """
    place, _, attribute = name.rpartition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    if not hasattr(module, attribute):
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise ValueError(f"{place} has no function {attribute!r}; its functions: {', '.join(own) or 'none'}.")
    function: Callable[..., Any] = getattr(module, attribute)
    return function


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        remedy = "It must be installed or on PYTHONPATH; a file is named path/to/file.py:function."
        raise ValueError(f"Module {name} does not import: {_explain(error, remedy)}") from error


def _import_file(path: Path) -> ModuleType:
    """Import a file under a unique name, so that two files with the same name do not collide."""
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"{path} does not exist (looked for from {Path.cwd()}).")
    path = path.resolve()
    name = f"sleep_trl_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise  # Ctrl-C
        remedy = "Its folder is not on the path: what it imports must be installed or on PYTHONPATH."
        raise ValueError(f"{path} does not import: {_explain(error, remedy, path)}") from error
    return module


def _explain(error: BaseException, remedy: str, path: Path | None = None) -> str:
    """Return why a module does not import, in which line, and what to do about an error of importing."""
    reason = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        file, line = error.filename, error.lineno
        reason = f"{type(error).__name__}: {error.msg}"  # without the name of the file
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
        file, line = (frames[-1].filename, frames[-1].lineno) if frames else (None, None)
    of = f" of {file}" if file and file != str(path) else ""
    where = f" (line {line}{of})" if line else ""
    return f"{reason}{where}. {remedy if isinstance(error, ImportError) else 'Correct it.'}"


def _check_signature(function: Any, what: str) -> None:
    """Raise unless TRL can call it: with the batch and all columns, by keyword."""
    form = (
        "def f(prompts, completions, completion_ids, **columns) -> list[float | None]. A function that makes a reward "
        "is annotated with what it returns, -> Callable, and gets params"
    )
    if not callable(function) or inspect.isclass(function):
        kind = "a class" if inspect.isclass(function) else f"a {type(function).__name__}"
        raise ValueError(f"{what} is {kind}; name a function of the form: {form}.")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise ValueError(f"{what} has no signature to check; write: {form}.") from None
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(
            f"{what} does not take **kwargs, and TRL passes every column of the dataset and more; write: {form}."
        )
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise ValueError(f"{what} needs a positional argument, and TRL passes keywords; write: {form}.")
    if not any(p.name in BATCH for p in parameters):
        raise ValueError(f"{what} takes none of {', '.join(BATCH)}; write: {form}.")
