"""GGUF files for tests: of a toy model, and changed as another program would write them."""

import dataclasses

import gguf
import jax
import numpy as np

from gemma3_jax.checkpoint import encoding, gguf_file
from tests import texts, toys

# Every product sums over whole blocks; 24 rows of the table have no piece.
MODEL = dataclasses.replace(
    toys.TOY, embed_dim=32, mlp_dim=64, head_dim=16, query_scale=0.25, vocab_size=texts.TOKENIZER_SIZE + 24
)
FLOAT32 = encoding.StoragePlan("float32", "float32")


def write(path, model=MODEL, plan=FLOAT32, params=None):
    target = path.with_name("toy.gguf")  # by which it calls itself
    params = jax.tree.map(np.asarray, params or toys.params(model))  # no compiled slice for each shape of a layer
    gguf_file.write(path, model, params, plan, texts.tokenizer(), target=target)
    return path


def read(path) -> dict[str, np.ndarray]:
    """The tensors as the package gguf reads them, float32."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }


def rewrite(path, content, tmp_path, *, keys=None, tensors=None, tokenizer=False):
    """The file with other keys (None: without them) and other tensors, by the package gguf; without a tokenizer."""
    (tmp_path / "original.gguf").write_bytes(content)
    reader = gguf.GGUFReader(tmp_path / "original.gguf")
    writer = gguf.GGUFWriter(path, (keys or {}).get("general.architecture", "gemma3"))
    for key, field in reader.fields.items():
        is_left_out = key.startswith("GGUF.") or (key.startswith("tokenizer.") and not tokenizer)
        if not is_left_out and key != "general.architecture" and key not in (keys or {}):
            writer.add_key_value(key, field.contents(), *field.types[:2])
    for key, value in (keys or {}).items():
        if value is not None and key != "general.architecture":
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    stored = {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors} | (tensors or {})
    for name, some in stored.items():
        if some is not None:
            writer.add_tensor(name, some[0], raw_dtype=some[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Types of ggml -> where a block holds scales (float16), each with a value that keeps weights small.
_SCALES = {
    "Q4_1": {0: 4e-3, 2: -0.03},
    "Q5_0": {0: 2e-3},
    "IQ4_NL": {0: 3e-4},
    "Q4_K": {0: 1e-4, 2: 8e-4},
    "Q6_K": {208: 3e-5},
}


def blocks(
    kind: str, shape: tuple[int, int], seed: int = 0, *, factor: float = 1.0
) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """A matrix of random weights in one of ggml's types, as bytes; scales differ from block to block."""
    type_ = gguf.GGMLQuantizationType[kind]
    size, num_bytes = gguf.GGML_QUANT_SIZES[type_]
    draw = np.random.default_rng(seed)
    x = draw.integers(0, 256, (shape[0] * shape[1] // size, num_bytes), np.uint8)
    for start, scale in _SCALES[kind].items():
        x[:, start : start + 2] = (factor * scale * draw.uniform(0.5, 1, (len(x), 1))).astype(np.float16).view(np.uint8)
    return x.reshape(shape[0], -1), type_
