"""Config files and overrides -> settings; every mistake in them is one sentence."""

import dataclasses
import pathlib
import re

import pytest

from gemma3_jax.cli import configs
from tests import runs

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ("a",)


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int = 10
    label: str = "x"
    fast: bool = False
    inner: Inner = Inner()
    many: dict[str, Inner] = dataclasses.field(default_factory=dict)
    lengths: tuple[int, ...] = (1, 2)
    other: Inner = Inner(rate=0.75)


def load(tmp_path, body, *overrides, argument=""):
    file = tmp_path / "config.py"
    file.write_text(f"import ml_collections\ndef get_config(argument=''):\n    return {body}\n")
    return configs.load(f"{file}:{argument}" if argument else str(file), overrides, Outer)


def test_defaults_then_the_file_then_the_command_line(tmp_path):
    body = "ml_collections.ConfigDict({'steps': 20, 'inner': {'rate': 1}, 'many': {'one': {'names': ['b', 'c']}}})"
    config = load(tmp_path, body, "--config.inner.names=('z',)", "--config.many.one.rate=0.25", "--config.fast=True")
    assert config == Outer(
        steps=20, fast=True, inner=Inner(1.0, ("z",)), many={"one": Inner(rate=0.25, names=("b", "c"))}
    )


def test_a_file_may_be_a_plain_dict_and_take_an_argument(tmp_path):
    assert load(tmp_path, "{'label': argument}", argument="1b") == Outer(label="1b")


def test_a_nested_default_is_that_of_its_field_not_of_its_class(tmp_path):
    assert load(tmp_path, "{'other': {'names': ['b']}}").other == Inner(0.75, ("b",))


@dataclasses.dataclass(frozen=True)
class Needs:
    size: int
    inner: Inner

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1")


def test_a_field_without_a_default_must_be_set(tmp_path):
    (tmp_path / "config.py").write_text("def get_config(): return {}")
    with pytest.raises(ValueError, match="config: size is 0; it must be at least 1"):
        configs.load(str(tmp_path / "config.py"), [], Needs)
    assert configs.load(str(tmp_path / "config.py"), ["--config.size=3"], Needs) == Needs(3, Inner())


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("{'setps': 1}", r"there is no config\.setps; did you mean config\.steps\?"),
        ("{'inner': {'zzz': 1}}", r"there is no config\.inner\.zzz; the fields of config\.inner are: rate, names"),
        ("{'many': {'one': {'rte': 1}}}", r"no config\.many\.one\.rte; did you mean config\.many\.one\.rate"),
        ("{'steps': 'ten'}", r"config\.steps is 'ten'; it must be of type int"),
        ("{'steps': True}", r"config\.steps is True; it must be of type int"),
        ("{'inner': 3}", r"config\.inner is 3; it is a group of fields"),
        ("{'many': {'one': 3}}", r"config\.many\.one is 3; it is a group of fields"),
        ("{'lengths': 3}", r"config\.lengths is 3; it must be a tuple"),
        ("{'inner': {'names': 'abc'}}", r"config\.inner\.names is 'abc'; it must be a tuple"),
        ("{'lengths': (1, 'b')}", r"config\.lengths is 'b'; it must be of type int"),
        ("{'inner': {'rate': float('nan')}}", r"config\.inner\.rate is nan; it must be finite"),
        ("{'many': {'one': {'rate': float('inf')}}}", r"config\.many\.one\.rate is inf; it must be finite"),
        ("{'steps': 10**400}", r"config\.steps has over 18 digits; it must be under 2\*\*63"),
        ("{'lengths': (1, -10**30)}", r"config\.lengths has over 18 digits; it must be under 2\*\*63"),
        ("{1: 2}", r"config has the key 1; it must be the name of a field, as text"),
        ("{'inner': {None: 2}}", r"config\.inner has the key None; it must be the name of a field, as text"),
        ("{'many': {7: {}}}", r"config\.many has the key 7; it must be a name without dots, as text"),
        ("{'many': {'a.b': {}}}", r"config\.many has the key 'a\.b'; it must be a name without dots"),
        ("ml_collections.ConfigDict({'label': ml_collections.config_dict.placeholder(str)})", r"config\.label is None"),
        (
            "ml_collections.ConfigDict({'label': ml_collections.config_dict.required_placeholder(str)})",
            r"config\.py leaves a required placeholder without a value; set it in get_config\(\)",
        ),
        ("5", r"get_config\(\) returns a int; it must return a ConfigDict or a dict"),
        ("1 / 0", r"config\.py fails: ZeroDivisionError: division by zero"),
    ],
)
def test_errors_of_a_config_file(tmp_path, body, problem):
    with pytest.raises(ValueError, match=problem):
        load(tmp_path, body)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("--config.step=1", r"there is no config\.step; did you mean config\.steps\?"),
        ("--config.inner.rat=1", r"there is no config\.inner\.rat; did you mean config\.inner\.rate"),
        ("--config.many.two.rate=1", r"no config\.many\.two: config\.many is empty; add entries in the config file"),
        ("--config.steps.deeper=1", r"there is no config\.steps\.deeper"),
        ("--config.steps=ten", r"--config\.steps=ten cannot be parsed; config\.steps must be of type int"),
        ("--config.steps", r"--config\.steps has no value; write --config\.steps=VALUE"),
        ("--config.inner={'rate': 1}", r"config\.inner is a group of fields; set one of them: --config\.inner\.NAME="),
        ("--config.many=3", r"config\.many is a group of fields"),
        ("--config.inner.rate=-inf", r"config\.inner\.rate is -inf; it must be finite"),
        (f"--config.steps={'9' * 400}", r"config\.steps has over 18 digits"),
        ("--config.lengths=('a',)", r"config\.lengths is 'a'; it must be of type int"),
    ],
)
def test_errors_of_the_command_line(tmp_path, override, problem):
    with pytest.raises(ValueError, match=problem):
        load(tmp_path, "{}", override)


