"""Loads a config file and its overrides into settings: nested dataclasses, which define the fields and their defaults.

A config file is a Python file with `get_config()`, or `get_config(argument)` for `--config=FILE:ARGUMENT`. It returns a
ConfigDict of the fields that differ from the defaults.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import math
import os
import pathlib
import typing
from collections.abc import Iterator, Mapping, Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from gemma3_jax import provenance, renamed
from gemma3_jax.cli import near_fields


def load(config_flag: str, overrides: Sequence[str], schema: type):
    """Returns the settings, of class `schema`, of `--config=config_flag` and of overrides such as "--config.a.b=value".

    Raises: ValueError if the file is missing or fails, or if a field is unknown or has the wrong type.
    """
    return build(read(run_file(config_flag), overrides, schema), schema)


def read(values: Mapping, overrides: Sequence[str], schema: type) -> dict:
    """Returns all fields as nested dicts: the defaults of `schema`, `values` over them, and the overrides over these.

    Raises: ValueError if a field is unknown or has the wrong type.
    """
    config = ml_collections.ConfigDict(_defaults(schema))
    _update(config, values, schema, "config")
    _override(config, overrides, schema)
    return config.to_dict()


def build(values: Mapping, schema: type):
    """Returns the settings of all fields. Raises: ValueError for a value that a class does not accept."""
    return _build(schema, values, "config")


def run_file(config_flag: str) -> Mapping:
    """Returns the config that the file defines. Raises: ValueError if the file does not define one."""
    name, _, argument = config_flag.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise ValueError(f"--config is {path}, which is not a file; it must be a Python file with get_config()")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise ValueError(f"--config is {path}; it must end in .py, and be a Python file with get_config()")
    module = importlib.util.module_from_spec(spec)
    with _code_of_user(config_flag):
        spec.loader.exec_module(module)
        get_config = module.get_config
    _check_argument(get_config, name, argument)
    with _code_of_user(config_flag):
        config = get_config(argument) if argument else get_config()
        config = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    if not isinstance(config, Mapping):
        raise ValueError(
            f"--config {config_flag}: get_config() returns a {type(config).__name__}; it must return a "
            "ConfigDict or a dict"
        )
    return config


@contextlib.contextmanager
def _code_of_user(config_flag: str) -> Iterator[None]:
    """Raises: ValueError for anything that the code of a config file raises."""
    try:
        yield
    except ml_collections.config_dict.RequiredValueError as error:
        raise ValueError(
            f"--config {config_flag} leaves a required placeholder without a value; set it in get_config()"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"--config {config_flag} fails: {type(error).__name__}: {error}") from error


def _check_argument(get_config: object, name: str, argument: str) -> None:
    """Raises: ValueError if `get_config` needs an argument and has none, or takes none and has one."""
    if not inspect.isfunction(get_config):
        return  # calling it will show what it is
    parameters = inspect.signature(get_config).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    if needed and not argument:
        raise ValueError(f"--config is {name}, which takes an argument; give it: --config={name}:{needed[0].upper()}")
    if argument and not parameters:
        raise ValueError(f"--config is {name}:{argument}, but {name} takes no argument; leave :{argument} out")


def _defaults(schema: type, instance: object = None) -> dict:
    """Returns a nested dict of the defaults of a dataclass, or of the values of an instance."""
    defaults = {}
    for field in dataclasses.fields(schema):
        value = default_of(field) if instance is None else getattr(instance, field.name)
        defaults[field.name] = _defaults(field.type, value) if dataclasses.is_dataclass(field.type) else value
    return defaults


def default_of(field: dataclasses.Field) -> object:
    """Returns the default of a field.

    If it has none: None for a nested dataclass, else the zero of its type, which the dataclass has to reject.
    """
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if dataclasses.is_dataclass(field.type) else field.type()


def _fields(schema: type) -> dict[str, object]:
    return {field.name: field.type for field in dataclasses.fields(schema)}


def type_of_entries(annotation: object) -> type | None:
    """Returns the type of the entries, `Entry` for `dict[str, Entry]`; None for another annotation."""
    return typing.get_args(annotation)[1] if typing.get_origin(annotation) is dict else None


def _unknown(where: str, name: str, known: Sequence[str], elsewhere: Sequence[str] = ()) -> ValueError:
    """Returns the error of an unknown field `name` of the group `where`, with the name that was meant.

    `elsewhere`: fields of other groups that may have been meant.
    """
    if (new := renamed.FIELDS.get(name)) in known:
        return ValueError(f"there is no {where}.{name}; it was renamed to {where}.{new}")
    meant = [f"config.{field}" for field in elsewhere]
    if meant := meant or [f"{where}.{close}" for close in difflib.get_close_matches(name, known, n=1)]:
        return ValueError(f"there is no {where}.{name}; did you mean {' or '.join(meant)}?")
    fields = f"; the fields of {where} are: {', '.join(known)}" if known else ""
    return ValueError(f"there is no {where}.{name}{fields}")


def _update(config: ml_collections.ConfigDict, values: Mapping, schema: type, where: str) -> None:
    """Writes the values of a file over the defaults. Raises: ValueError for a field that is unknown or no group."""
    types = _fields(schema)
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f"{where} has the key {name!r}; it must be the name of a field, as text")
        if name not in types:
            raise _unknown(where, name, list(types))
        entry_type = type_of_entries(types[name])
        if dataclasses.is_dataclass(types[name]) or entry_type:
            _check_is_group(value, f"{where}.{name}")
        if dataclasses.is_dataclass(types[name]):
            _update(config[name], value, types[name], f"{where}.{name}")
        elif entry_type:
            for key, entry in value.items():
                if not isinstance(key, str) or not key or "." in key:
                    raise ValueError(f"{where}.{name} has the key {key!r}; it must be a name without dots, as text")
                _check_is_group(entry, f"{where}.{name}.{key}")
                config[name][key] = ml_collections.ConfigDict(_defaults(entry_type))
                _update(config[name][key], entry, entry_type, f"{where}.{name}.{key}")
        else:
            config[name] = _typed(value, types[name], f"{where}.{name}")


def _check_is_group(value: object, where: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}; it is a group of fields and must be a ConfigDict or a dict")


def _override(config: ml_collections.ConfigDict, overrides: Sequence[str], schema: type) -> None:
    """Applies the overrides of the command line, through the flags of ml_collections."""
    for override in overrides:
        flag = override.partition("=")[0]
        annotation = _type_at(flag.removeprefix("--config."), config, schema)
        if "=" not in override:
            raise ValueError(f"{override} has no value; write {override}=VALUE")
        values = flags.FlagValues()
        arguments = ["gemma3_jax", override]
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        try:
            values(arguments)
        except (flags.Error, ValueError, TypeError, KeyError, SyntaxError) as error:
            name = annotation.__name__ if isinstance(annotation, type) else annotation
            field = flag.removeprefix("--")
            raise ValueError(f"{override} cannot be parsed; {field} must be of type {name}") from error


def _type_at(path: str, config: ml_collections.ConfigDict, schema: type) -> object:
    """Returns the type of the field at a path such as "a.b.c".

    Raises: ValueError if there is no such field, or if it is a group.
    """
    where, annotation, root = "config", schema, config
    for name in path.split("."):
        entry_type = type_of_entries(annotation)
        is_group = dataclasses.is_dataclass(annotation)
        known = list(config) if entry_type else list(_fields(annotation)) if is_group else []
        if entry_type and not known:
            raise ValueError(f"there is no {where}.{name}: {where} is empty; add entries in the config file")
        if name not in known:
            raise _unknown(where, name, known, near_fields.find(path, provenance.fields(root.to_dict())))
        annotation = entry_type or _fields(annotation)[name]
        config, where = config[name], f"{where}.{name}"
    if dataclasses.is_dataclass(annotation) or type_of_entries(annotation):
        raise ValueError(f"{where} is a group of fields; set one of them: --{where}.NAME=VALUE")
    return annotation


def _typed(value: object, annotation: object, where: str) -> object:
    """Returns a value as the type of its field: tuples of lists, floats of ints, "~/x" below the home directory.

    Nothing else is converted.

    Raises: ValueError if the value has another type.
    """
    if typing.get_origin(annotation) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{where} is {value!r}; it must be a tuple")
        return tuple(_typed(item, typing.get_args(annotation)[0], where) for item in value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        _check_finite(value, where)
        return float(value)
    if annotation is str and isinstance(value, str) and value.startswith("~") and (value == "~" or "/" in value):
        return os.path.expanduser(value)  # a path
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}; it must be of type {annotation.__name__}")
    return value


def _check_finite(value: object, where: str) -> None:
    """Raises: ValueError for a number that is not finite, or that no array holds."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{where} is {number}; it must be finite")
        if isinstance(number, int) and abs(number) >= 1 << 63:
            raise ValueError(f"{where} has over 18 digits; it must be under 2**63")


def _build(schema: type, config: Mapping, where: str):
    """Returns the dataclass of a nested dict. Raises: ValueError for a value that it does not accept."""
    values = {}
    may_be_infinite = {field.name for field in dataclasses.fields(schema) if field.metadata.get("may_be_infinite")}
    for name, annotation in _fields(schema).items():
        entry_type = type_of_entries(annotation)
        path = f"{where}.{name}"
        if dataclasses.is_dataclass(annotation):
            values[name] = _build(annotation, config[name], path)
        elif entry_type:
            values[name] = {key: _build(entry_type, entry, f"{path}.{key}") for key, entry in config[name].items()}
        else:
            values[name] = _typed(config[name], annotation, path)
            if name not in may_be_infinite:
                _check_finite(values[name], path)
    try:
        return schema(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
