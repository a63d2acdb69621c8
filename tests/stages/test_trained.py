"""What trains in a stage with adapters: one step on every mesh, of every loss, of every way to compute."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import settings, sharding
from gemma3_jax.data import stream
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.losses import next_token, soft_targets
from gemma3_jax.model import adapters, config, execution, parameters
from gemma3_jax.model import lora as model_lora
from gemma3_jax.stages import step as stage_step
from gemma3_jax.stages import trained
from gemma3_jax.train import program
from tests import toys
from tests.model.test_adapters import merged, noisy

# A local and a global layer: each kind of layer is one more to compile.
MODEL = dataclasses.replace(toys.TOY, num_layers=2, num_local_per_global=1, vocab_size=512, embed_dim=32, mlp_dim=64)
ROWS, TOKENS, SAMPLES = 4, 32, 8
LORA = model_lora.Lora(rank=4, alpha=8.0)
DISTILL = {"loss": "distill", "samples": distill_settings.Samples(num_samples=SAMPLES)}
EXACT = execution.Execution(dtype="float32", remat="none")


def stage(lora=LORA, execute=EXACT, **changes) -> settings.StageConfig:
    entry = settings.StageEntry(num_steps=4, seq_len=TOKENS, batch_size=ROWS, **changes)
    run = settings.Train(model=MODEL, lora=lora, execution=execute, stage_order=("only",), stages={"only": entry})
    return settings.resolve(run, "only")


def make_rows() -> stream.Rows:
    tokens = toys.tokens(MODEL, ROWS, TOKENS + 1)
    ones = np.ones((ROWS, TOKENS), np.int32)
    positions = np.broadcast_to(np.arange(TOKENS, dtype=np.int32), ones.shape)
    row_ids = np.broadcast_to(np.arange(ROWS, dtype=np.int32)[:, None], ones.shape)
    return stream.Rows(tokens[:, :-1], tokens[:, 1:], ones.astype(bool), ones, positions, row_ids)


def make_targets() -> soft_targets.SparseTargets:
    ids = toys.tokens(MODEL, ROWS, TOKENS * SAMPLES, seed=2).reshape(ROWS, TOKENS, SAMPLES)
    floats = np.abs(toys.noise("floats", (ROWS, TOKENS)))
    weights = np.full(ids.shape, 1 / SAMPLES, np.float32)
    return soft_targets.SparseTargets(ids, weights, floats, -floats, floats, ids[..., 0])


def take(config, mesh, *, teacher=None):
    """The state, and what is logged, after two steps, once it is sure that nothing frozen has changed."""
    made = stage_step.make(config, mesh, np.ones(MODEL.vocab_size, np.int32), teacher_model=teacher and MODEL)
    shardings = parameters.shardings(MODEL, mesh)
    frozen = {trained.BASE: trained.freeze(config, mesh, jax.device_put(toys.params(MODEL), shardings))}
    if teacher:
        frozen["teacher"] = jax.device_put(toys.params(MODEL, seed=5), shardings)
    before = jax.device_get(frozen)
    batch = make_rows()
    if config.loss == "distill" and not teacher:
        batch = stream.DistillBatch(batch, make_targets())
    batch = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), batch, made.batch_shapes)
    state, step = made.begin(trained.fresh(config, mesh)), made.jitted()
    with jax.set_mesh(mesh):
        hyperparameters = made.place_hyperparameters()
        state, first = step(state, frozen, hyperparameters, batch)
        state, second = step(state, frozen, hyperparameters, batch)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(frozen))
    assert second["loss"] < first["loss"]
    return jax.device_get((state, second))


@functools.cache
def on_one_device(**changes):
    return take(stage(**changes), sharding.make_mesh())


def assert_close(got, expected):
    (state, logged), (other, other_logged) = got, expected
    assert float(logged["loss"]) == pytest.approx(float(other_logged["loss"]), rel=1e-5)
    assert float(logged["gradient_norm"]) == pytest.approx(float(other_logged["gradient_norm"]), rel=1e-4)
    # Adam divides a gradient by its size: where that is rounding, so is the whole update of 3e-4.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, other.params)


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "seq": 2, "model": 2},
        pytest.param({"data": 4}, marks=pytest.mark.slow),
        pytest.param({"seq": 4}, marks=pytest.mark.slow),
        pytest.param({"replica": 2, "model": 4}, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_takes_the_step_of_one_device(sizes):
    assert_close(take(stage(), sharding.make_mesh(**sizes)), on_one_device())


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "keep_attention"])
def test_rematerialization_changes_nothing(remat):
    execute = execution.Execution(dtype="float32", remat=remat)
    assert_close(take(stage(execute=execute), sharding.make_mesh(data=2)), on_one_device())


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_batch():
    assert_close(take(stage(grad_accum_steps=2), sharding.make_mesh()), on_one_device())


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [None, "beside"])
def test_both_kinds_of_distillation_train_the_factors(teacher):
    changes = DISTILL | ({"teacher": "start"} if teacher else {"targets": "stored"})
    state, _ = take(stage(**changes), sharding.make_mesh(data=2, seq=2), teacher=teacher)
    assert set(state.params) == {"periods"}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["q4_0", "int4"])
def test_a_packed_base_takes_the_same_step_on_a_mesh(format):
    execute = execution.Execution(dtype="float32", remat="full")
    config = stage(lora=dataclasses.replace(LORA, base_format=format), execute=execute)
    one, many = (take(config, mesh) for mesh in (sharding.make_mesh(), sharding.make_mesh(data=2, seq=2, model=2)))
    assert_close(many, one)
    assert abs(float(one[1]["loss"]) - float(on_one_device()[1]["loss"])) > 1e-4  # it is another model


def test_gradients_of_the_factors_are_those_of_autodiff_through_merged_weights():
    """The step's own loss, differentiated by JAX through base + scale * (down @ up) of every layer."""
    config, mesh, rows = stage(), sharding.make_mesh(), jax.tree.map(jnp.asarray, make_rows())
    params, factors = toys.params(MODEL), noisy(LORA, MODEL)
    made = trained.make(config, mesh)
    loss = next_token.make(MODEL, EXACT, num_bytes=np.ones(MODEL.vocab_size, np.int32))

    def beside(factors):
        return loss(made.view_params(factors, {trained.BASE: params}), {}, rows)[0]

    ours = jax.jit(jax.grad(beside))(factors)
    through_matrices = jax.jit(jax.grad(lambda params: loss(params, {}, rows)[0]))(merged(LORA, factors, params, MODEL))
    for name, matrix in adapters.targets(MODEL, LORA).items():
        got, pair, grad = (find(tree, name) for tree in (ours, factors, through_matrices))
        for index in np.ndindex(*matrix.shape[: len(matrix.stacked)]):
            down, up = (np.asarray(pair[factor][index]) for factor in ("down", "up"))
            flat = np.asarray(grad[index]).reshape(-1, up[0].size) * LORA.scale
            expected_down = (flat @ up.reshape(LORA.rank, -1).T).reshape(down.shape)
            expected_up = (down.reshape(-1, LORA.rank).T @ flat).reshape(up.shape)
            for factor, expected in (("down", expected_down), ("up", expected_up)):
                np.testing.assert_allclose(got[factor][index], expected, atol=2e-4 * np.abs(expected).max())