def float_fields(schema, where="config"):
    """Paths of all float fields; those of the entries of a group too, by the name "first"."""
    for field in dataclasses.fields(schema):
        path, entry_type = f"{where}.{field.name}", configs.type_of_entries(field.type)
        if dataclasses.is_dataclass(field.type):
            yield from float_fields(field.type, path)
        elif entry_type:
            yield from float_fields(entry_type, f"{path}.first")
        elif field.type is float:
            yield path


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_number_of_train_may_be_infinite_but_the_one_that_says_so(value, tmp_path):
    from gemma3_jax import settings

    file = tmp_path / "toy_run.py"
    file.write_text(runs.CONFIG)
    fields = [path for path in float_fields(settings.Train) if not path.startswith("config.stages.first.mixture")]
    assert len(fields) > 20 and "config.stages.first.z_loss" in fields
    accepted = []
    for field in fields:
        try:
            configs.load(str(file), [f"--{field}={value}"], settings.Train)
            accepted.append(field)
        except ValueError as error:
            if not field.endswith("num_deviations"):
                assert re.fullmatch(rf"{re.escape(field)} is {value}; it must be finite", str(error))
    assert accepted == ["config.stages.first.spike_guard.num_deviations"] * (value == "inf")


@pytest.mark.parametrize("field", ["quality.power", "quality.floor", "duplicates.min_similarity"])
def test_no_number_of_prepare_may_be_infinite(field):
    from gemma3_jax.data.prepare import settings

    file = str(ROOT / "experiments" / "demo_data.py")
    with pytest.raises(ValueError, match=rf"config\.{field} is nan; it must be finite"):
        configs.load(file, [f"--config.{field}=nan"], settings.PrepareConfig)


def test_a_path_below_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    assert load(tmp_path, "{'label': '~/data', 'inner': {'names': ('~/a', 'b~', '~/c')}}").label == "/home/user/data"
    config = load(tmp_path, "{}", "--config.label=~/data", "--config.inner.names=('~/a*', 'b~', '~')")
    assert (config.label, config.inner.names) == ("/home/user/data", ("/home/user/a*", "b~", "/home/user"))
    assert load(tmp_path, "{}", "--config.label=~data").label == "~data"


