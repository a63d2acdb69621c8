"""The loss over V = 262,144 as XLA compiles it for TPUs, none of which is needed: its arrays and its collectives."""

import functools
import json
import math
import os
import re
import subprocess
import sys

import pytest

from gemma3_jax.planning import hlo

pytest.importorskip("libtpu")

pytestmark = pytest.mark.interop

# Of 4 rows of 8,192 tokens; in a process of its own, as libtpu wants these variables and JAX no other devices.
COMPILE = """
import functools, json, sys
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from gemma3_jax import sharding
from gemma3_jax.losses import cross_entropy, drawn_targets, soft_targets, vocab_parallel
from gemma3_jax.distill import lists, online, settings
from gemma3_jax.planning import topologies

topology, axes, what = json.loads(sys.argv[1])
devices = topologies.find(topology).devices()
mesh = Mesh(sharding.device_grid(devices, tuple(axes)), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
rows = sharding.batch_sharding(mesh)
table = NamedSharding(mesh, sharding.parameter_spec(("V", "D"), (262_144, 1152), mesh.shape))


def tokens(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((4, 8192, *shape), dtype, sharding=rows)


ids, words = tokens(dtype=jnp.int32), (tokens(dtype=jnp.uint32), tokens(dtype=jnp.uint32))
head = tokens(1152, dtype=jnp.bfloat16), jax.ShapeDtypeStruct((262_144, 1152), jnp.float32, sharding=table)
if what == "draw":
    draw = functools.partial(lists.draw, samples=settings.Samples())
    run = functools.partial(vocab_parallel.map_logits, draw)
    arguments = (*head, ids, words)
else:
    sparse = soft_targets.SparseTargets(tokens(256, dtype=jnp.int32), tokens(256), tokens(), tokens(), tokens(), ids)
    sample = jax.tree_util.Partial(functools.partial(online.draw, samples=settings.Samples()))
    drawn = drawn_targets.DrawnTargets(*head, words, sample)
    soft = {"sparse": sparse, "dense": soft_targets.DenseTargets(*head), "drawn": drawn, "labels": None}[what]
    run = jax.value_and_grad(cross_entropy.cross_entropy_sum, argnums=(0, 1), has_aux=True)
    arguments = (*head, ids, tokens(dtype=jnp.bool), soft)
with jax.set_mesh(mesh):
    compiled = jax.jit(run).lower(*arguments).compile()
print(json.dumps([compiled.memory_analysis().temp_size_in_bytes, compiled.as_text()]))
"""


def compiled(topology, axes, what):
    """Temporary bytes of a device, and the program: of the loss against these targets, or of a draw."""
    variables = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment = os.environ | variables | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", COMPILE, json.dumps([topology, axes, what])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def num_elements(shape):
    return math.prod(int(size) for size in shape.split(",") if size)


CHUNK = 1 << 26  # logits of a chunk
LOSSES = [
    ("v5e:2x2", "sparse"),
    ("v5e:2x2", "dense"),
    ("v5e:2x2", "drawn"),
    ("v5e:2x2", "labels"),
    ("v4:2x2x1", "sparse"),
    ("v5p:2x2x1", "labels"),
]


@functools.cache
def small_program(topology, what):
    return compiled(topology, [1, 2, 2, 1], what)


@pytest.mark.parametrize("what", ["sparse", "dense", "labels", "draw"])
def test_no_device_holds_the_logits_of_its_tokens(what):
    temporary_bytes, text = small_program("v5e:2x2", what)
    table, logits = 131_072 * 1152, 2 * 8192 * 131_072  # of one device: half of V, and both halves of its two rows
    arrays = {num_elements(shape) for shape in re.findall(r"\bf32\[([\d,]+)\]", text)}
    assert CHUNK in arrays
    assert max(arrays) < 1.05 * table < logits / 10  # its gradient, padded: whole on no device
    assert temporary_bytes < 4 * logits / 4
    assert "[262144,1152]" not in text


