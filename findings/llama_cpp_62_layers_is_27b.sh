#!/usr/bin/env bash
# llama.cpp recognizes Gemma 3 27B by its 62 layers, and gives any other model with 62 layers 27B's query scale.
#
# Natural guess: the metadata of a GGUF file decides how it runs, and a layer that adds nothing changes nothing.
# Version: xllamacpp 2026.10.11549 (llama.cpp, prebuilt), gguf 0.19.0
# Seen: no key of a GGUF file holds Gemma's query scale: it is key_length^-1/2, or with 62 layers (embedding_length /
#   head_count)^-1/2. Largest change of a log probability when a last layer is added whose outputs are zero:
#   60 -> 61 layers 0.0000, 61 -> 62 layers 8.1, with query norms times 0.707 0.02
# Here: gemma3_jax/checkpoint/gguf_config.py multiplies the query norms by the ratio where a model's scale is not the
#   one that llama.cpp takes. Other writers should do so, or avoid 62 layers.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
cd "$work"
venv/bin/python -I - <<'PYTHON'
import math

import gguf
import numpy as np
import xllamacpp

WIDTH, HEADS, KEY_HEADS, HEAD, MLP, VOCAB = 64, 4, 2, 32, 128, 512
MATRICES = {  # rows, columns
    "attn_q": (HEADS * HEAD, WIDTH),
    "attn_k": (KEY_HEADS * HEAD, WIDTH),
    "attn_v": (KEY_HEADS * HEAD, WIDTH),
    "attn_output": (WIDTH, HEADS * HEAD),
    "ffn_gate": (MLP, WIDTH),
    "ffn_up": (MLP, WIDTH),
    "ffn_down": (WIDTH, MLP),
}
NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")


def tensors(num_layers, idle=(), query_norm=2.0):
    """Of a layer in `idle`, what is added to the stream is zero."""
    random, made = np.random.default_rng(0), {}
    made["token_embd"] = random.normal(size=(VOCAB, WIDTH))
    made["output_norm"] = np.ones(WIDTH)
    for layer in range(num_layers):
        for name, shape in MATRICES.items():
            matrix = random.normal(size=shape) / math.sqrt(shape[1])
            made[f"blk.{layer}.{name}"] = matrix * (layer not in idle or name not in ("attn_output", "ffn_down"))
        made |= {f"blk.{layer}.{name}": np.ones(WIDTH) for name in NORMS}
        made[f"blk.{layer}.attn_q_norm"] = np.full(HEAD, query_norm)
        made[f"blk.{layer}.attn_k_norm"] = np.full(HEAD, 2.0)
    return made


def write(path, num_layers, made):
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(num_layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(16)
    writer.add_rope_freq_base(1e6)
    controls, in_bytes = ["<pad>", "<eos>", "<bos>", "<unk>"], [f"<0x{byte:02X}>" for byte in range(256)]
    others = [f"t{number}" for number in range(VOCAB - 260)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*controls, *in_bytes, *others])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([3, 3, 3, 2] + [6] * 256 + [1] * len(others))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    for name, tensor in made.items():
        writer.add_tensor(f"{name}.weight", tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def log_probs(num_layers, made):
    """Of what comes after 40 tokens."""
    path = "toy.gguf"
    write(path, num_layers, made)
    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel, options.warmup, options.verbosity = path, 256, 1, False, 0
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    prompt = [2, *np.random.default_rng(1).integers(260, VOCAB, 40).tolist()]
    answer = xllamacpp.Server(options).handle_completions(
        {"prompt": prompt, "n_predict": 1, "n_probs": VOCAB, "temperature": 0.0}
    )
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return np.asarray([entry["logprob"] for entry in sorted(top, key=lambda entry: entry["id"])])


def change(before, after):
    return float(np.abs(before - after).max())


sixty = change(log_probs(60, tensors(60)), log_probs(61, tensors(61, idle=(60,))))
straight = log_probs(61, tensors(61))
idle = change(straight, log_probs(62, tensors(62, idle=(61,))))
ratio = math.sqrt(WIDTH // HEADS / HEAD)  # of the scale that is meant to the one that is taken
mended = change(straight, log_probs(62, tensors(62, idle=(61,), query_norm=2.0 * ratio)))
print(f"60 -> 61 layers {sixty:.4f}, 61 -> 62 layers {idle:.1f}, with query norms times {ratio:.3f} {mended:.2f}")
if not (sixty < 1e-3 and idle > 1 and mended < 0.1):
    raise SystemExit("changed: a 62nd layer that adds nothing changes nothing, or it is another number of layers")
PYTHON
