"""Data of the demo: the Python standard library, as code and as its documentation.

    python -m gemma3_jax prepare --config=experiments/demo_data.py --output=data/demo

Two CPU cores, a quarter of a minute, no network. Expect about 4 million tokens (0.6 of documentation, 3.6 of code),
rows of 512 and of 4,096 tokens that are more than 99 % full, and a mixture with as many characters of documentation as
of code.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "sources": {"library": {"kind": "python", "bucket": "library"}},
            "length": {"min_characters": 200},
            "tokenizer": {"size": 2_048, "max_characters": 4_000_000},
            # UniMax divides this budget evenly: 1.5 million characters of each, less than an epoch of the smaller.
            "mixture": {"library": {"budget_characters": 3_000_000}},
            "seq_lens": (512, 4_096),  # tokens, for the stages pretrain and long_context
        }
    )
