"""The same toy in Transformers: written from its documentation, sharing no code with our config.json."""

import numpy as np
import torch
import transformers

from gemma3_jax.model import config


def build(model: config.Config, weights: dict[str, np.ndarray]) -> transformers.Gemma3ForCausalLM:
    """Gemma3ForCausalLM of this shape, holding `weights`."""
    scale = {"rope_type": "linear", "factor": model.rope_scale} if model.rope_scale != 1 else {"rope_type": "default"}
    hf_config = transformers.Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        vocab_size=model.vocab_size + model.vocab_padding,
        hidden_size=model.embed_dim,
        intermediate_size=model.mlp_dim,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        sliding_window=model.sliding_window,
        query_pre_attn_scalar=round(model.query_scale**-2),
        rms_norm_eps=model.norm_epsilon,
        rope_parameters={
            "full_attention": {"rope_theta": model.rope_base_global, **scale},
            "sliding_attention": {"rope_theta": model.rope_base_local, "rope_type": "default"},
        },
        layer_types=[
            "full_attention" if model.is_global(layer) else "sliding_attention" for layer in range(model.num_layers)
        ],
    )
    hf_config._attn_implementation = "eager"
    hf_model = transformers.Gemma3ForCausalLM(hf_config).eval()
    state = {name: torch.from_numpy(x) for name, x in weights.items()}
    missing, unexpected = hf_model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    hf_model.tie_weights()
    return hf_model


def logits(hf_model: transformers.Gemma3ForCausalLM, tokens: np.ndarray) -> np.ndarray:
    """Float32 logits for whole rows."""
    with torch.no_grad():
        return hf_model(torch.from_numpy(tokens).long()).logits.float().numpy()
