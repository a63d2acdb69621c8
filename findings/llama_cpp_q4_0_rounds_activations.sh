#!/usr/bin/env bash
# llama.cpp's logits from a Q4_0 file are not those of the weights in it: it rounds activations to 8 bits as well.
#
# Natural guess: a Q4_0 file and its weights written out as float32 give the same logits up to float rounding, so that a
#   test of an exporter can demand 1e-5.
# Version: xllamacpp 2026.10.11549 (llama.cpp, prebuilt, on a CPU), gguf 0.19.0
# Seen: products with Q4_0 weights take the other operand in blocks of Q8_0. Next-token distributions of a toy:
#   float32, twice: log probabilities differ by at most 0.0e+00, KL 0.0e+00
#   float32 and Q4_0: log probabilities differ by at most 9.5e-02, KL 8.8e-07
#   unrounded and Q4_0: log probabilities differ by at most 1.8e+00, KL 6.6e-05
# Here: tests/interop/test_llama_cpp.py compares a Q4_0 file with our rounded weights, and allows for this. Set the
#   tolerance from the distance to the unrounded model.
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

LAYERS, WIDTH, HEADS, KEY_HEADS, HEAD, MLP, VOCAB = 8, 128, 4, 2, 32, 256, 512
MATRICES = {  # rows, columns
    "attn_q": (HEADS * HEAD, WIDTH),
    "attn_k": (KEY_HEADS * HEAD, WIDTH),
    "attn_v": (KEY_HEADS * HEAD, WIDTH),
    "attn_output": (WIDTH, HEADS * HEAD),
    "ffn_gate": (MLP, WIDTH),
    "ffn_up": (MLP, WIDTH),
    "ffn_down": (WIDTH, MLP),
}
NORMS = {"attn_norm": WIDTH, "post_attention_norm": WIDTH, "ffn_norm": WIDTH, "post_ffw_norm": WIDTH}
NORMS |= {"attn_q_norm": HEAD, "attn_k_norm": HEAD}
Q4_0 = gguf.GGMLQuantizationType.Q4_0

random = np.random.default_rng(0)
table = {"token_embd": random.normal(size=(VOCAB, WIDTH)) * 0.2, "output_norm": np.ones(WIDTH)}
matrices = {}
for layer in range(LAYERS):
    table |= {f"blk.{layer}.{name}": np.ones(size) for name, size in NORMS.items()}
    for name, shape in MATRICES.items():
        matrices[f"blk.{layer}.{name}"] = (random.normal(size=shape) / math.sqrt(shape[1])).astype(np.float32)
packed = {name: gguf.quants.quantize(matrix, Q4_0) for name, matrix in matrices.items()}
rounded = {name: gguf.quants.dequantize(codes, Q4_0) for name, codes in packed.items()}


def write(path, layers, raw_dtype):
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(LAYERS)
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
    for name, tensor in table.items():
        writer.add_tensor(f"{name}.weight", tensor.astype(np.float32))
    for name, tensor in layers.items():
        writer.add_tensor(f"{name}.weight", tensor, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def log_probs(layers, raw_dtype=None):
    """Of what comes after 40 tokens."""
    path = "toy.gguf"
    write(path, layers, raw_dtype)
    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel, options.warmup, options.verbosity = path, 256, 1, False, 0
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    prompt = [2, *np.random.default_rng(1).integers(260, VOCAB, 40).tolist()]
    answer = xllamacpp.Server(options).handle_completions(
        {"prompt": prompt, "n_predict": 1, "n_probs": VOCAB, "temperature": 0.0}
    )
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return np.asarray([entry["logprob"] for entry in sorted(top, key=lambda entry: entry["id"])])


def distance(p, q):
    """Largest difference of a log probability, and KL."""
    return float(np.abs(p - q).max()), float((np.exp(p) * (p - q)).sum())


q4_0, written_out, unrounded = log_probs(packed, Q4_0), log_probs(rounded), log_probs(matrices)
again = distance(written_out, log_probs({name: matrix.copy() for name, matrix in rounded.items()}))
same, other = distance(written_out, q4_0), distance(unrounded, q4_0)
for name, (largest, kl) in (("float32, twice", again), ("float32 and Q4_0", same), ("unrounded and Q4_0", other)):
    print(f"{name}: log probabilities differ by at most {largest:.1e}, KL {kl:.1e}")
if not again[0] < 1e-5 < 1e-3 < same[0] < other[0]:
    raise SystemExit("changed: a Q4_0 file answers as its weights in float32 do")
PYTHON
