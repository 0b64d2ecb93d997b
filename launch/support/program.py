"""The start of every program: YAML and command line in, one checked dataclass out.

Hydra composes the settings over a schema made from our dataclasses, so an unknown or mistyped key
stops the program at once. The program's `main` gets the frozen dataclass, whose `__post_init__` has
checked the values.

Source: Hydra's structured configs (https://hydra.cc).
"""

import dataclasses
import errno
import functools
import logging
import os
import re
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ernie_vilg.config.exit_codes import ExitCode, write_ending
from ernie_vilg.config.launch import DeviceError, Launch, RendezvousError
from ernie_vilg.config.schema import declared, source_of
from ernie_vilg.errors import InputError
from launch.support.environment import (
    ending_file,
    prepare_process,
    read_launch,
    require_one_process,
)
from launch.support.followed import follow_tokenizers
from launch.support.help import help_text
from launch.support.overrides import hydra_overrides, in_optional_sections, known_settings
from launch.support.places import CONF_FOLDER

_ADVICE = re.compile(
    r"To append to your config|object_type=|reference_type=|See https?:|Config search|provider="
)
"""Lines in errors of Hydra and OmegaConf that do not help at a command line."""
_HYDRAS_GROUPS = (
    "launcher",
    "sweeper",
    "output",
    "help",
    "hydra_help",
    "hydra_logging",
    "job_logging",
)
"""Groups of Hydra's own command line, which we do not use: a quarter of the time to compose."""

_MULTIRUN = ("--multirun", "-m")
"""Hydra's names of the option that runs a sweep."""

_EXPERIMENT_GROUPS = ("experiment", "image_tokenizer")
"""Groups of conf/ whose file is the experiment that a run belongs to."""

Config = TypeVar("Config")

logger = logging.getLogger(__name__)


