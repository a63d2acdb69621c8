"""Low-rank adapters of a whole model: a nested dict of factors beside the frozen parameters that they are added to.

The factors of a matrix at a/b/c are at a/b/c/down and a/b/c/up, and stack the layers as the matrix does.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gemma3_jax import sharding
from gemma3_jax.model import config, lora, low_rank, parameters
from gemma3_jax.quant import formats, view


class Matrix(NamedTuple):
    """A matrix of attention or MLP, or a stack of them."""

    stacked: str  # the letters of its first dims: "LL"
    dims: str  # of the others: "DNH"
    contracted: str  # those of them that its product sums over: "D"
    shape: tuple[int, ...]

    def sizes(self) -> dict[str, int]:
        """The size of each dim of one matrix."""
        return dict(zip(self.dims, self.shape[len(self.stacked) :], strict=True))


def matrices(model: config.Config) -> dict[str, Matrix]:
    """Every matrix of attention and MLP by its path a/b/c."""
    kinds = {kind: contracted for kind, contracted in view.CONTRACTED.items() if kind != view.TABLE}
    dims, found = _by_name(parameters.dims(model)), {}
    for name, leaf in _by_name(parameters.shapes(model)).items():
        if (kind := "/".join(name.split("/")[-2:])) in kinds:
            letters = "".join(dims[name])
            own = letters.lstrip("L")
            found[name] = Matrix(letters.removesuffix(own), own, kinds[kind], leaf.shape)
    return found


def targets(model: config.Config, settings: lora.Lora) -> dict[str, Matrix]:
    """Those of the matrices that get factors.

    Raises: ValueError for a pattern that matches none, or a rank over the smaller side of one of them.
    """
    known = matrices(model)
    for pattern in settings.targets:
        if not any(re.search(pattern, name) for name in known):
            raise ValueError(f"lora.targets has {pattern!r}, which matches no matrix; they are {', '.join(known)}")
    chosen = {
        name: matrix for name, matrix in known.items() if any(re.search(pattern, name) for pattern in settings.targets)
    }
    for name, matrix in chosen.items():
        sizes = matrix.sizes()
        num_inputs = math.prod(size for letter, size in sizes.items() if letter in matrix.contracted)
        num_outputs = math.prod(size for letter, size in sizes.items() if letter not in matrix.contracted)
        if settings.rank > min(num_inputs, num_outputs):
            raise ValueError(
                f"lora.rank is {settings.rank}, but {name} has {num_inputs} inputs and {num_outputs} outputs; make it "
                f"at most {min(num_inputs, num_outputs)}, or leave that matrix out of lora.targets"
            )
    return chosen


def dims(model: config.Config, settings: lora.Lora) -> dict:
    """The letters of every factor's dims, as tuples. Raises: ValueError as `targets`."""
    letters = {}
    for name, matrix in targets(model, settings).items():
        down, up = low_rank.factor_dims(matrix.dims, matrix.contracted)
        letters[f"{name}/down"], letters[f"{name}/up"] = tuple(matrix.stacked + down), tuple(matrix.stacked + up)
    return _nested(letters)


def shapes(model: config.Config, settings: lora.Lora) -> dict:
    """Shape and dtype of every factor. Raises: ValueError as `targets`."""
    known, leaves = matrices(model), {}
    for name, letters in _by_name(dims(model, settings)).items():
        matrix = known[name.rpartition("/")[0]]
        sizes = matrix.sizes() | {"C": settings.rank}
        own = (sizes[letter] for letter in letters[len(matrix.stacked) :])
        leaves[name] = jax.ShapeDtypeStruct((*matrix.shape[: len(matrix.stacked)], *own), jnp.float32)
    return _nested(leaves)


def shardings(model: config.Config, settings: lora.Lora, mesh: sharding.AnyMesh) -> dict:
    """The sharding of every factor at rest: as that of any parameter."""
    return sharding.parameter_shardings(dims(model, settings), shapes(model, settings), mesh)


