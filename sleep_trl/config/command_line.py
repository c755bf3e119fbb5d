"""The command line: a YAML file, dotted overrides on top, one `RunConfig` out. Imports no torch.

The command line overrides the YAML file, which overrides the defaults. Environment variables are not read. Paths are
relative to the working directory; in a YAML file, a relative path of something to read that is next to that file comes
first. `~` is the home directory.
"""

from __future__ import annotations

import re
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from .. import __version__
from . import RunConfig
from .grpo_file import DECIDED, OPTIONS, as_options, beside, check_is_no_grpo_file, is_grpo_file
from .option_help import help_text, kind_of_value
from .paths import with_paths
from .reward import RewardSpec
from .run import AUTO
from .yaml_file import read_yaml

USAGE = "{} [--config FILE.yaml] --model MODEL --memories MEMORIES [--SECTION.OPTION VALUE ...]"
EPILOG = """\
Lists and objects are JSON, as in --rewards '["imitation", {"name": "my.py:f", "weight": 0.2}]'.
`null` means none. In a YAML file, sections are mappings or parts of dotted names, and files next to it are found; the
command line overrides it."""

MEMORY_OPTIONS = ("memories", "nights")
"""Either of them on the command line replaces both in the file."""


class _CommandLine(BaseSettings, RunConfig):
    """`RunConfig` in the form that pydantic-settings requires. Only its fields are used."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"Command line: {message}. See --help.")


def parse(argv: Sequence[str], prog: str = "sleep.py", flags: Mapping[str, str] | None = None) -> RunConfig:
    """Read a run's configuration from command line arguments.

    Args:
        argv (`Sequence[str]`):
            Arguments without the program's name: `--config FILE`, dotted options, `--version`.
        prog (`str`, *optional*, defaults to `"sleep.py"`):
            What the help calls the program.
        flags (`Mapping[str, str]`, *optional*):
            Flags that the program takes out of `argv` itself, with their help.

    Returns:
        `RunConfig`: validated; `model_fields_set` holds the options that were given.

    Raises:
        `ValueError`: if an argument or the file cannot be read, an option is unknown, or a value is not allowed.
            [`explain`] turns it into a message.
    """
    parser = _Parser(
        prog=prog,
        usage=USAGE.format(prog),
        description=RunConfig.__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version())
    parser.add_argument("--config", metavar="PATH", help="YAML file of options; the command line overrides it.")
    for flag, text in (flags or {}).items():
        parser.add_argument(flag, action="store_true", default=SUPPRESS, help=text)
    source: CliSettingsSource[Any] = CliSettingsSource(
        _CommandLine,
        root_parser=parser,
        cli_parse_none_str="null",
        cli_implicit_flags=True,
        add_argument_method=_add_argument,
    )
    words, grpo_file = _without_grpo_file([with_underscores(word) for word in argv])
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        raise ValueError(_unknown_argument(unknown[0]))
    from_file = read_options(Path(arguments.config).expanduser()) if arguments.config else {}
    given = with_paths(_given(source, arguments))
    if grpo_file is not None:
        from_file = _merged(_read_grpo_file(beside(grpo_file, None)), from_file)
    if not given.keys().isdisjoint(MEMORY_OPTIONS):
        replaced = ("nights",) if tuple(given.get("nights", ())) == AUTO else MEMORY_OPTIONS
        from_file = {name: value for name, value in from_file.items() if name not in replaced}
    try:
        return RunConfig.model_validate(_merged(from_file, given))
    except ValidationError as error:
        if any(part["type"] == "extra_forbidden" and _has(from_file, part["loc"]) for part in error.errors()):
            error.add_note(f"--config: {arguments.config}: ")
        raise


def with_underscores(word: str) -> str:
    """Return a word of the command line with an option's name spelled with underscores: `--output-dir` is
    `--output_dir`, and `--no_report` is `--no-report`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    prefix = "--no-" if name.startswith(("--no-", "--no_")) else "--"
    return f"{prefix}{name[len(prefix) :].replace('-', '_')}{equals}{value}"


def read_options(path: Path, option: str = "--config") -> dict[str, Any]:
    """Read the options in a YAML file, in which relative paths may be those of files next to it.

    Args:
        path (`Path`):
            The file.
        option (`str`, *optional*, defaults to `"--config"`):
            The option that names it, for messages.

    Raises:
        `ValueError`: as [`read_yaml`], also for the file that `seeding.extra` may name, as [`nested`], and if the file
            holds arguments of TRL.
    """
    given = read_yaml(path, option)
    check_is_no_grpo_file(given, str(path), RunConfig.model_fields)
    options: dict[str, Any] = with_paths(nested(given, f"{option}: {path}"), path.parent)
    seeding = options.get("seeding")
    if not isinstance(seeding, dict) or not isinstance(extra := seeding.get("extra"), str) or not is_grpo_file(extra):
        return options
    own = options | {"seeding": {name: value for name, value in seeding.items() if name != "extra"}}
    return _merged(_read_grpo_file(beside(extra, path.parent)), own)