def program(
    name: str, schema: type[Config], *, has_ranks: bool = False
) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Turn `main(config)` into a program that reads `conf/<name>.yaml` and the command line.

    Args:
        name: the program's configuration file, without `.yaml`. The file's defaults list
            starts with `<name>_schema`.
        schema: the dataclass that `main` takes.
        has_ranks: whether launchers start several processes of the program, one of which, the
            leader, logs. Otherwise a launcher that starts several processes is refused, since all
            of them would write the same files.

    Returns:
        a decorator. The decorated `main` takes no arguments; a bad setting prints one message and
        exits with code 2 before anything starts.
    """

    def decorate(main: Callable[[Config], None]) -> Callable[[], None]:
        run = functools.partial(_run, name, schema, main, has_ranks=has_ranks)
        return functools.wraps(main)(run)

    return decorate


def _run(
    name: str, schema: type[Config], main: Callable[[Config], None], *, has_ranks: bool
) -> None:
    """Run a program with the options of its command line; exit when it fails."""
    # The deepspeed launcher puts --local_rank=K first.
    options = [option for option in sys.argv[1:] if not option.startswith("--local_rank")]
    launch = Launch(rank=0, local_rank=0, world_size=1)
    try:
        prepare_process()
        if "--help" in options or "-h" in options:
            _show(help_text(name, schema, sys.modules[main.__module__].__doc__ or ""))
            return
        if has_ranks:
            launch = read_launch()
        else:
            require_one_process(name)
        _start_log(launch)
        if any(option in _MULTIRUN for option in options):
            sys.exit(_sweep(name, schema, options, has_ranks=has_ranks))
        settings = _without_cfg(options)
        if settings != options:
            _show(OmegaConf.to_yaml(compose(name, schema, settings)))
            return
        composed = compose(name, schema, options)
        for sentence in follow_tokenizers(composed, schema):
            logger.info("%s", sentence)
        main(to_dataclass(composed, schema))
    except KeyboardInterrupt:
        if has_ranks:
            raise
        print(f"{name}: interrupted", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # to end by the signal, as shells expect
        signal.raise_signal(signal.SIGINT)
    except Exception as error:
        sys.exit(_report(name, launch, error))


def _show(text: str) -> None:
    """Print a text for a person, who may end it early, as `| head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  Python flushes it at the end


def _without_cfg(options: list[str]) -> list[str]:
    """Return the options of a command line without --cfg job."""
    for at, option in enumerate(options):
        if options[at : at + 2] == ["--cfg", "job"]:
            return options[:at] + options[at + 2 :]
        if option == "--cfg=job":
            return options[:at] + options[at + 1 :]
    return options


def _sweep(name: str, schema: type, options: list[str], *, has_ranks: bool) -> ExitCode:
    # Imported here: it composes settings with this module.
    from launch.support.sweep_run import run_sweep

    single = [option for option in options if option not in _MULTIRUN]
    return run_sweep(name, schema, single, has_ranks=has_ranks)


def _start_log(launch: Launch) -> None:
    logging.basicConfig(  # ranks other than the leader log warnings only
        level=logging.INFO if launch.is_leader else logging.WARNING,
        format="%(asctime)s %(message)s",
        force=True,
    )


def _report(name: str, launch: Launch, error: Exception) -> ExitCode:
    """Print why a program failed; return its exit code."""
    message = f"{name}: {_message(error)}"
    if isinstance(error, RendezvousError):
        # Once per machine: the leader may not know. A missing GPU is this rank's alone.
        if launch.local_rank == 0 or isinstance(error, DeviceError):
            print(message, file=sys.stderr)
        return ExitCode.FAILED
    if isinstance(error, InputError | OmegaConfBaseException):
        if launch.is_leader:
            print(message, file=sys.stderr)
        write_ending(ending_file(), ExitCode.BAD_SETTINGS, message)
        return ExitCode.BAD_SETTINGS
    traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        print(f"{name}: {error}: free space, and type the same command again", file=sys.stderr)
    return ExitCode.FAILED


def compose(name: str, schema: type, options: Sequence[str]) -> DictConfig:
    """Lay the options of a command line over `conf/<name>.yaml` and the schema.

    Raises:
        InputError: an option names no setting, or gives one a value of another type.
    """
    if any("\0" in option for option in options):
        raise InputError("an option of the command line has a null character: leave it out")
    GlobalHydra.instance().clear()
    overrides = [
        *hydra_overrides(options, schema),
        *(f"~hydra/{group}" for group in _HYDRAS_GROUPS),
    ]
    try:
        with (
            _registered(name, schema),
            hydra.initialize_config_dir(config_dir=str(CONF_FOLDER), version_base=None),
        ):
            composed = hydra.compose(config_name=name, overrides=overrides)
        return _named_after_experiment(composed, options)
    except OverrideParseException as error:
        raise InputError(
            f"{error.override}: cannot be read ({_message(error)}): close every bracket, and quote "
            "a text that has brackets, commas or colons"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_message(error)) from error
    except AssertionError as error:  # OmegaConf raises nothing more specific
        suspects = in_optional_sections(options, schema)
        if not suspects:
            raise
        raise InputError(
            f"{' '.join(suspects)}: this section is null and has no keys: choose its file first, "
            "such as gpu=h100-80gb or cluster=slurm, or leave this out"
        ) from error


def _named_after_experiment(composed: DictConfig, options: Sequence[str]) -> DictConfig:
    """Fill in `tracking.experiment`, where it is null, with the file that the options choose."""
    if OmegaConf.select(composed, "tracking.experiment", default="") is None:
        for option in options:
            key, _, value = option.partition("=")
            if key in _EXPERIMENT_GROUPS and value:
                composed.tracking.experiment = value.strip("'\"")
    return composed


def _message(error: BaseException) -> str:
    """Return an error's message; Hydra's also with its cause, and without its advice."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return str(error)
    lines = [
        line.strip() for each in (error, error.__cause__) if each for line in f"{each}".split("\n")
    ]
    lines = [line for line in lines if not _ADVICE.match(line)]
    for each in (error, error.__cause__, error.__context__):
        section = getattr(each, "object_type", None)
        if isinstance(each, ConfigKeyError | ConfigAttributeError) and isinstance(section, type):
            lines.append(known_settings(section))
    return "; ".join(dict.fromkeys(line for line in lines if line))


@contextmanager
def _registered(name: str, schema: type) -> Iterator[None]:
    """Register `<name>_schema` for Hydra's defaults lists, for the block only.

    Hydra copies the whole store whenever it composes: with the schemas of all programs in it, that
    is a quarter of the time.
    """
    store = ConfigStore.instance()
    store.store(name=f"{name}_schema", node=_node(schema))
    try:
        yield
    finally:
        del store.repo[f"{name}_schema.yaml"]


@functools.cache
def _node(schema: type) -> DictConfig:
    """Return OmegaConf's node of a schema; Hydra copies what it loads from its store."""
    return OmegaConf.structured(_mutable_twin(schema))


def to_dataclass(composed: DictConfig, schema: type[Config]) -> Config:
    """Turn Hydra's composed settings into the frozen dataclass, which checks them.

    Raises:
        InputError: a check in a `__post_init__` failed.
        OmegaConfBaseException: a required key has no value.
    """
    return typing.cast(Config, _freeze(OmegaConf.to_object(composed), schema))


@functools.cache
def _mutable_twin(schema: type) -> type:
    """Return the same dataclass without `frozen` and checks; numbers that follow may be null.

    OmegaConf makes the node of a frozen dataclass read-only, so Hydra cannot lay YAML and command
    line over it.
    """
    hints = typing.get_type_hints(schema)
    fields = [
        (field.name, hints[field.name] | None, dataclasses.field(default=None))
        if source_of(declared(schema)[field.name])
        else (field.name, _twin_type(hints[field.name]), _twin_default(field))
        for field in dataclasses.fields(schema)
    ]
    return dataclasses.make_dataclass(schema.__name__, fields, kw_only=True)


def _twin_type(hint: Any) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _mutable_twin(hint)
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return type(arguments[0])
    if not arguments:
        return hint
    if origin is types.UnionType:
        origin = typing.Union
    return origin[tuple(_twin_type(argument) for argument in arguments)]


def _twin_default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    if field.default_factory is dataclasses.MISSING:
        return dataclasses.field(default=MISSING)
    factory = field.default_factory
    if isinstance(factory, type) and dataclasses.is_dataclass(factory):
        return dataclasses.field(default_factory=_mutable_twin(factory))
    return dataclasses.field(default_factory=factory)


def _freeze(value: Any, hint: Any) -> Any:
    """Rebuild twin dataclasses, lists and dicts as frozen dataclasses, tuples and dicts."""
    if isinstance(hint, types.UnionType) and value is not None:  # such as `Settings | None`
        hint = next((part for part in typing.get_args(hint) if dataclasses.is_dataclass(part)), Any)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        if not dataclasses.is_dataclass(value):
            raise InputError(f"{value!r} is given where {hint.__name__} has several settings")
        for name in sorted(vars(value).keys() - hints.keys()):
            # Hydra adds every key that has a + before it; OmegaConf makes it an attribute.
            raise InputError(f"Key '{name}' not in '{hint.__name__}': remove +{name}")
        return hint(
            **{
                field.name: _freeze(getattr(value, field.name), hints[field.name])
                for field in dataclasses.fields(hint)
            }
        )
    arguments = typing.get_args(hint) or (Any, Any)
    if isinstance(value, list):
        return tuple(_freeze(item, arguments[0]) for item in value)
    if isinstance(value, dict):
        return {key: _freeze(item, arguments[1]) for key, item in value.items()}
    return value
