"""The model and data of the training benchmarks: a fixed toy Gemma 3 on the Python standard library.

6 layers, D 256, 4 query heads and 1 key head of 64, F 1,024, V 2,048, window 128, sequences of 512, AdamW, bfloat16
activations, full remat. MaxText 0.2.5 trains it at 2,047 tokens/s on two CPU cores, and at 1,636 over four virtual
devices.
"""

import json
import pathlib

from gemma3_jax import settings
from gemma3_jax.data import dataset
from gemma3_jax.data.prepare import builtin, pipeline
from gemma3_jax.data.prepare import settings as prepare_settings
from gemma3_jax.model import config, execution
from gemma3_jax.train import settings as train_settings

SEQ_LEN = 512
MODEL = config.Config(
    num_layers=6,
    embed_dim=256,
    mlp_dim=1_024,
    num_heads=4,
    num_kv_heads=1,
    head_dim=64,
    sliding_window=128,
    query_scale=64**-0.5,
    rope_scale=1.0,
    vocab_size=2_048,
)


def make_data(directory: pathlib.Path, num_files: int | None) -> dataset.Dataset:
    """The dataset of the first `num_files` modules; None: of all."""
    texts = [row["text"] for file in builtin.files()[:num_files] for row in builtin.rows(file)]
    (directory / "library.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare_config = prepare_settings.PrepareConfig(
        sources={"library": prepare_settings.SourceConfig(paths=(str(directory / "library.jsonl"),))},
        seq_lens=(SEQ_LEN,),
        duplicates=prepare_settings.DuplicatesConfig(near=False),
        tokenizer=prepare_settings.TokenizerConfig(size=MODEL.vocab_size, max_characters=3_000_000),
    )
    pipeline.run(prepare_config, str(directory / "data"))
    return dataset.open_dataset(directory / "data")


def recipe(data: dataset.Dataset, batch_size: int, num_steps: int, *, num_devices: int = 1) -> settings.Train:
    """The config of a run with one stage on that data, with batches sharded over `num_devices` devices."""
    stage = settings.StageEntry(
        num_steps=num_steps,
        seq_len=SEQ_LEN,
        batch_size=batch_size,
        optimizer=train_settings.AdamW(peak_lr=1e-3),
    )
    return settings.Train(
        model=MODEL,
        data=str(data.path),
        mesh=settings.Mesh(data=num_devices),
        execution=execution.Execution(dtype="bfloat16", remat="full"),
        stage_order=("pretrain",),
        stages={"pretrain": stage},
    )
