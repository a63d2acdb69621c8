"""A config file and its overrides on the command line -> settings: a dataclass that says what there is, and defaults.

A config file is Python with `get_config()`, or `get_config(argument)` for `--config=FILE:ARGUMENT`, which returns a
ConfigDict with the fields that differ from the defaults.
"""

import dataclasses
import difflib
import importlib.util
import pathlib
import typing
from collections.abc import Mapping, Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from gemma3_jax import renamed


def load(text: str, overrides: Sequence[str], schema: type):
    """The settings that `--config=text` and `overrides`, each "--config.a.b=value", ask for.

    Raises: ValueError if there is no such file, if it fails, or if a field is unknown or of another type.
    """
    config = ml_collections.ConfigDict(_defaults(schema))
    _update(config, _run_file(text), schema, "config")
    _override(config, overrides, schema)
    return _build(schema, config.to_dict(), "config")


def _run_file(text: str) -> Mapping:
    name, _, argument = text.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise ValueError(f"--config {path} is not a file; it is a Python file with get_config()")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise ValueError(f"--config {path} does not end in .py; it is a Python file with get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except (Exception, SystemExit) as error:  # whatever a file of the user's may raise
        raise ValueError(f"--config {text} fails: {type(error).__name__}: {error}") from error
    if isinstance(config, ml_collections.ConfigDict):
        return config.to_dict()
    if not isinstance(config, Mapping):
        raise ValueError(f"--config {text}: get_config() returns a {type(config).__name__}, not a ConfigDict")
    return config


def _defaults(schema: type, of: object = None) -> dict:
    """A nested dict of a dataclass's defaults, or of the values `of` an instance; dicts of dataclasses start empty."""
    found = {}
    for field in dataclasses.fields(schema):
        value = _default(field) if of is None else getattr(of, field.name)
        found[field.name] = _defaults(field.type, value) if dataclasses.is_dataclass(field.type) else value
    return found


def _default(field: dataclasses.Field) -> object:
    """A field's default. Of one that has none: the type's zero, which the dataclass has to refuse; None for fields."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if dataclasses.is_dataclass(field.type) else field.type()


def _fields(schema: type) -> dict[str, object]:
    return {field.name: field.type for field in dataclasses.fields(schema)}


def _entry_type(annotation: object) -> type | None:
    """Source, if the annotation is dict[str, Source]."""
    return typing.get_args(annotation)[1] if typing.get_origin(annotation) is dict else None


def _unknown(where: str, name: str, known: Sequence[str]) -> ValueError:
    if (new := renamed.FIELDS.get(name)) in known:
        return ValueError(f"there is no {where}.{name}: its name is {where}.{new} now")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {where}.{close[0]}?" if close else f"; it has: {', '.join(known)}"
    return ValueError(f"there is no {where}.{name}{hint if known else ''}")


def _update(config: ml_collections.ConfigDict, given: Mapping, schema: type, where: str) -> None:
    """Writes what a file gives over the defaults."""
    types = _fields(schema)
    for name, value in given.items():
        if name not in types:
            raise _unknown(where, name, list(types))
        entry_type = _entry_type(types[name])
        if dataclasses.is_dataclass(types[name]) or entry_type:
            _check_has_fields(value, f"{where}.{name}")
        if dataclasses.is_dataclass(types[name]):
            _update(config[name], value, types[name], f"{where}.{name}")
        elif entry_type:
            for key, entry in value.items():
                _check_has_fields(entry, f"{where}.{name}.{key}")
                config[name][key] = ml_collections.ConfigDict(_defaults(entry_type))
                _update(config[name][key], entry, entry_type, f"{where}.{name}.{key}")
        else:
            config[name] = _typed(value, types[name], f"{where}.{name}")


def _check_has_fields(value: object, where: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}; it has fields of its own")


def _override(config: ml_collections.ConfigDict, overrides: Sequence[str], schema: type) -> None:
    """Applies the command line, through ml_collections' own flags."""
    for override in overrides:
        flag = override.partition("=")[0]
        kind = _kind(flag.removeprefix("--config."), config, schema)
        if "=" not in override:
            raise ValueError(f"{override} has no value; write {override}=VALUE")
        values = flags.FlagValues()
        arguments = ["gemma3_jax", override]
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        try:
            values(arguments)
        except (flags.Error, ValueError, TypeError, KeyError, SyntaxError) as error:
            name = kind.__name__ if isinstance(kind, type) else kind
            raise ValueError(f"{override} is not understood; {flag.removeprefix('--')} is of type {name}") from error


def _kind(path: str, config: ml_collections.ConfigDict, schema: type) -> object:
    """The type of the field at a path: a.b.c."""
    where, kind = "config", schema
    for name in path.split("."):
        entry_type = _entry_type(kind)
        known = list(config) if entry_type else list(_fields(kind)) if dataclasses.is_dataclass(kind) else []
        if entry_type and not known:
            raise ValueError(f"there is no {where}.{name}: {where} is empty; name its entries in the file")
        if name not in known:
            raise _unknown(where, name, known)
        kind = entry_type or _fields(kind)[name]
        config, where = config[name], f"{where}.{name}"
    if dataclasses.is_dataclass(kind) or _entry_type(kind):
        raise ValueError(f"{where} has fields of its own; set those: --{where}.NAME=VALUE")
    return kind


def describe(schema: type, where: str = "config", of: object = None) -> list[str]:
    """A line for each field: its path and its default. Entries of a dict are called NAME."""
    lines = []
    for field in dataclasses.fields(schema):
        path, value = f"{where}.{field.name}", _default(field) if of is None else getattr(of, field.name)
        if dataclasses.is_dataclass(field.type):
            lines += describe(field.type, path, value)
        elif entry_type := _entry_type(field.type):
            lines += describe(entry_type, f"{path}.NAME")
        else:
            must_be_set = of is None and (field.default, field.default_factory) == (dataclasses.MISSING,) * 2
            lines.append(f"--{path}=(must be set)" if must_be_set else f"--{path}={value!r}")
    return lines


def _typed(value: object, annotation: object, where: str) -> object:
    """The value as the field's type: lists become tuples, ints floats; nothing else is bent."""
    if typing.get_origin(annotation) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{where} is {value!r}; it must be a tuple")
        return tuple(_typed(item, typing.get_args(annotation)[0], where) for item in value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}; it must be of type {annotation.__name__}")
    return value


def _build(schema: type, config: Mapping, where: str):
    values = {}
    for name, annotation in _fields(schema).items():
        entry_type = _entry_type(annotation)
        path = f"{where}.{name}"
        if dataclasses.is_dataclass(annotation):
            values[name] = _build(annotation, config[name], path)
        elif entry_type:
            values[name] = {key: _build(entry_type, entry, f"{path}.{key}") for key, entry in config[name].items()}
        else:
            values[name] = _typed(config[name], annotation, path)
    try:
        return schema(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
