"""Model FLOPs of training, by formula: the numerator of MFU."""

from gemma3_jax.model import config


def per_token(model: config.Config, seq_len: int, num_factors: int | None = None) -> float:
    """FLOPs of a forward and a backward pass for one token, averaged over a row that is one document.

    A multiply-add of a matrix counts 2 forward and 4 backward. The tied head is counted; rematerialization, norms and
    the embedding lookup are not. A query reads (S + 1) / 2 keys on average on a global layer, and W - W (W - 1) / 2S on
    a local one. `num_factors`: the parameters of adapters, if they alone train: then the gradients of the matrices, 2
    of the 6, are not computed.
    Source: the usual 6 N D with attention added.
    """
    per_layer = model.embed_dim * model.head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    per_layer += 3 * model.embed_dim * model.mlp_dim
    matrices = model.num_layers * per_layer + model.vocab_size * model.embed_dim
    num_global = sum(map(model.is_global, range(model.num_layers)))
    keys_global = (seq_len + 1) / 2
    sliding_window = min(model.sliding_window, seq_len)
    keys_local = sliding_window - sliding_window * (sliding_window - 1) / (2 * seq_len)
    keys = num_global * keys_global + (model.num_layers - num_global) * keys_local
    trained = 6.0 * matrices if num_factors is None else 4.0 * matrices + 6.0 * num_factors
    return trained + 12.0 * model.num_heads * model.head_dim * keys
