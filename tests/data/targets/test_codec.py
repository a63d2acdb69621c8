"""The bytes of one row's targets, and fewer samples out of many."""

import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.data.targets import codec, subsample
from gemma3_jax.distill import noise, settings, targets
from gemma3_jax.losses import vocab_parallel
from tests.data.targets import synthetic


def by_id(decoded: dict, token: int, first: int = 0) -> dict[int, int]:
    """How often each id comes among the slots of a token from `first` on."""
    ids, counts = np.unique(decoded["ids"][token, first:], return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("num_samples", [8, 300])
@pytest.mark.parametrize("estimator", settings.ESTIMATORS)
def test_targets_come_back(estimator, num_samples):
    samples = settings.Samples(estimator=estimator, num_samples=num_samples)
    row, original = synthetic.row_of(3), synthetic.targets_of(3, samples)
    decoded = codec.scatter(codec.decode(synthetic.stored(3, samples)), row["loss_mask"])
    assert decoded.keys() == original.keys() and all(decoded[name].dtype == original[name].dtype for name in original)
    masked = row["loss_mask"]
    for name in (*codec.NUMBERS, "best_id"):
        np.testing.assert_array_equal(decoded[name][masked], original[name][masked])
    first = codec.num_weighted_slots(samples)
    np.testing.assert_array_equal(decoded["ids"][masked, :first], original["ids"][masked, :first])
    # bfloat16 keeps 8 bits
    np.testing.assert_allclose(decoded["weights"][masked, :first], original["weights"][masked, :first], rtol=2**-8)
    np.testing.assert_array_equal(decoded["weights"][masked, first:], original["weights"][masked, first:])
    for token in np.flatnonzero(masked):
        assert by_id(decoded, token, first) == by_id(original, token, first)
    for array in decoded.values():
        assert array[masked].any() and not array[~masked].any()


@pytest.mark.parametrize("estimator", settings.ESTIMATORS)
def test_whole_distributions_come_back(estimator):
    """As many samples as ids: nothing weighs alike, whatever the estimator."""
    samples, row = settings.Samples(estimator=estimator, num_samples=50), synthetic.row_of(0)
    original = synthetic.targets_of(0, settings.Samples(estimator="gumbel_ht", num_samples=30))
    decoded = codec.decode(codec.encode(row, original, samples))
    slots = np.argsort(-original["weights"], axis=1) if estimator == "top_k" else np.arange(30)[None]
    for name in ("ids", "weights"):
        expected = np.take_along_axis(original[name], np.broadcast_to(slots, (synthetic.T, 30)), axis=1)[
            row["loss_mask"]
        ]
        np.testing.assert_allclose(decoded[name], expected, rtol=2**-8 if name == "weights" else 0)


def test_a_row_of_which_nothing_is_learned_comes_back_as_zeros():
    for samples in (synthetic.TOP_8, settings.Samples(estimator="systematic", num_samples=8)):
        row = synthetic.row_of(0) | {"loss_mask": np.zeros(synthetic.T, bool)}
        record = codec.encode(row, synthetic.targets_of(0, samples), samples)
        decoded = codec.scatter(codec.decode(record), row["loss_mask"])
        assert len(record) == codec.HEADER.size
        assert decoded["ids"].shape == (synthetic.T, 8) and not any(array.any() for array in decoded.values())


def test_an_id_that_takes_every_slot_is_stored_once():
    samples = settings.Samples(estimator="systematic", num_samples=256)
    original = synthetic.targets_of(0, samples) | {"ids": np.full((synthetic.T, 256), synthetic.V - 1, np.int32)}
    record = codec.encode(synthetic.row_of(0), original, samples)
    num_tokens = synthetic.row_of(0)["loss_mask"].sum()
    assert len(record) == codec.HEADER.size + num_tokens * (15 + 4 + 2 + 3 + 1)
    assert (codec.decode(record)["ids"] == synthetic.V - 1).all()


@pytest.mark.parametrize(
    ("estimator", "num_samples", "num_bytes"),
    [
        ("top_k", 256, 15 + 256 * 5),
        ("gumbel_ht", 256, 15 + 256 * 5),
        ("stratified", 256, 15 + 128 * 5 + 4 + 2 + 128 * 4),
        ("systematic", 256, 15 + 4 + 2 + 256 * 4),
        ("sampled_counts", 12, 15 + 4 + 2 + 12 * 4),
        ("systematic", 257, 15 + 4 + 2 + 257 * 5),
    ],
)
def test_the_bytes_of_a_token_are_known_before(estimator, num_samples, num_bytes):
    samples = settings.Samples(estimator=estimator, num_samples=num_samples)
    assert codec.bytes_per_token(samples) == num_bytes
    original = synthetic.targets_of(0, samples)
    original["ids"] = np.tile(np.arange(num_samples, dtype=np.int32), (synthetic.T, 1))  # none comes twice
    record, num_tokens = codec.encode(synthetic.row_of(0), original, samples), synthetic.row_of(0)["loss_mask"].sum()
    assert len(record) == codec.HEADER.size + num_tokens * num_bytes
    assert len(synthetic.stored(0, samples)) <= len(record)


def test_a_teacher_that_is_not_finite_is_refused():
    for name in ("weights", "captured_mass"):
        original = synthetic.targets_of(0, synthetic.TOP_8)
        original[name][np.argmax(synthetic.row_of(0)["loss_mask"])] = np.nan
        with pytest.raises(ValueError, match=f"the teacher's {name} are not all finite; evaluate its checkpoint"):
            codec.encode(synthetic.row_of(0), original, synthetic.TOP_8)


def cut(estimator: str, num_samples: int, num_wanted: int, number: int = 0) -> tuple[dict, dict]:
    """All that is stored of the masked tokens of a row, and fewer samples of it."""
    whole = codec.decode(synthetic.stored(0, settings.Samples(estimator=estimator, num_samples=num_samples)))
    return whole, subsample.take(whole, estimator, num_wanted, number)


@pytest.mark.parametrize("estimator", ["top_k", "sampled"])
def test_a_cut_of_these_keeps_the_first_and_shares_their_weight_out_anew(estimator):
    whole, few = cut(estimator, 16, 4)
    np.testing.assert_array_equal(few["ids"], whole["ids"][:, :4])
    np.testing.assert_allclose(few["weights"].sum(axis=1), 1, rtol=1e-6)
    ratio = few["weights"] / whole["weights"][:, :4]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-5)
    share = whole["weights"][:, :4].sum(axis=1) / whole["weights"].sum(axis=1)
    np.testing.assert_allclose(few["captured_mass"], whole["captured_mass"] * share, rtol=1e-6)
    if estimator == "top_k":
        assert (whole["weights"][:, :4].min(axis=1) >= whole["weights"][:, 4:].max(axis=1)).all()


