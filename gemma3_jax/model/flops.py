"""Floating-point operations of training, by formula: what MFU is a share of."""

from gemma3_jax.model import config


def per_token(model: config.Config, row_length: int) -> float:
    """Operations of a forward and a backward pass for a token, averaged over a row that is one document.

    Two for each multiply-add of a matrix forward, four backward; nothing for what is computed twice to save memory, for
    norms, or for the look-up of embeddings. The tied head is counted. A query reads (S + 1) / 2 keys on average on a
    global layer, and W - W (W - 1) / 2S on a local one.
    Source: the usual 6 N D with attention added; the survey's table of these sizes (recipe, section G).
    """
    per_layer = model.width * model.head_width * (2 * model.num_heads + 2 * model.num_key_heads)
    per_layer += 3 * model.width * model.mlp_width
    matrices = model.num_layers * per_layer + model.vocab_size * model.width
    num_global = sum(map(model.is_global, range(model.num_layers)))
    keys_global = (row_length + 1) / 2
    window = min(model.window, row_length)
    keys_local = window - window * (window - 1) / (2 * row_length)
    keys = num_global * keys_global + (model.num_layers - num_global) * keys_local
    return 6.0 * matrices + 12.0 * model.num_heads * model.head_width * keys