def test_only_the_override_that_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^--config\.steps=ten cannot be parsed"):
        load(tmp_path, "{}", "--config.label=a", "--config.steps=ten")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("many.one.rates", "config.many.one.rate"),
        ("many.rate", "config.many.one.rate"),
        ("maney.rate", "config.many.one.rate"),
        ("xy.names", "config.inner.names or config.many.one.names or config.other.names"),
        ("innr", "config.inner"),
    ],
)
def test_the_field_that_was_meant_is_named_wherever_it_is(tmp_path, override, meant):
    with pytest.raises(ValueError, match=rf"^there is no config\.\w+(\.\w+)*; did you mean {meant}\?$"):
        load(tmp_path, "{'many': {'one': {}}}", f"--config.{override}=1")


def test_an_argument_is_given_where_one_is_taken(tmp_path):
    for parameters, argument, problem in (
        ("size, *more", "", r"takes_size.py, which takes an argument; give it: --config=\S+takes_size.py:SIZE"),
        ("", "1b", r"takes_.py:1b, but \S+ takes no argument; leave :1b out"),
    ):
        file = tmp_path / f"takes_{parameters.partition(',')[0]}.py"
        file.write_text(f"def get_config({parameters}):\n    return {{}}\n")
        with pytest.raises(ValueError, match=problem):
            configs.load(f"{file}:{argument}" if argument else str(file), [], Outer)


def test_recipes_say_which_sizes_they_take():
    for name in ("recipe", "starter"):
        with pytest.raises(
            ValueError, match=rf"size is ''; it must be one of .*1b.*: --config=experiments/{name}.py:1b"
        ):
            configs.run_file(f"experiments/{name}.py")


def test_a_file_that_ends_the_program_does_not(tmp_path):
    with pytest.raises(ValueError, match=r"config\.py fails: SystemExit: 3"):
        load(tmp_path, "exit(3)")


def test_a_path_that_is_no_config_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none.py, which is not a file; it must be a Python file with get_config"):
        configs.load(str(tmp_path / "none.py"), [], Outer)
    (tmp_path / "config.txt").write_text("")
    with pytest.raises(ValueError, match="config.txt; it must end in .py"):
        configs.load(str(tmp_path / "config.txt"), [], Outer)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"empty.py fails: AttributeError: .*get_config"):
        configs.load(str(tmp_path / "empty.py"), [], Outer)


TRAIN = "{'model': %s, 'stages': {'only': {'num_steps': 1, 'seq_len': 8, 'batch_size': 1, **%s}}}"
PREPARE = "{'sources': {'web': %s}}"
OLD_NAMES = [  # settings, config without the field, config with it, path of the group, old name, new name
    ("train", TRAIN % ("{}", "{}"), TRAIN % ("{'width': 64}", "{}"), "model", "width", "embed_dim"),
    ("train", TRAIN % ("{}", "{}"), TRAIN % ("{}", "{'row_length': 64}"), "stages.only", "row_length", "seq_len"),
    ("prepare", PREPARE % "{}", PREPARE % "{'share': 0.5}", "sources.web", "share", "fraction"),
]


@pytest.mark.parametrize(("schema", "without", "with_old", "group", "old", "new"), OLD_NAMES)
def test_the_error_of_an_old_field_name_has_the_new_name(tmp_path, schema, without, with_old, group, old, new):
    """In a config file and on the command line alike."""
    from gemma3_jax import renamed, settings
    from gemma3_jax.data.prepare import settings as prepare_settings

    assert renamed.FIELDS[old] == new
    schema = {"train": settings.Train, "prepare": prepare_settings.PrepareConfig}[schema]
    file, expected = tmp_path / "config.py", f"there is no config.{group}.{old}; it was renamed to config.{group}.{new}"
    for body, overrides in ((with_old, []), (without, [f"--config.{group}.{old}=64"])):
        file.write_text(f"def get_config():\n    return {body}\n")
        with pytest.raises(ValueError) as raised:
            configs.load(str(file), overrides, schema)
        assert str(raised.value) == expected


def test_the_configs_of_experiments_are_settings():
    from gemma3_jax.data.prepare import settings

    for name in ("demo_data.py", "mixed_data.py", "mixed_data.py:/data/raw"):
        settings.check(configs.load(str(ROOT / "experiments" / name), [], settings.PrepareConfig))
