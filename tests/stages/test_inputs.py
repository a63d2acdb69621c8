"""What a stage begins with fits its config, and can be trained."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from gemma3_jax import settings
from gemma3_jax.stages import inputs
from gemma3_jax.tokenizer import tokenizer_json, training
from gemma3_jax.train import settings as train_settings
from tests import texts, toys
from tests.checkpoint.test_hf import make_directory


def open_init_from(directory, model, rope_scale=0.0, tokenizer=None):
    optimizer = train_settings.AdamW(warmup_steps=0)
    stage = settings.StageEntry(num_steps=1, seq_len=8, batch_size=1, rope_scale=rope_scale, optimizer=optimizer)
    run = settings.Train(model=model, init_from=str(directory), stage_order=("a",), stages={"a": stage})
    return inputs.open_init_from(settings.resolve(run, "a"), {"tokenizer.model": tokenizer or texts.tokenizer_model()})


def test_a_context_length_of_its_own_is_not_lost_by_training(tmp_path):
    directory = make_directory(tmp_path / "hf", max_position_embeddings=8192)
    with pytest.raises(ValueError, match=r"has context_length 8192, config\.model\.context_length is 131072; make"):
        open_init_from(directory, toys.TOY)
    for length in (8192, 16_384):  # set, to the same or to another
        open_init_from(directory, dataclasses.replace(toys.TOY, context_length=length))
    open_init_from(directory, toys.TOY, rope_scale=16.0)  # an extension, of a length of its own
    open_init_from(make_directory(tmp_path / "published", max_position_embeddings=131_072), toys.TOY)


def directory_with_tokenizer(path, *, as_json=False, added=None):
    model = dataclasses.replace(toys.TOY, vocab_size=texts.TOKENIZER_SIZE + 8, vocab_padding=0)
    directory = make_directory(path, toys.hf_weights(model), model)
    if as_json:
        (directory / "tokenizer.json").write_text(tokenizer_json.write(texts.tokenizer()))
    else:
        (directory / "tokenizer.model").write_bytes(texts.tokenizer_model())
    if added:
        (directory / "added_tokens.json").write_text(json.dumps(added))
    return directory, model


@pytest.mark.parametrize(
    "options", [{}, {"as_json": True}, {"added": {"<new>": texts.TOKENIZER_SIZE}}], ids=["model", "json", "added"]
)
def test_data_of_the_same_ids_fits_whatever_file_they_are_from(options, tmp_path):
    open_init_from(*directory_with_tokenizer(tmp_path / "hf", **options))


@pytest.mark.parametrize("as_json", [False, True])
def test_data_of_another_tokenizer_is_refused_with_both(as_json, tmp_path):
    directory, model = directory_with_tokenizer(tmp_path / "hf", as_json=as_json)
    other = training.train(texts.library()[16:32], texts.TOKENIZER_SIZE)
    with pytest.raises(
        ValueError,
        match=r"the data of a was made with another tokenizer than that of config\.init_from .*hf: id \d+ is .* in the "
        r"first and .* in the second; prepare the data with --tokenizer=.*hf$",
    ):
        open_init_from(directory, model, tokenizer=other)


@pytest.mark.parametrize("rope_scale", [1.0, 8.0])
def test_a_directory_without_a_context_length_fits_a_model_without_one(rope_scale, tmp_path):
    model = dataclasses.replace(toys.TOY, rope_scale=rope_scale)
    open_init_from(make_directory(tmp_path / "hf", model=model, max_position_embeddings=None), model)


def test_a_vocabulary_with_added_tokens_says_why_it_does_not_fit(tmp_path):
    model = dataclasses.replace(toys.TOY, vocab_size=90, vocab_padding=6)
    directory = make_directory(tmp_path / "hf", toys.hf_weights(model), model)
    (directory / "added_tokens.json").write_text('{"<new>": 91}')
    with pytest.raises(
        ValueError,
        match=r"vocab_size 96, config\.model\.vocab_size is 90; make them one \(.*'<new>' was added with id 91",
    ):
        open_init_from(directory, model)
    open_init_from(directory, dataclasses.replace(model, vocab_size=96, vocab_padding=0))
    optimizer = train_settings.AdamW(warmup_steps=0)
    stage = settings.StageEntry(num_steps=1, seq_len=8, batch_size=1, optimizer=optimizer, loss="distill")
    run = settings.Train(model=model, teacher=str(directory), stage_order=("a",), stages={"a": stage})
    with pytest.raises(ValueError, match=r"has 96 ids, .* is 90; both must have one tokenizer \(.*'<new>' was added"):
        inputs.open_teacher(settings.resolve(run, "a"), "", print)


def test_a_stage_of_another_rope_scale_has_the_context_length_of_that(tmp_path):
    model = dataclasses.replace(toys.TOY, context_length=8192)
    entry = settings.StageEntry(num_steps=9, seq_len=8, batch_size=1, optimizer=train_settings.AdamW(warmup_steps=0))
    stages = {"a": entry, "b": dataclasses.replace(entry, rope_scale=16.0)}
    run = settings.Train(model=model, stage_order=("a", "b"), stages=stages)
    assert [settings.resolve(run, name).model.context_length for name in "ab"] == [8192, 0]


def test_parameters_that_are_not_finite_are_refused_by_name():
    params = {"layer": {"w": jnp.ones((2, 3)), "v": jnp.ones(4, jnp.bfloat16)}}
    inputs.check_finite(params, "config.init_from somewhere")
    for bad in (jnp.nan, -jnp.inf):
        params["layer"]["w"] = jnp.ones((2, 3)).at[1, 1].set(bad)
        with pytest.raises(ValueError, match="config.init_from somewhere has numbers in layer/w that are not finite"):
            inputs.check_finite(params, "config.init_from somewhere")