def count(model: config.Config, settings: lora.Lora) -> int:
    """The number of parameters in the factors."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(model, settings)))


def init(model: config.Config, settings: lora.Lora, key: jax.Array, mesh: jax.sharding.Mesh) -> dict:
    """Fresh factors, the same on any mesh. `up` is 0, so that the model is the base; `down` is as PEFT draws it."""
    known = targets(model, settings)

    def draw(number: int, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        matrix, _, factor = name.rpartition("/")
        if factor == "up":
            return jnp.zeros(leaf.shape, leaf.dtype)
        bound = math.prod(leaf.shape[len(known[matrix].stacked) : -1]) ** -0.5
        return jax.random.uniform(jax.random.fold_in(key, number), leaf.shape, leaf.dtype, -bound, bound)

    def make() -> dict:
        leaves = _by_name(shapes(model, settings)).items()
        return _nested({name: draw(number, name, leaf) for number, (name, leaf) in enumerate(leaves)})

    return jax.jit(make, out_shardings=shardings(model, settings, mesh))()


def freeze(model: config.Config, settings: lora.Lora, dtype: DTypeLike, params: dict) -> dict:
    """The base, from the float32 parameters of the model: what products read in `dtype`, or packed if settings say so.

    Norms stay float32, as their scales are used so. To be traced.
    Raises: ValueError naming a matrix that does not consist of whole blocks.
    """
    known = matrices(model)

    def one(name: str, x: jax.Array) -> jax.Array | low_rank.Packed:
        if name in known and settings.base_format:
            matrix, format = known[name], settings.base_format
            contracted = tuple(map(matrix.dims.index, matrix.contracted))
            formats.check_shape(name, tuple(matrix.sizes().values()), format, contracted)
            return low_rank.pack(format, x, matrix.stacked + matrix.dims, matrix.contracted)
        return x.astype(dtype) if name in known or name == view.TABLE else x

    return _map_with_name(one, params)


def base_shapes(model: config.Config, settings: lora.Lora, dtype: DTypeLike) -> dict:
    """Shape and dtype of what `freeze` returns. Raises: ValueError as it does."""
    return jax.eval_shape(functools.partial(freeze, model, settings, dtype), parameters.shapes(model))


def base_shardings(model: config.Config, settings: lora.Lora, dtype: DTypeLike, mesh: sharding.AnyMesh) -> dict:
    """The sharding of every part of the base at rest."""
    known, plain = matrices(model), _by_name(parameters.shardings(model, mesh))

    def one(name: str, leaf) -> jax.sharding.NamedSharding | low_rank.Packed:
        if not _is_packed(leaf):
            return plain[name]
        return low_rank.packed_shardings(leaf, known[name].stacked + known[name].dims, known[name].contracted, mesh)

    return _map_with_name(one, base_shapes(model, settings, dtype))


def attach(model: config.Config, settings: lora.Lora, factors: Mapping, base: Mapping) -> dict:
    """The parameters to bind: those of the base, its matrices frozen, and with their factors beside them."""
    known, by_name = matrices(model), _by_name(factors)

    def one(name: str, leaf) -> jax.Array | low_rank.FrozenWeight:
        if name not in known:
            return leaf
        down, up = (by_name.get(f"{name}/{factor}") for factor in ("down", "up"))
        return low_rank.FrozenWeight(leaf, None if down is None else low_rank.Factors(down, up, settings.scale))

    return _map_with_name(one, base)


def _is_packed(leaf: object) -> bool:
    return isinstance(leaf, low_rank.Packed)


def _by_name(tree: Mapping) -> dict[str, object]:
    """The leaves of a nested dict by their paths a/b/c."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: not isinstance(node, Mapping))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _nested(by_name: Mapping[str, object]) -> dict:
    """The nested dict whose leaves have these paths."""
    tree: dict = {}
    for name, leaf in by_name.items():
        *parents, last = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = leaf
    return tree


def _map_with_name(function: Callable, tree: Mapping) -> dict:
    return _nested({name: function(name, leaf) for name, leaf in _by_name(tree).items()})
