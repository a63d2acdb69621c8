"""What --help says of the fields of a config."""

import dataclasses

import pytest

from gemma3_jax import settings
from gemma3_jax.cli import configs, field_help, program
from gemma3_jax.data.prepare import settings as prepare_settings


@dataclasses.dataclass(frozen=True)
class Part:
    """What a part is. More of it."""

    rate: float = 0.5  # from 0
    names: tuple[str, ...] = ("a",)
    # Over the field,
    # on two lines.
    size: int = dataclasses.field(
        default=3,
        compare=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole(Part):
    """The whole."""

    steps: int  # how many
    part: Part = Part(rate=0.75)
    many: dict[str, Part] = dataclasses.field(default_factory=dict)  # by name
    text: str = "#"  # a long comment, of so many words that it does not stand in one line with its field, but below it


def test_every_field_has_its_default_and_its_comment():
    part = ["rate={}  # from 0", "names=('a',)", "size=3  # Over the field, on two lines."]
    assert field_help.describe(Whole) == [
        *(f"--config.{line.format(0.5)}" for line in part),
        "--config.steps=(must be set)  # how many",
        "",
        "--config.part.*  # What a part is. More of it.",
        *(f"--config.part.{line.format(0.75)}" for line in part),
        "",
        "--config.many.NAME.*  # by name",
        *(f"--config.many.NAME.{line.format(0.5)}" for line in part),
        "--config.text='#'",
        "        # a long comment, of so many words that it does not stand in one line with its field, but below it",
    ]


def described(schema):
    """Every class of settings in a config."""
    yield schema
    for field in dataclasses.fields(schema):
        part = configs.type_of_entries(field.type) or field.type
        if dataclasses.is_dataclass(part):
            yield from described(part)


@pytest.mark.parametrize("schema", [settings.Train, prepare_settings.PrepareConfig])
def test_every_field_of_a_config_says_what_it_is(schema):
    for part in set(described(schema)):
        comments = field_help.comments(part)
        for field in dataclasses.fields(part):
            is_group = dataclasses.is_dataclass(configs.type_of_entries(field.type) or field.type)
            assert is_group or comments.get(field.name), (part, field.name)


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_help_has_the_fields(verb, capsys):
    with pytest.raises(SystemExit):
        program.main([verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  --config.") and "  # " in line for line in lines)
    assert not [line for line in lines if line != line.rstrip()]