def find(tree, name):
    return functools.reduce(lambda node, key: node[key], name.split("/"), tree)


@pytest.mark.parametrize("size", ["1b", "4b", "12b", "27b"])
@pytest.mark.parametrize("base_format", ["", "int4"])
def test_the_state_of_adapters_is_a_fifth_of_full_training_s_and_a_sixth_with_packed_weights(size, base_format):
    """Parameters, both moments and the base in bfloat16, of rank 16."""

    def num_bytes(lora) -> int:
        run = settings.Train(
            model=config.SIZES[size],
            lora=lora,
            stage_order=("only",),
            stages={"only": settings.StageEntry(num_steps=4, seq_len=8192, batch_size=8)},
        )
        made = stage_step.make(settings.resolve(run, "only"), sharding.make_mesh(data=8), np.ones(1 << 18, np.int32))
        return program.bytes_per_device((made.state_shapes(), made.frozen_shapes))

    full, adapted = (num_bytes(lora) for lora in (model_lora.Lora(), model_lora.Lora(rank=16, base_format=base_format)))
    assert adapted < full / (6 if base_format else 5)


@pytest.mark.slow
def test_nothing_is_reduced_for_a_matrix_that_is_frozen():
    """Of seven matrices a layer one has factors: the compiled step sums gradients of no other."""
    mesh = sharding.make_mesh(data=2)
    compiled = {}
    for lora in (model_lora.Lora(), dataclasses.replace(LORA, targets=("attention/query",))):
        made = stage_step.make(stage(lora=lora), mesh, np.ones(MODEL.vocab_size, np.int32))
        compiled[lora.rank] = made.lower().compile()
    full, adapted = (one.as_text().count(" reduce-scatter(") for one in (compiled[0], compiled[4]))
    num_bodies = 2  # of a local and of a global layer
    assert full - adapted >= (7 - 2) * num_bodies, (adapted, full)
    assert compiled[4].cost_analysis()["flops"] < 0.75 * compiled[0].cost_analysis()["flops"]
