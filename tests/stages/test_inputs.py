"""What a stage reads is refused by name if it cannot be trained with."""

import jax.numpy as jnp
import pytest

from gemma3_jax.stages import inputs


def test_parameters_that_are_not_finite_are_refused_by_name():
    params = {"layer": {"w": jnp.ones((2, 3)), "v": jnp.ones(4, jnp.bfloat16)}}
    inputs.check_finite(params, "config.init_from somewhere")
    for bad in (jnp.nan, -jnp.inf):
        params["layer"]["w"] = jnp.ones((2, 3)).at[1, 1].set(bad)
        with pytest.raises(ValueError, match="config.init_from somewhere has numbers in layer/w that are not finite"):
            inputs.check_finite(params, "config.init_from somewhere")
