"""An example to copy: several sources, buckets and languages, with every filter on.

    python -m gemma3_jax prepare --config=experiments/mixed_data.py:/data/raw --output=/data/mixed

The argument is the directory of the raw data. Gemma 3's mixture is not published; the numbers are an example. A
compressed file is read by one worker: split large ones.
"""

import ml_collections


def get_config(raw: str = "raw") -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "sources": {  # read in the order of their names; of duplicates the first stays
                "books": {"kind": "text", "paths": (f"{raw}/books/*.txt",), "bucket": "prose"},
                "chats": {"paths": (f"{raw}/chats.jsonl",), "turns_field": "messages", "bucket": "chat"},
                "code": {
                    "kind": "parquet",
                    "paths": (f"{raw}/code/*.parquet",),
                    "bucket": "code",
                    "language": "python",
                },
                "pairs": {  # {"en": "...", "is": "..."}: parallel text has a separate bucket
                    "paths": (f"{raw}/en-is.jsonl.gz",),
                    "fields": ("en", "is"),
                    "bucket": "parallel",
                    "language": "en-is",
                },
                "web": {"paths": (f"{raw}/web/*.jsonl",), "language_field": "lang", "bucket": "prose"},
            },
            "length": {"min_characters": 200, "max_characters": 1_000_000},
            "safety": {"word_list": f"{raw}/unsafe.txt", "max_hits": 2},
            "quality": {"score": "heuristic", "floor": 0.1},
            "decontamination": {"paths": (f"{raw}/evaluation/*.jsonl",), "fields": ("question", "answer")},
            "mixture": {
                "prose": {"weight": 0.6, "budget_characters": 2_000_000_000, "max_epochs": 4.0},
                "code": {"weight": 0.3},
                "parallel": {"weight": 0.05},
                "chat": {"weight": 0.05},
            },
            "tokenizer": {"size": 32_768},
            "seq_lens": (2_048, 16_384),
        }
    )