def test_top_k_is_stored_heaviest_first():
    original = synthetic.targets_of(0, synthetic.TOP_8)
    turned = original | {"ids": original["ids"][:, ::-1], "weights": original["weights"][:, ::-1]}
    assert codec.encode(synthetic.row_of(0), turned, synthetic.TOP_8) == synthetic.stored(0, synthetic.TOP_8)


@pytest.mark.parametrize("estimator", ["top_k", "sampled"])
def test_a_cut_of_these_is_what_fewer_samples_would_have_been(estimator):
    def drawn(num_samples):
        samples = settings.Samples(estimator=estimator, num_samples=num_samples)
        tokens = jnp.arange(synthetic.T)[None]
        logits = 3 * jax.random.normal(jax.random.key(0), (1, synthetic.T, 96))
        draw = functools.partial(targets.draw, vocab_parallel.Shard(96), samples=samples)
        decoded = jax.jit(draw)(logits, tokens, noise.token_words(1, tokens, tokens))
        masked = {name: np.asarray(array[0]) for name, array in decoded._asdict().items()}
        return codec.encode(row | {"loss_mask": np.ones(synthetic.T, bool)}, masked, samples)

    row = synthetic.row_of(0)
    whole, few = (codec.decode(drawn(num_samples)) for num_samples in (32, 8))
    decoded = subsample.take(whole, estimator, 8, 0)
    np.testing.assert_array_equal(decoded["ids"], few["ids"])
    for name in ("weights", "captured_mass"):  # bfloat16 rounds once more
        np.testing.assert_allclose(decoded[name], few[name], rtol=2**-6)


