"""The splash path, interpreted on CPUs, equals dense; each device fetches only the keys that it needs."""

import dataclasses
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from gemma3_jax import sharding
from gemma3_jax.model import attention, execution, masks, parameters, splash
from tests import toys
from tests.model.test_attention import HEAD_DIM, NUM_HEADS, inputs
from tests.test_sharding import collectives


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 128 tokens, so that rows of a few hundred have several."""
    monkeypatch.setattr(splash, "LARGEST_BLOCK", 128)


def packed_layout(num_tokens, images=False):
    """Two rows whose documents end within blocks, across them, and before padding."""
    lengths = [[num_tokens // 3, num_tokens // 2], [num_tokens // 5, 1, num_tokens // 10, num_tokens // 2]]
    segments, positions = (
        jnp.concatenate(parts) for parts in zip(*(toys.packed(row, num_tokens) for row in lengths), strict=True)
    )
    index = jnp.broadcast_to(jnp.arange(num_tokens), segments.shape)
    image = jnp.where((index % 37 > 7) & (segments > 0), 1 + index // 37, 0)  # across documents, blocks and shards
    return masks.TokenLayout(segments, positions, image.astype(jnp.int32) if images else None)


@functools.partial(jax.jit, static_argnums=(2, 3))
def attended(arrays, layout, sliding_window, path):
    """The output, and gradients of query, key and value."""
    weight = jnp.asarray(toys.noise("weight", arrays[0].shape))

    def loss(arrays):
        out = attention.attend(*arrays, layout, sliding_window, path)
        return jnp.sum(out * weight), out

    (_, out), grads = jax.value_and_grad(loss, has_aux=True)(arrays)
    return out, *grads


def assert_equals_dense(arrays, layout, sliding_window, mesh=None):
    expected = attended(arrays, layout, sliding_window, "dense")
    with jax.set_mesh(mesh or sharding.make_mesh()):
        result = attended(arrays, layout, sliding_window, "splash")
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)  # float32 sums of up to 512 products of size 2, in another order
    assert min(np.abs(result[0]).max(), np.abs(result[3]).max()) > 0.1  # a window of one has no other gradient
    assert all((x[layout.segments == 0] == 0).all() for x in result)


slow = pytest.mark.slow


# Row lengths at, below and between multiples of a block; windows below a block, above one, and above the row.
@pytest.mark.parametrize(
    "num_tokens, sliding_window, num_kv_heads, images",
    [
        (300, None, 2, False),
        (384, 150, 1, True),
        pytest.param(256, None, 4, True, marks=slow),
        pytest.param(300, 129, 4, False, marks=slow),
        pytest.param(40, 7, 2, False, marks=slow),
        pytest.param(256, 1, 2, True, marks=slow),
        pytest.param(500, 900, 2, True, marks=slow),
    ],
)
def test_splash_equals_dense_forward_and_backward(num_tokens, sliding_window, num_kv_heads, images):
    assert_equals_dense(inputs(num_tokens, num_kv_heads), packed_layout(num_tokens, images), sliding_window)


@pytest.mark.parametrize(
    "axes, num_tokens, sliding_window, num_kv_heads, images",
    [
        ({"seq": 4}, 512, 200, 2, True),  # the window reaches over two shards before a query's own, and two after
        ({"data": 2, "seq": 2, "model": 2}, 256, None, 2, False),
        pytest.param({"seq": 8}, 512, 100, 2, False, marks=slow),  # shards shorter than the smallest block
        pytest.param({"seq": 8}, 512, 2000, 2, True, marks=slow),
        pytest.param({"seq": 8}, 512, None, 1, True, marks=slow),
        pytest.param({"data": 2, "seq": 2, "model": 2}, 256, 60, 2, False, marks=slow),
        pytest.param({"seq": 2, "model": 2}, 400, 60, 1, False, marks=slow),  # `model` splits the query heads alone
        pytest.param({"model": 4}, 256, None, 2, False, marks=slow),  # and here neither
        pytest.param({"replica": 4, "seq": 2}, 301, 60, 2, False, marks=slow),  # no axis divides rows or tokens
    ],
)
def test_every_mesh_gives_the_numbers_of_one_device(axes, num_tokens, sliding_window, num_kv_heads, images):
    mesh, layout = sharding.make_mesh(**axes), packed_layout(num_tokens, images)
    assert_equals_dense(inputs(num_tokens, num_kv_heads), layout, sliding_window, mesh)


@pytest.mark.parametrize("sliding_window, images", [(None, False), (None, True), (70, False), (70, True)])
def test_blocks_are_visible_where_any_of_their_tokens_are(sliding_window, images):
    segments, positions = map(jnp.asarray, toys.packed([100, 28, 1, 300, 83], 512))
    index = jnp.arange(512)[None]
    layout = masks.TokenLayout(segments, positions, jnp.where(index % 90 > 20, 1 + index // 90, 0) if images else None)
    spans = jax.tree.map(lambda x: x[0], masks.spans(layout, sliding_window))
    seen = np.asarray(masks.visible(layout, layout, sliding_window)[0])
    blocks = seen.reshape(8, 64, 8, 64).any(axis=(1, 3))
    np.testing.assert_array_equal(splash.visible_blocks(spans, 64, 8), blocks)
    assert blocks.sum() <= 25  # of the 36 that a causal mask has


def test_visits_list_the_blocks_and_repeat_the_last():
    is_visible = jnp.asarray([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
    indices, counts = splash.visits(is_visible, 3)
    assert indices.tolist() == [[0, 0, 0], [0, 1, 2], [2, 3, 3], [0, 0, 0]]
    assert counts.tolist() == [[True, False, False], [True] * 3, [True, True, False], [False] * 3]


class Recorded:
    """Stands for the kernel, and records its arguments."""

    made = None

    def __init__(self, *infos, **options):
        Recorded.made = infos, options

    def __call__(self, query, *_):
        return query


@pytest.mark.parametrize("sliding_window", [None, 200])
def test_the_kernels_arguments_are_those_of_jax_for_the_same_mask(sliding_window, monkeypatch):
    """Tests the parts of JAX that it does not promise to keep: the arguments of a kernel, and its masks."""
    size, block = 512, splash.block_size(512)
    if sliding_window is None:
        mask = splash_attention_mask.CausalMask((size, size))
    else:
        mask = splash_attention_mask.LocalMask((size, size), (sliding_window - 1, 0), 0)
    sides = [field.name for field in dataclasses.fields(splash_attention_kernel.BlockSizes) if "block" in field.name]
    blocks = splash_attention_kernel.BlockSizes(**{name: block for name in sides if "use" not in name})
    expected = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * NUM_HEADS),
        block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=True, residual_checkpoint_name="attended",
    )  # fmt: skip

    monkeypatch.setattr(splash_attention_kernel, "SplashAttentionKernel", Recorded)
    reach = None if sliding_window is None else (sliding_window - 1, 0)
    query, key, value = (x[0].swapaxes(0, 1) for x in inputs(size, 2))
    spans = jax.tree.map(lambda x: x[0], masks.spans(masks.whole_rows(jnp.zeros((1, size), jnp.int32)), sliding_window))
    splash.one_row(query, key, value, spans, None, reach=reach, block=block)

    infos, options = Recorded.made
    assert options.keys() == expected.kwargs.keys()
    assert {**options, "mask_function": None} == {**expected.kwargs, "mask_function": None}
    allowed = options["mask_function"](infos[0].q_sequence[:, None], jnp.arange(size)[None])
    np.testing.assert_array_equal(allowed, mask[:, :])
    theirs = expected.fwd_mask_info, expected.dq_mask_info, expected.dkv_mask_info
    for ours, their, keys_first in zip(infos, theirs, (False, False, True), strict=True):
        assert ours.block_mask.shape == their.block_mask.shape
        assert pairs(ours, keys_first) == pairs(their, keys_first)


def pairs(info, keys_first):
    """(index of a block, index of the other side's block) of all that are visited."""
    blocks, counts = (x[0].T if keys_first else x[0] for x in (info.data_next, info.block_mask))
    return {(row, int(blocks[row, step])) for row, step in np.argwhere(np.asarray(counts) > 0)}


def test_the_interface_of_the_kernel_is_as_it_was():
    fields = ("data_next", "mask_next", "block_mask", "partial_mask_blocks", "q_sequence", "is_dynamic_mask")
    assert mask_info.MaskInfo._fields == fields
    assert splash_attention_kernel.SegmentIds._fields == ("q", "kv")
    arguments = inspect.signature(splash_attention_kernel.SplashAttentionKernel).parameters
    assert list(arguments) == ["fwd_mask_info", "dq_mask_info", "dkv_mask_info", "kwargs"]


def test_local_layers_fetch_a_halo_and_gather_no_row():
    model = dataclasses.replace(toys.TOY, num_layers=3, sliding_window=100)
    execute = execution.Execution(attention="splash", remat="full")
    ops = collectives(model, sharding.make_mesh(seq=4), execute, 2, 1024)
    keys = [shape for _, _, shape in ops if len(shape) == 4]  # the ids and rows of the lookup have fewer dims
    assert keys and [shape for shape in keys if 1024 in shape] == []
    halo = ("collective-permute", "f32", (2, 128, 2, HEAD_DIM))  # a block of keys, or of values
    assert halo in ops and {kind for kind in ops if kind[0] == "collective-permute"} == {halo}


@slow
def test_global_layers_gather_keys_in_the_dtype_of_activations():
    model = dataclasses.replace(toys.TOY, num_layers=1, num_local_per_global=0)
    execute = execution.Execution(attention="splash", remat="full", dtype="bfloat16")
    ops = collectives(model, sharding.make_mesh(seq=2), execute, 2, 256)
    keys = {(dtype, shape) for kind, dtype, shape in ops if kind == "all-gather" and len(shape) == 4}
    assert keys == {("bf16", (2, 256, 2, HEAD_DIM))}
    assert ("all-gather", "s32", (2, 256)) in ops  # and segments


def program_and_saved(attention_path, remat):
    """A gradient's program as text, and how many numbers its forward pass saves for the backward pass."""
    model = dataclasses.replace(toys.TOY, num_layers=6)
    shapes, tokens = parameters.shapes(model), jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def loss(params, tokens):
        execute = execution.Execution(attention=attention_path, remat=remat)
        return jnp.sum(parameters.bind(model, params)(tokens, masks.whole_rows(tokens), execute=execute))

    _, pullback = jax.eval_shape(lambda p, t: jax.vjp(lambda p: loss(p, t), p), shapes, tokens)
    return str(jax.make_jaxpr(jax.grad(loss))(shapes, tokens)), sum(x.size for x in jax.tree.leaves(pullback))


@slow
def test_keep_attention_saves_what_the_backward_kernels_need_once():
    _, of_dense = program_and_saved("dense", "keep_attention")
    program, of_splash = program_and_saved("splash", "keep_attention")
    assert of_splash - of_dense == 6 * 2 * 256 * NUM_HEADS  # of each layer, token and head: the log-sum-exp
    again, _ = program_and_saved("splash", "full")
    layer_bodies = 2
    kernels = lambda text, phase: len(re.findall(rf"name=splash_mha_{phase}", text))  # noqa: E731
    assert [kernels(program, phase) for phase in ("fwd", "dq", "dkv")] == [layer_bodies] * 3
    assert [kernels(again, phase) for phase in ("fwd", "dq", "dkv")] == [2 * layer_bodies, layer_bodies, layer_bodies]
    of_local, _ = program_and_saved("splash", "keep_global")
    assert [kernels(of_local, phase) for phase in ("fwd", "dq", "dkv")] == [3, 2, 2]


def test_block_divides_the_row_and_is_what_the_kernel_takes(monkeypatch):
    monkeypatch.undo()
    assert [splash.block_size(n) for n in (1, 128, 200, 640, 1024, 1100, 8192)] == [128, 128, 256, 128, 512, 384, 512]


def test_a_window_too_long_for_its_row_is_refused():
    arrays = [jax.ShapeDtypeStruct((1, 1 << 17, 1, 8), jnp.float32)] * 3
    attend = lambda layout, *arrays: splash.attend(*arrays, layout, 1 << 15)  # noqa: E731
    with pytest.raises(ValueError, match=r"sliding_window is 32768 tokens in a row of 131072 on a device.*'banded'"):
        jax.eval_shape(attend, masks.TokenLayout(*[jax.ShapeDtypeStruct((1, 1 << 17), jnp.int32)] * 2), *arrays)


def mesh_elsewhere(platform, kind, **axes):
    """A mesh of devices that are not present."""
    sizes = {axis: axes.get(axis, 1) for axis in sharding.AXES}
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 4, abstract_device=device)


