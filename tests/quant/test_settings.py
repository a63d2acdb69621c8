import pytest

from gemma3_jax.quant import settings


def test_nothing_is_rounded_unless_asked_for():
    assert settings.Quant() == settings.Quant(format="", embedding="float16")


def test_an_embedding_alone_is_not_rounded():
    with pytest.raises(ValueError, match=r"embedding is 'q8_0', but format is ''; name the format of the matrices"):
        settings.Quant(embedding="q8_0")


def test_an_unknown_format_says_which_there_are():
    with pytest.raises(ValueError, match=r"format is 'q5_1'; it must be '' or one of int4, q4_0, sfp8, q8_0"):
        settings.Quant(format="q5_1")


def test_an_unknown_embedding_says_which_there_are():
    with pytest.raises(ValueError, match=r"embedding is 'q4_0'; it must be one of float32, bfloat16, float16, q8_0"):
        settings.Quant(format="q4_0", embedding="q4_0")