def test_what_is_drawn_one_after_the_other_stays_in_that_order_though_it_weighs_alike():
    samples = settings.Samples(estimator="sampled", num_samples=8)
    original = synthetic.targets_of(0, samples) | {"weights": np.full((synthetic.T, 8), 1 / 8, np.float32)}
    decoded = codec.decode(codec.encode(synthetic.row_of(0), original, samples))
    np.testing.assert_array_equal(decoded["ids"], original["ids"][synthetic.row_of(0)["loss_mask"]])


@pytest.mark.parametrize("estimator", ["systematic", "sampled_counts"])
def test_a_cut_of_counts_is_right_on_average_and_always_the_same_for_a_row(estimator):
    whole, _ = cut(estimator, 64, 16)
    cuts = [cut(estimator, 64, 16, number)[1] for number in range(400)]
    assert all((few["weights"] == 1 / 16).all() and np.isnan(few["captured_mass"]).all() for few in cuts)
    np.testing.assert_array_equal(cuts[7]["ids"], cut(estimator, 64, 16, 7)[1]["ids"])
    for token in range(3):
        for name, count in by_id(whole, token).items():
            share, decoded = count / 64, [by_id(few, token).get(name, 0) / 16 for few in cuts]
            # Four standard errors: of 16 drawn from 64 without putting back, which bounds systematic's too.
            error = math.sqrt(share * (1 - share) / 16 * 48 / 63 / 400)
            assert abs(np.mean(decoded) - share) < 4 * error
            if estimator == "systematic":  # what a coarser grid finds: the count to within one
                assert max(abs(np.array(decoded) * 16 - share * 16)) < 1


@pytest.mark.parametrize(
    ("estimator", "num_stored", "num_wanted", "vocab_size", "why"),
    [
        ("top_k", 8, 9, synthetic.V, "no more can be had than were stored; set num_samples to 8, or teach with 9"),
        (
            "stratified",
            8,
            4,
            synthetic.V,
            "fewer samples of stratified have other weights, and what those depend on is not stored",
        ),
        ("gumbel_ht", 8, 4, synthetic.V, "fewer samples of gumbel_ht have other weights"),
        ("gumbel_ht_normalized", 8, 4, synthetic.V, "fewer samples of gumbel_ht_normalized have other weights"),
        (
            "systematic",
            8,
            3,
            synthetic.V,
            "every n-th can be taken, so it must divide 8; set num_samples to 8, or teach with 3",
        ),
        ("sampled", 800, 8, 800, "they are whole distributions, of which nothing was sampled, and only top_k"),
        ("top_k", 8, 4, synthetic.V, ""),
        ("sampled", 8, 3, synthetic.V, ""),
        ("sampled_counts", 8, 3, synthetic.V, ""),
        ("systematic", 8, 4, synthetic.V, ""),
        ("top_k", 800, 8, 800, ""),
        ("stratified", 8, 8, 800, ""),
    ],
)
def test_which_cuts_are_refused(estimator, num_stored, num_wanted, vocab_size, why):
    samples = settings.Samples(estimator=estimator, num_samples=num_stored)
    if not why:
        return subsample.check(samples, num_wanted, vocab_size)
    with pytest.raises(ValueError, match=f"num_samples is {num_wanted}, and {num_stored} are stored: .*{why}"):
        subsample.check(samples, num_wanted, vocab_size)


def test_a_row_is_read_fast():
    """512 tokens of 256 samples: four such rows, a step of a toy, take half a second."""
    samples = settings.Samples(num_samples=256)
    row = {name: np.resize(array, 512) for name, array in synthetic.row_of(0).items()} | {
        "loss_mask": np.ones(512, bool)
    }
    record = codec.encode(row, synthetic.targets_of(0, samples, 512), samples)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        codec.scatter(codec.decode(record), row["loss_mask"])
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.02  # 0.5 ms measured: far off, on a machine that others share
