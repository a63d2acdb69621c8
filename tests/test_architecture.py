"""The shape of the code, held by a test: import direction, file and function size, names, dim letters."""

import ast
import graphlib
import pathlib
import re
import statistics
import subprocess
import sys

import beartype.roar
import jax.numpy as jnp
import jaxtyping
import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "gemma3_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

# What each unit may import, lowest first. A new arrow is a design decision, and is made here.
MAY_IMPORT = {
    "sharding": "",
    "renamed": "",
    "durable": "",
    "tokenizer": "durable",
    "quant": "sharding",
    "model": "quant sharding",
    "checkpoint": "console durable hosts model quant renamed sharding tokenizer",
    "losses": "model sharding",
    "distill": "losses model sharding",
    "inference": "checkpoint console model quant sharding tokenizer",
    "evals": "console data durable inference losses model quant tokenizer",
    "data": "console distill durable losses renamed sharding tokenizer",
    "hosts": "",
    "console": "",
    "train": "durable hosts",  # no model, no data: it sees a stage
    "settings": "data distill evals model quant train",
    "stages": "checkpoint chips data distill evals inference losses model quant settings sharding tokenizer train",
    "chips": "",
    "teach": "checkpoint console data distill hosts settings sharding stages train",
    "planning": "chips model settings sharding stages train",
    "provenance": "",
    "run": "checkpoint chips console durable hosts provenance renamed settings stages train",
    "report": "evals model planning provenance renamed train",
    "cli": "checkpoint console data durable evals hosts inference planning provenance renamed report run settings "
    "sharding teach train",
    "__main__": "cli",
}
# Each library is spoken to from one place.
HOME = {
    "fcntl": "durable",
    "flax": "model",
    "orbax": "checkpoint",
    "gguf": "checkpoint",
    "safetensors": "checkpoint",
    "einops": "checkpoint",
    "optax": "train",
    "tensorboardX": "train",
    "wandb": "train",
    "sentencepiece": "tokenizer",
    "tokenizers": "tokenizer",
    "llguidance": "inference",
    "jsonschema": "inference",
    "referencing": "inference",
    "lm_eval": "evals",
    "matplotlib": "report",
    "jinja2": "report",
    "grain": "data",
    "array_record": "data",
    "apache_beam": "data",
    "tensorflow_datasets": "data",
    "fsspec": "data durable",
    "ml_collections": "cli",
    "tqdm": "cli",
    "argparse": "cli",
}
# The wings of data/: what training reads is at its top, and needs neither to prepare data nor to write targets.
WINGS = {"": "targets", "targets": "", "prepare": ""}  # wing -> the wings it may import beside the top
LEGEND = set("ABCDFGHIKLMNPQRSTVWZ")  # spelled out at the top of sharding.py
VAGUE = {"utils", "util", "common", "helpers", "misc", "base", "core", "lib", "v2", "deprecated"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 400, 60, 8
MAX_MEDIAN_LINES = 130
# Words that mean nothing alone: a name or a sentence says the thing instead. Lines of the package that have one.
EMPTY_WORDS, MAX_EMPTY_WORDS = re.compile(r"\b(asked|told|said|taught)\b"), 20
# Functions that read better whole, each with its reason; five at most.
LONG_FUNCTIONS = {
    ("run.py", "execute"): "one start of a run from top to bottom, under banners",
    ("train/loop.py", "run"): "the training loop, which every stage takes",
}


def imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unit_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_unit_stands_in_the_table():
    assert {unit_of(path) for path in FILES} == set(MAY_IMPORT)


def test_arrows_form_no_cycle():
    graphlib.TopologicalSorter({unit: allowed.split() for unit, allowed in MAY_IMPORT.items()}).prepare()


def test_every_arrow_is_used():
    used: dict[str, set[str]] = {unit: set() for unit in MAY_IMPORT}
    for path in FILES:
        names = (name.partition(".") for name in imports(ast.parse(path.read_text())))
        used[unit_of(path)] |= {rest.split(".")[0] for top, _, rest in names if top == PACKAGE.name}
    assert {unit: set(allowed.split()) - used[unit] for unit, allowed in MAY_IMPORT.items()} == dict.fromkeys(
        used, set()
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    unit = unit_of(path)
    for name in imports(ast.parse(path.read_text())):
        top, _, rest = name.partition(".")
        if top == PACKAGE.name:
            allowed = [unit, *MAY_IMPORT[unit].split()]
            assert rest.split(".")[0] in allowed, f"{unit} imports {rest}"
        assert unit in HOME.get(top, unit).split(), f"{unit} imports {top}, at home in {HOME[top]}"


def test_the_launchers_need_no_packages():
    """launch/check.py runs on machines without JAX: of the package it imports modules that need nothing else."""
    line = [sys.executable, "-ES", "-c", "import launch.check, sys; print(*sys.modules)"]
    done = subprocess.run(line, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packages = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    assert packages == {"__main__", "gemma3_jax", "launch"}


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "data").rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_wings_of_data_import_its_top_and_what_they_may(path):
    def wing_of(name: str) -> str:
        return next((wing for wing in WINGS if wing and f"{name}.".startswith(f"{PACKAGE.name}.data.{wing}.")), "")

    wing = wing_of(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    for name in imports(ast.parse(path.read_text())):
        other = wing_of(name)
        assert other in ("", wing, *WINGS[wing].split()), f"data/{wing or 'top'} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert path.stem not in VAGUE, f"{path.name}: name the idea it holds"
    assert text.count("\n") <= MAX_FILE_LINES, f"{path.name} passes {MAX_FILE_LINES} lines: split it by idea"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            num_lines = node.end_lineno - node.lineno + 1
            is_exempt = (str(path.relative_to(PACKAGE)), node.name) in LONG_FUNCTIONS
            assert is_exempt or num_lines <= MAX_FUNCTION_LINES, f"{path.name}: {node.name} has {num_lines} lines"
            num_arguments = len(node.args.args) + len(node.args.kwonlyargs)
            assert num_arguments <= MAX_ARGUMENTS, f"{path.name}: {node.name} takes {num_arguments} arguments"


def test_the_median_file_is_short():
    lines = [path.read_text().count("\n") for path in FILES]
    assert statistics.median(lines) < MAX_MEDIAN_LINES


def test_names_and_prose_say_the_thing():
    lines = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if EMPTY_WORDS.search(line)
    ]
    assert len(lines) < MAX_EMPTY_WORDS, "\n".join(lines)


def test_long_functions_are_few_and_exist():
    assert len(LONG_FUNCTIONS) <= 5
    for file, name in LONG_FUNCTIONS:
        tree = ast.parse((PACKAGE / file).read_text())
        [node] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
        assert node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES, f"{name} is short enough: take it off the list"


def test_a_class_name_has_one_meaning():
    """A name stands for one class in the whole package."""
    files: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                files.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert not {name: where for name, where in files.items() if len(where) > 1}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dims_come_from_the_legend(path):
    text = path.read_text()
    for spec in re.findall(r"""["']([A-Za-z.,]+->[A-Za-z.]*)["']""", text):
        stray = set(re.sub(r"[.,>-]", "", spec)) - LEGEND
        assert not stray, f"einsum {spec!r} uses {stray}, absent from the legend in sharding.py"
    for dims in re.findall(r"""(?:Float|Int|Bool)\[Array, "([^"]*)"\]""", text):
        letters = {dim for dim in dims.split() if re.fullmatch(r"[A-Za-z]\w*", dim)}
        assert letters <= LEGEND, f"shape {dims!r} uses {letters - LEGEND}, absent from the legend in sharding.py"


def test_the_legend_is_spelled_out():
    head = (PACKAGE / "sharding.py").read_text().split('"""')[1]
    spelled = set(re.findall(r"(?:^|\s)([A-Z])(?= [a-zA-Z=])", head))
    assert spelled >= LEGEND, f"the legend in sharding.py lacks {LEGEND - spelled}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_postponed_annotations(path):
    assert "from __future__ import annotations" not in path.read_text(), "it blinds the shape checker"


def test_shapes_are_checked_at_trace_time():
    """That is, with the hook of conftest.py: without it every shape annotation would be a comment."""
    from gemma3_jax.model import rope

    with pytest.raises(jaxtyping.TypeCheckError):
        rope.rotate(jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 3)))


