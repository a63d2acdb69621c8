"""The trees that the JAX gemma library publishes: written here by Orbax's older API, as the published ones were."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gemma3_jax import sharding
from gemma3_jax.checkpoint import gemma_orbax, load_sharded, names
from gemma3_jax.model import config
from tests import toys

MODEL = toys.TOY


def leaves(model=MODEL):
    """Published name -> array, from the shapes of the gemma library's modules, not from our names table."""
    weights, tree = toys.hf_weights(model), {}
    heads = lambda x, num: x.reshape(num, model.head_dim, model.embed_dim).transpose(0, 2, 1)  # noqa: E731  (N,D,H)
    tree["embedder/input_embedding"] = weights["model.embed_tokens.weight"][: model.vocab_size]
    tree["final_norm/scale"] = weights["model.norm.weight"]
    for i in range(model.num_layers):
        at = lambda name, i=i: weights[f"model.layers.{i}.{name}.weight"]  # noqa: E731
        layer = f"layer_{i}"
        tree[f"{layer}/attn/q_einsum/w"] = heads(at("self_attn.q_proj"), model.num_heads)
        key_value = [heads(at(f"self_attn.{name}_proj"), model.num_kv_heads) for name in "kv"]
        tree[f"{layer}/attn/kv_einsum/w"] = np.stack(key_value)
        output = at("self_attn.o_proj").T.reshape(model.num_heads, model.head_dim, model.embed_dim)
        tree[f"{layer}/attn/attn_vec_einsum/w"] = output
        tree[f"{layer}/attn/_query_norm/scale"] = at("self_attn.q_norm")
        tree[f"{layer}/attn/_key_norm/scale"] = at("self_attn.k_norm")
        tree[f"{layer}/mlp/gating_einsum/w"] = np.stack([at("mlp.gate_proj"), at("mlp.up_proj")])
        tree[f"{layer}/mlp/linear/w"] = at("mlp.down_proj").T
        tree[f"{layer}/pre_attention_norm/scale"] = at("input_layernorm")
        tree[f"{layer}/post_attention_norm/scale"] = at("post_attention_layernorm")
        tree[f"{layer}/pre_ffw_norm/scale"] = at("pre_feedforward_layernorm")
        tree[f"{layer}/post_ffw_norm/scale"] = at("post_feedforward_layernorm")
    return tree


def stacked(tree, period):
    """Layers i, i + period, ... of the pattern's place i in one array, as the library's stack_params does."""
    out, stacks = {}, {}
    for name, x in tree.items():
        if not name.startswith("layer_"):
            out[name] = x
            continue
        layer, _, rest = name.removeprefix("layer_").partition("/")
        key = f"stacked_layers/attention_type_{int(layer) % period}/{rest}"
        stacks.setdefault(key, []).append((int(layer), x))
    return out | {key: np.stack([x for _, x in sorted(some, key=lambda item: item[0])]) for key, some in stacks.items()}


def nested(tree, root=("transformer",), bare_mlp=False):
    out = {}
    for name, x in tree.items():
        path = [*root, *name.split("/")]
        if bare_mlp and "mlp" in path:
            path.pop()
        node = out
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = x
    return out


def flat(tree):
    """One dict per module, its path a single key."""
    out = {}
    for name, x in tree.items():
        module, _, leaf = f"transformer/{name}".rpartition("/")
        out.setdefault(module, {})[leaf] = x
    return out


def save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


LAYOUTS = {
    "nested": lambda tree: nested(tree),
    "nested_as_flax_does": lambda tree: nested(tree, root=(), bare_mlp=True),
    "nested_under_params": lambda tree: nested(tree, root=("params",), bare_mlp=True),
    "flat": flat,
    "flat_stacked": lambda tree: flat(stacked(tree, 6)),
    "nested_stacked": lambda tree: nested(stacked(tree, 6)),
    "of_a_policy": lambda tree: nested(tree, root=("rlx_networks", "policy_network")),
}


