"""Fine-tuning of a checkpoint on your own documents or chats, on whatever devices there are.

    python -m gemma3_jax prepare --input=chats.jsonl --tokenizer=gemma-3-1b-it --output=data
    python -m gemma3_jax train --config=experiments/finetune.py --config.init_from=gemma-3-1b-it --config.data=data \
        --workdir=run

The model and its RoPE scale are those of `init_from`, which may be a Hugging Face directory, a GGUF file or a run. The
length of the sequences is that of the data, the number of steps follows from `epochs`, and the peak learning rate from
the width of the model (settings.TRAINED_LR). Of documents every token is learned, of chats what the model says.

Hardware: 16 bytes a parameter for the state (4.3 GB for 270M, 16 GB for 1B), and the activations, divided by the number
of devices; docs/tpu_pods.md has more. Nothing here is published: all of it is our choice. It has not been run on a
released checkpoint, as none was at hand; a test runs docs/getting_started.md, with this file, on a toy.
"""


def get_config() -> dict:
    tune = {
        "batch_size": 8,  # sequences; a multiple of the number of devices
        "epochs": 2.0,
        "optimizer": {
            "peak_lr": 0.0,  # by the width of the model
            "warmup_fraction": 0.05,
            "decay": "cosine",
            "final_lr_fraction": 0.1,
            "weight_decay": 0.0,  # what was learned is not pulled to zero
        },
    }
    return {
        "stage_order": ("tune",),
        "stages": {"tune": tune},
        "checkpoints": {"every_steps": 0, "keep_last": 2},  # every 10 minutes, as by default
    }
