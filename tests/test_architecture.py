"""The shape of the code, held by a test: import direction, file and function size, names, dim letters."""

import ast
import graphlib
import pathlib
import re

import jax.numpy as jnp
import jaxtyping
import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "gemma3_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

# What each unit may import, lowest first. A new arrow is a design decision, and is made here.
MAY_IMPORT = {
    "sharding": "",
    "renamed": "",
    "tokenizer": "",
    "quant": "sharding",
    "model": "sharding",
    "checkpoint": "model quant renamed sharding tokenizer",
    "losses": "distill model sharding",
    "distill": "losses model sharding",
    "inference": "checkpoint model quant sharding tokenizer",
    "evals": "checkpoint inference losses model quant sharding tokenizer",
    "data": "distill renamed sharding tokenizer",
    "train": "",  # no model, no data: it sees a stage
    "settings": "data distill evals model quant train",
    "evaluation": "data distill evals inference losses model settings tokenizer train",
    "stages": "checkpoint data distill evaluation losses model quant settings sharding tokenizer train",
    "chips": "",
    "hosts": "",
    "teach": "checkpoint data distill settings sharding stages train",
    "planning": "chips data distill model settings sharding stages train",
    "provenance": "",
    "run": "checkpoint chips provenance renamed settings stages train",
    "report": "evals model provenance train",
    "cli": "checkpoint data evals hosts inference model planning renamed report run settings sharding teach train",
    "__main__": "cli",
}
# Each library is spoken to from one place.
HOME = {
    "flax": "model",
    "orbax": "checkpoint",
    "gguf": "checkpoint",
    "safetensors": "checkpoint",
    "einops": "checkpoint",
    "optax": "train",
    "tensorboardX": "train",
    "wandb": "train",
    "sentencepiece": "tokenizer",
    "llguidance": "inference",
    "jsonschema": "inference",
    "referencing": "inference",
    "lm_eval": "evals",
    "matplotlib": "report",
    "grain": "data",
    "array_record": "data",
    "apache_beam": "data",
    "tensorflow_datasets": "data",
    "fsspec": "data",
    "ml_collections": "cli",
    "tqdm": "cli",
    "argparse": "cli",
}
LEGEND = set("ABDFGHIKLMNPQRSTVWZ")  # spelled out at the top of sharding.py
VAGUE = {"utils", "util", "common", "helpers", "misc", "base", "core", "lib", "v2", "deprecated"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 400, 60, 8


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    unit = unit_of(path)
    for name in imports(ast.parse(path.read_text())):
        top, _, rest = name.partition(".")
        if top == PACKAGE.name:
            allowed = [unit, *MAY_IMPORT[unit].split()]
            assert rest.split(".")[0] in allowed, f"{unit} imports {rest}"
        assert unit in HOME.get(top, unit).split(), f"{unit} imports {top}, at home in {HOME[top]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert path.stem not in VAGUE, f"{path.name}: name the idea it holds"
    assert text.count("\n") <= MAX_FILE_LINES, f"{path.name} passes {MAX_FILE_LINES} lines: split it by idea"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            num_lines = node.end_lineno - node.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES, f"{path.name}: {node.name} has {num_lines} lines"
            num_arguments = len(node.args.args) + len(node.args.kwonlyargs)
            assert num_arguments <= MAX_ARGUMENTS, f"{path.name}: {node.name} takes {num_arguments} arguments"


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
    """That is, pytest runs with the hook of setup.cfg: without it every shape annotation would be a comment."""
    from gemma3_jax.model import rope

    with pytest.raises(jaxtyping.TypeCheckError):
        rope.rotate(jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 3)))