def kernels_of(num_tokens, sliding_window, path, mesh):
    layout = masks.whole_rows(jnp.zeros((2, num_tokens), jnp.int32))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs(num_tokens, 2)]
    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.make_jaxpr(lambda *arrays: attention.attend(*arrays, layout, sliding_window, path))(*shapes)
    return re.findall(r"interpret=(\w+)", str(program))


@pytest.mark.parametrize("sliding_window", [None, 50])
def test_auto_takes_splash_on_tpus_even_from_a_cpu_and_never_on_cpus(sliding_window):
    tpu, cpu = mesh_elsewhere("tpu", "TPU v5 lite", seq=2), mesh_elsewhere("cpu", "cpu", seq=2)
    assert kernels_of(512, sliding_window, "auto", tpu) == ["False"]
    assert kernels_of(512, sliding_window, "auto", cpu) == []
    assert kernels_of(512, sliding_window, "splash", cpu) == ["True"]
    assert kernels_of(128, sliding_window, "auto", tpu) == []  # 64 tokens on each device


def test_splash_on_a_platform_without_its_kernel_is_refused():
    with pytest.raises(ValueError, match=r"attention is 'splash' on platform 'gpu'.*choose 'auto', 'dense' or "):
        kernels_of(512, None, "splash", mesh_elsewhere("gpu", "NVIDIA H100"))
