"""`python -m gemma3_jax VERB ...`."""

from gemma3_jax.cli import program

if __name__ == "__main__":
    program.run()
