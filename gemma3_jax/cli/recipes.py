"""The config of a run: a recipe, and what it leaves open, which follows from the run's checkpoint and data.

config.model                               that of config.init_from
config.stages.NAME.seq_len                 the length of the data's sequences
config.stages.NAME.num_steps               as many as config.stages.NAME.epochs take
config.stages.NAME.optimizer.peak_lr       by the width of the model, for adapters 10 x that
config.stages.NAME.optimizer.warmup_steps  by warmup_fraction
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence

from gemma3_jax import settings
from gemma3_jax.cli import configs


def load(config_flag: str, overrides: Sequence[str]) -> settings.Train:
    """Returns the config of a run, complete.

    Raises: ValueError as `configs.load`; if what is left open does not follow from checkpoint and data.
    """
    given = configs.run_file(config_flag)
    values = configs.read(given, overrides, settings.Train)
    _complete_model(values, _set_fields(given, overrides))
    for name, stage in values["stages"].items():
        try:
            _complete_stage(stage, values)
        except ValueError as error:
            raise ValueError(f"config.stages.{name}: {error}") from error
    return configs.build(values, settings.Train)


def _set_fields(given, overrides: Sequence[str]) -> list[str]:
    """The fields of config.model that the file or the command line sets."""
    paths = (override.removeprefix("--config.").partition("=")[0] for override in overrides)
    return [*given.get("model", ()), *(path.removeprefix("model.") for path in paths if path.startswith("model."))]


def _complete_model(values: dict, set_fields: Sequence[str]) -> None:
    """Replaces a model that is not described in full by that of init_from. Raises: ValueError if they differ."""
    model, path = values["model"], os.path.expanduser(values["init_from"])
    if all(model[name] for name in _needed(model)):
        return
    if not path:
        if set_fields:
            return  # the field that is missing is an error of its own
        raise ValueError(
            "config.model and config.init_from are empty; name the checkpoint whose model is trained: "
            "--config.init_from=DIR"
        )
    from gemma3_jax.checkpoint import open as checkpoint_open

    try:
        theirs = dataclasses.asdict(checkpoint_open.open_checkpoint(pathlib.Path(path)).model)
    except ValueError as error:
        raise ValueError(f"config.init_from: {error}") from error
    for name in set_fields:
        if model[name] != theirs[name]:
            hint = "; a stage may have another: config.stages.NAME.rope_scale" if name == "rope_scale" else ""
            raise ValueError(
                f"config.init_from {path} has {name} {theirs[name]}, config.model.{name} is {model[name]}; leave the "
                f"second out{hint}"
            )
    values["model"] = theirs


def _needed(model: dict) -> list[str]:
    """The fields of a model that have no default."""
    [annotation] = [field.type for field in dataclasses.fields(settings.Train) if field.name == "model"]
    return [field.name for field in dataclasses.fields(annotation) if field.default is dataclasses.MISSING]


def _complete_stage(stage: dict, values: dict) -> None:
    """Fills in what a stage leaves open. Raises: ValueError if its data does not say it, or a number is none."""
    for name, number, most in (
        ("epochs", stage["epochs"], math.inf),
        ("optimizer.warmup_fraction", stage["optimizer"]["warmup_fraction"], 1.0),
    ):
        if not (math.isfinite(number) and 0 <= number <= most):
            raise ValueError(f"{name} is {number}; it must be {'from 0 to 1' if most == 1 else 'at least 0'}")
    has_open_steps = not stage["num_steps"] and stage["epochs"] > 0
    if not stage["seq_len"] or has_open_steps:
        rows = _order(stage, values)
        stage["seq_len"] = rows.seq_len
        if has_open_steps:
            num_rows = stage["epochs"] * sum(rows.num_rows.values())
            stage["num_steps"] = math.ceil(num_rows / rows.batch_size)
    optimizer = stage["optimizer"]
    if not optimizer["peak_lr"] and values["init_from"]:
        factor = settings.ADAPTERS_LR if values["lora"]["rank"] else 1.0
        optimizer["peak_lr"] = factor * settings.TRAINED_LR / values["model"]["embed_dim"]
    if not optimizer["warmup_steps"]:
        optimizer["warmup_steps"] = round(optimizer["warmup_fraction"] * stage["num_steps"])


def _order(stage: dict, values: dict):
    """The order of the rows of a stage's data, of which it takes length and number. Raises: ValueError."""
    from gemma3_jax.data import dataset, order

    path = os.path.expanduser(stage["data"] or values["data"])
    if not path:
        raise ValueError(
            "seq_len or num_steps is left to the data, and config.data is empty; name what prepare wrote: "
            "--config.data=DIR"
        )
    data = dataset.open_dataset(pathlib.Path(path))
    lengths = data.manifest["seq_lens"]
    if not stage["seq_len"] and len(lengths) != 1:
        raise ValueError(f"seq_len is 0, and {path} has sequences of {', '.join(map(str, lengths))} tokens; set one")
    return order.find(
        data,
        seq_len=stage["seq_len"] or lengths[0],
        batch_size=max(stage["batch_size"], 1),
        seed=values["seed"],
    )