def test_other_annotations_are_checked_too():
    from gemma3_jax.evals import registry

    with pytest.raises(beartype.roar.BeartypeCallHintViolation):
        registry.make(7, None, None)


# --- the tests ---

TESTS = sorted(pathlib.Path(__file__).parent.rglob("*.py"))
OF_TUPLES = {"_fields", "_replace", "_asdict"}  # public in a NamedTuple


def private_names(tree: ast.AST) -> set[str]:
    """The functions, classes, variables and attributes that it makes whose names begin with an underscore."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in names - OF_TUPLES if re.match(r"_[^_]", name)}


def used_names(tree: ast.AST) -> set[str]:
    """The attributes and imports that it reads, and those in its texts: of programs, and of what `setattr` replaces."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r"(?:^|\w\.)(_[a-z]\w*)", node.value))
    return names


def test_tests_use_what_is_public_of_the_package():
    """A private constant may be replaced, where nothing else forces the case."""
    private = set().union(*(private_names(ast.parse(path.read_text())) for path in FILES))
    for path in TESTS:
        text = path.read_text()
        if private & set(re.findall(r"\b_\w+", text)):
            tree = ast.parse(text)
            used = used_names(tree) & private - private_names(tree)
            assert not used, f"{path.name} uses {used}: make them public, or test what uses them"