@pytest.mark.parametrize(
    "layout",
    [pytest.param(layout, marks=[pytest.mark.slow] * (layout != "flat")) for layout in LAYOUTS],
)
def test_every_published_layout_is_read(layout, tmp_path):
    source = gemma_orbax.open_source(save(tmp_path / "ckpt", LAYOUTS[layout](leaves())), MODEL)
    params = load_sharded.load(source, sharding.make_mesh(data=2, seq=2))
    jax.tree.map(np.testing.assert_array_equal, params, toys.params(MODEL))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_is_written_is_the_nested_tree_of_the_library(dtype, tmp_path):
    """Read by Orbax's older API, as the library does, and compared with shapes and layouts of its modules."""
    read = []
    gemma_orbax.write(tmp_path / "ckpt", toys.source(MODEL), dtype, read.append)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "ckpt")
    expected = nested(leaves(), root=(), bare_mlp=True)
    expected = jax.tree.map(lambda x: x.astype(dtype or x.dtype), expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(dtype or "float32")}
    assert sum(read) == sum(leaf.nbytes for leaf in jax.tree.leaves(expected))
    params = load_sharded.load(gemma_orbax.open_source(tmp_path / "ckpt", MODEL), sharding.make_mesh())
    jax.tree.map(lambda ours, x: np.testing.assert_array_equal(ours, x.astype(ours.dtype)), params, toys.params(MODEL))


def test_vision_tensors_are_left_out_and_counted(tmp_path):
    tree = nested(leaves() | {"embedder/mm_input_projection/w": np.zeros((4, 24), np.float32)})
    tree["SigLiPFromPatches_0"] = {"siglip_encoder": {"pos_embedding": np.zeros((1, 4, 8), np.float32)}}
    path = save(tmp_path / "ckpt", tree)
    source = gemma_orbax.open_source(path, MODEL)
    assert source.notes == (f"{path}: text part only; 2 vision tensors left out",)


def test_a_published_size_is_recognized_by_its_shapes(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "SIZES", {"toy": MODEL})
    assert gemma_orbax.open_source(save(tmp_path / "a", flat(leaves()))).model == MODEL
    assert gemma_orbax.open_source(save(tmp_path / "b", flat(stacked(leaves(), 6)))).model == MODEL


def test_an_unpublished_size_asks_for_the_model(tmp_path):
    path = save(tmp_path / "ckpt", nested(leaves()))
    with pytest.raises(ValueError, match=r"ckpt has 8 layers and a table of shape \(96, 24\), .* --model=FILE"):
        gemma_orbax.open_source(path)


def test_a_tree_of_something_else_is_refused(tmp_path):
    tree = {"params": nested(leaves(), root=()), "step": 3}
    with pytest.raises(ValueError, match=r"ckpt: step is no array; it is not a published Gemma checkpoint"):
        gemma_orbax.open_source(save(tmp_path / "ckpt", tree), MODEL)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"layer_3/mlp/linear/w": None}, r"ckpt lacks tensor layer_3/mlp/linear/w"),
        ({"layer_8/mlp/linear/w": np.zeros(3)}, r"ckpt has an unknown tensor layer_8/mlp/linear/w"),
        (
            {"layer_3/mlp/linear/w": np.zeros((24, 40))},
            r"tensor layer_3/mlp/linear/w has shape \(24, 40\); .* \(40, 24\)",
        ),
        (
            {"layer_3/mlp/linear/w": np.zeros((40, 24), np.int32)},
            r"layer_3/mlp/linear/w is int32; it must be one of",
        ),
        ({"embedder/input_embedding": None}, r"ckpt lacks tensor embedder/input_embedding; it is not a published"),
    ],
)
def test_trees_that_do_not_fit_are_refused_by_name(change, text, tmp_path):
    tree = {name: x for name, x in (leaves() | change).items() if x is not None}
    with pytest.raises(ValueError, match=text):
        gemma_orbax.open_source(save(tmp_path / "ckpt", nested(tree)), MODEL)


def test_slots_of_one_tensor_are_read_together(tmp_path, monkeypatch):
    """A stacked tensor holds many layers: reading it again for each would multiply the traffic by their number."""
    source = gemma_orbax.open_source(save(tmp_path / "ckpt", nested(stacked(leaves(), 6))), MODEL)
    reads, load = [], gemma_orbax.ocp.load
    monkeypatch.setattr(gemma_orbax.ocp, "load", lambda *a: reads.append(1) or load(*a))
    for tensor in source.tensors.values():
        tensor.read()
    assert len(reads) == len(stacked(leaves(), 6)) < len(list(names.slots(MODEL)))