def of_logits(text):
    """(whether inside a fusion, instruction) of those that read or make an array of a chunk's logits."""
    module = hlo.read(text)
    fused = hlo.fused(module)
    for computation in module.computations.values():
        for one in computation.instructions.values():
            operands = [computation.instructions[name] for name in one.operands if name in computation.instructions]
            if any(shape.num_elements == CHUNK for x in (one, *operands) for shape in x.shapes):
                yield computation.name in fused, one


@pytest.mark.parametrize("topology, what", LOSSES)
def test_logits_are_neither_scattered_nor_gathered_nor_laid_out_anew(topology, what):
    found = list(of_logits(small_program(topology, what)[1]))
    assert not [one.name for _, one in found if one.opcode in ("scatter", "gather", "sort")]
    relayouts = ("copy", "copy-start", "transpose", "reshape", "convert")
    assert not [one.name for is_fused, one in found if not is_fused and one.opcode in relayouts]


@pytest.mark.parametrize("topology, what", LOSSES)
def test_the_gradient_of_the_logits_is_made_in_one_pass_and_stored_as_bfloat16_if_at_all(topology, what):
    stored = [
        one.opcode
        for is_fused, one in of_logits(small_program(topology, what)[1])
        if not is_fused and one.opcode in ("fusion", "custom-call") and ("bf16", CHUNK) in elements(one)
    ]
    expected = {"labels": [], "sparse": ["custom-call"], "dense": ["fusion"], "drawn": ["custom-call"]}
    assert stored == expected[what]


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_only_products_pass_over_the_logits_where_the_targets_are_labels(topology):
    """Of the logits, of the sum of their powers, of both gradients. The largest logit comes with the first."""
    passes = [one for is_fused, one in of_logits(small_program(topology, "labels")[1]) if not is_fused]
    passes = [one for one in passes if one.opcode not in ("get-tuple-element", "tuple", "bitcast", "opt-barrier")]
    assert [(one.opcode, "kind=kOutput" in one.attributes) for one in passes] == [("fusion", True)] * 4


def test_lists_are_drawn_by_two_kernels_without_a_sort_gather_or_scatter_or_change_of_layout():
    found = list(of_logits(small_program("v5e:2x2", "draw")[1]))
    whole = [(one.opcode, one.name) for is_fused, one in found if not is_fused and one.opcode not in ("tuple", "while")]
    moves = ("get-tuple-element", "parameter", "bitcast", "fusion")  # a fusion: the product that makes the logits
    kernels = [name.partition(".")[0] for opcode, name in whole if opcode == "custom-call"]
    assert sorted(kernels) == ["teacher_list", "teacher_summary"]
    assert not [one for one in whole if one[0] not in ("custom-call", *moves)]
    module = hlo.read(small_program("v5e:2x2", "draw")[1])
    slow = [
        one.name
        for computation in module.computations.values()
        for one in computation.instructions.values()
        if one.opcode in ("sort", "scatter", "gather", "reduce-window") and one.shapes[0].num_elements >= 4096
    ]
    assert not slow


def test_weights_are_drawn_once():
    calls = re.findall(r"%(teacher_\w+?)[.\d]* = .* custom-call\(", small_program("v5e:2x2", "drawn")[1])
    assert sorted(calls) == ["teacher_summary", "teacher_weights"]


def elements(instruction):
    return [(shape.dtype, shape.num_elements) for shape in instruction.shapes]


def test_chunks_exchange_tokens_and_never_the_table():
    _, text = compiled("v5e:4x4", [1, 4, 4, 1], "sparse")
    sent = r"= \(?\w+\[([\d,]*)\].* (?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    inside, outside = [], []
    for line in text.splitlines():
        if found := re.search(sent, line):
            (inside if "while/body" in line else outside).append(num_elements(found[1]))
    assert 0 < max(inside) <= 1024 * 1152  # hidden states of a chunk
    assert 0 < max(outside) < 1.05 * 65_536 * 1152
