"""Prefill and decode speed against Transformers on torch, with the same weights and the same ids, in one run.

    python experiments/benchmarks/decode.py [--prompt=512] [--new=128] [--rows=1,8] [--rounds=3]

Needs the extra [interop]. The model is the benchmarks' toy (toy.py) in float32, with greedy decoding on the CPU. The
time of prefill is that of completions of one token; the time of decoding is the additional time of longer completions;
both are of the fastest round. On global layers prefill grows with the square of the prompt and decoding with its
length; on local layers neither grows beyond the window. One more line for each published size has the bytes of the KV
cache of a 32K-token sequence, and the bytes it would have if all layers were global.
"""

import argparse
import json
import pathlib
import platform
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import toy
import transformers

from gemma3_jax import sharding
from gemma3_jax.checkpoint import hf
from gemma3_jax.evals import weight_bytes
from gemma3_jax.inference import sampler, sampling
from gemma3_jax.model import config, kv_cache, parameters

CONTEXT = 32_768


def best_seconds(generate, num_new: int, rounds: int) -> tuple[float, float, list]:
    """Seconds for one new token and for `num_new`, after a warm-up of each, and the ids."""
    generate(1)
    ids, seconds = generate(num_new), {1: [], num_new: []}
    for _ in range(rounds):
        for number in seconds:
            started = time.perf_counter()
            generate(number)
            seconds[number].append(time.perf_counter() - started)
    return min(seconds[1]), min(seconds[num_new]), ids


def compare(params: dict, theirs, prompts: np.ndarray, num_new: int, rounds: int) -> list[dict]:
    mesh = sharding.make_mesh()
    ours = sampler.build(toy.MODEL, None, mesh=mesh)

    def with_ours(number: int) -> list:
        options = sampler.GenerateOptions(max_new_tokens=number, sampling_options=sampling.GREEDY)
        return [completion.ids for completion in ours.continue_(params, prompts.tolist(), options)]

    def with_transformers(number: int) -> list:
        ids = torch.from_numpy(prompts).long()
        with torch.no_grad():
            rows = theirs.generate(
                ids, do_sample=False, max_new_tokens=number, eos_token_id=toy.MODEL.vocab_size, pad_token_id=0
            )
        return rows[:, prompts.shape[1] :].tolist()

    results, ids = [], []
    for name, generate in (("gemma3_jax", with_ours), ("transformers", with_transformers)):
        seconds_one, seconds_all, generated = best_seconds(generate, num_new, rounds)
        ids.append(generated)
        results.append(
            {
                "benchmark": "decode",
                "program": name,
                "rows": len(prompts),
                "prompt_tokens": prompts.shape[1],
                "new_tokens": num_new,
                "prefill_tokens_per_second": round(prompts.size / seconds_one),
                "decode_tokens_per_second": round(len(prompts) * (num_new - 1) / (seconds_all - seconds_one)),
                "machine": platform.machine(),
                "jax": jax.__version__,
                "torch": torch.__version__,
            }
        )
    our_result, their_result = results
    ratios = {
        f"{kind}_is_faster_by": round(
            our_result[f"{kind}_tokens_per_second"] / their_result[f"{kind}_tokens_per_second"], 2
        )
        for kind in ("prefill", "decode")
    }
    return [*results, {"benchmark": "decode", "rows": len(prompts), **ratios, "same_ids": ids[0] == ids[1]}]


def cache_bytes(size: str) -> dict:
    model = config.SIZES[size]
    shapes = kv_cache.shapes(model, 1, CONTEXT, jnp.bfloat16)
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    all_global = weight_bytes.CACHED["bfloat16"] * weight_bytes.cached(model, CONTEXT, "full")
    return {
        "benchmark": "cache",
        "size": size,
        "context": CONTEXT,
        "bytes": num_bytes,
        "bytes_all_global": all_global,
        "fraction": round(num_bytes / all_global, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rows", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    params = parameters.init(toy.MODEL, jax.random.key(0), sharding.make_mesh())
    with tempfile.TemporaryDirectory() as directory:
        hf.write(pathlib.Path(directory), toy.MODEL, params)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for num_rows in map(int, flags.rows.split(",")):
        prompts = np.random.default_rng(0).integers(3, toy.MODEL.vocab_size, (num_rows, flags.prompt), np.int32)
        for line in compare(params, theirs, prompts, flags.new, flags.rounds):
            print(json.dumps(line), flush=True)
    for size in config.SIZES:
        print(json.dumps(cache_bytes(size)))


if __name__ == "__main__":
    main()