def nested(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return options in which those of sections may have dotted names, as on the command line: `seeding.steps: 10` is
    `seeding: {steps: 10}`.

    Args:
        given (`Mapping[str, Any]`):
            The options.
        place (`str`):
            Where they stand, for messages.

    Raises:
        `ValueError`: if an option is given in both forms.
    """
    known = {name for name, _ in options() if "." in name}
    result = {name: value for name, value in given.items() if name not in known}
    for name in [name for name in given if name in known]:
        section, _, option = name.partition(".")
        own = result.get(section)
        if own is not None and not isinstance(own, Mapping):
            raise ValueError(f"{place} has both {name} and {section}, which is no mapping. Give one of them.")
        if option in (own or {}):
            raise ValueError(f"{place} has {name} twice, once with its dotted name. Give it once.")
        result[section] = {**(own or {}), option: given[name]}
    return result


def _read_grpo_file(path: Path) -> dict[str, Any]:
    return as_options(read_yaml(path, "--seeding.extra"), str(path))


def _without_grpo_file(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Take a file that `--seeding.extra` names out of the words of a command line."""
    kept, left = list[str](), iter(words)
    file: str | None = None
    for word in left:
        name, equals, value = word.partition("=")
        if name != "--seeding.extra":
            kept.append(word)
            continue
        value = value if equals else next(left, "")
        if is_grpo_file(value):
            file = value
        else:
            kept.append(f"{name}={value}")
    return kept, file


def options(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every option with its dotted name, including those of sections."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from options(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def explain(error: Exception) -> str:
    """Turn a user error into a message: what was given, what is allowed, what to do.

    Args:
        error (`ValueError`):
            From [`parse`] or from preflight; each part of a pydantic `ValidationError` is a line.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    parts = error.errors(include_url=False)
    inner = {part["loc"][:depth] for part in parts for depth in range(1, len(part["loc"]))}
    parts = [part for part in parts if part["loc"] not in inner]
    parts.sort(key=lambda part: part["type"] != "extra_forbidden")  # a misspelled option is why another is missing
    file = "".join(getattr(error, "__notes__", ()))
    return "\n".join(_explain_part(part, file) for part in parts)


def _explain_part(part: Mapping[str, Any], file: str) -> str:
    """Return one line. An option that there is not stands in `file`: on the command line it is found before."""
    name, message = ".".join(str(key) for key in part["loc"]), str(part["msg"])
    if part["type"] == "missing":
        return f"{name} is missing. Give it with --{name} or in the config file."
    if part["type"] == "extra_forbidden":
        return f"{file}{name} is not an option. {_did_you_mean(name)}See --help."
    if part["type"] == "value_error":
        message = message.removeprefix("Value error, ").rstrip(".")
        return f"{name}: {message}." if name else f"{message}."
    given = repr(part["input"])
    given = given if len(given) <= 80 else f"{given[:77]}..."
    message = message.replace("Input should be", "it must be").partition(", unable to parse")[0]
    message = message[:1].lower() + message[1:]
    return f"{name}: {given} was given, but {message}. Change it (--{name} or the config file)."


def _unknown_argument(argument: str) -> str:
    if argument.lower() in ("true", "false"):
        return f"Command line: {argument!r} is no option's value. A switch takes none: give --NAME or --no-NAME."
    if not argument.startswith("-"):
        return f"Command line: {argument!r} is not an option, nor the value of one. See --help."
    name = argument.lstrip("-").partition("=")[0]
    return f"Command line: --{name} is not an option. {_did_you_mean(name, '--')}See --help."


def _did_you_mean(name: str, dashes: str = "") -> str:
    """Return a suggestion: an option with the same last part, or one with a similar spelling."""
    names = [option for option, _ in options()] + list(RunConfig.model_fields)
    names += ["config"] if dashes else []
    stem, _, last = name.rpartition(".")
    if stem.startswith("rewards."):
        names = [f"{stem}.{option}" for option in RewardSpec.model_fields]
    same_last = [option for option in names if option.rpartition(".")[2] == last]
    of_trl = [own for own in ((OPTIONS | DECIDED).get(name),) if own]
    close = same_last or of_trl or get_close_matches(name, names, n=1, cutoff=0.6)
    close = close or [o for o in names if get_close_matches(last, [o.rpartition(".")[2]], cutoff=0.7)]
    return f"Did you mean {' or '.join(dashes + option for option in close[:2])}? " if close else ""


def _given(source: CliSettingsSource[Any], arguments: Namespace) -> dict[str, Any]:
    """Return the options given on the command line, nested as in the YAML file."""
    flat = {key: value for key, value in vars(arguments).items() if key != "config"}
    try:
        return source(parsed_args=flat)()
    except SettingsError as error:  # 'Parsing error encountered for NAME: …', 'error parsing value for field "NAME" …'
        found = re.search(r'(?:encountered for |field ")([\w.]+)', str(error))
        name = f"--{found[1]}" if found else "an option"
        reason = str(error.__context__ or "it is no JSON").partition(": line ")[0]
        raise ValueError(
            f"Command line: the value of {name} cannot be read: {reason}. Write lists and objects as JSON, names and "
            f"texts in double quotes."
        ) from None


def _has(given: Any, keys: Sequence[object]) -> bool:
    """Whether nested mappings and lists have a value under these keys."""
    for key in keys:
        try:
            given = given[key]
        except (LookupError, TypeError):
            return False
    return True


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings, the second one overriding; lists and single values are replaced."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _merged(below, value)
        elif below is None or not isinstance(value, dict):
            merged[key] = value  # a section that is not a mapping is kept for validation to reject
    return merged


# -- help ------------------------------------------------------------------------------------------


def _add_argument(group: Any, *names: str, **settings: Any) -> Any:
    """Add an option, with its docstring, range and default as help."""
    field = dict(options()).get(settings["dest"])
    if field is None:  # a whole section as JSON: accepted, but not advertised
        settings["help"] = SUPPRESS
    else:
        settings["help"] = help_text(field).replace("%", "%%")
        if settings.get("metavar"):
            settings["metavar"] = kind_of_value(field.annotation)
    return ArgumentParser.add_argument(group, *names, **settings)


def version() -> str:
    return f"sleep-trl {__version__}"
