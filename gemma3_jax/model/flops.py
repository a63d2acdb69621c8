"""Floating-point operations of training, by formula: what MFU is a share of."""

from gemma3_jax.model import config


def per_token(model: config.Config, seq_len: int) -> float:
    """Operations of a forward and a backward pass for a token, averaged over a row that is one document.

    Two for each multiply-add of a matrix forward, four backward; nothing for what is computed twice to save memory, for
    norms, or for the look-up of embeddings. The tied head is counted. A query reads (S + 1) / 2 keys on average on a
    global layer, and W - W (W - 1) / 2S on a local one.
    Source: the usual 6 N D with attention added; the survey's table of these sizes (recipe, section G).
    """
    per_layer = model.embed_dim * model.head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    per_layer += 3 * model.embed_dim * model.mlp_dim
    matrices = model.num_layers * per_layer + model.vocab_size * model.embed_dim
    num_global = sum(map(model.is_global, range(model.num_layers)))
    keys_global = (seq_len + 1) / 2
    sliding_window = min(model.sliding_window, seq_len)
    keys_local = sliding_window - sliding_window * (sliding_window - 1) / (2 * seq_len)
    keys = num_global * keys_global + (model.num_layers - num_global) * keys_local
    return 6.0 * matrices + 12.0 * model.num_heads * model.head_dim * keys
