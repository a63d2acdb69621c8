"""`python -m gemma3_jax VERB ...`."""

from gemma3_jax import cli

if __name__ == "__main__":
    cli.run()
