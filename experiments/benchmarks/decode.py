"""Reading prompts and writing text, against Transformers on torch: the same weights, the same ids, one run.

    python experiments/benchmarks/decode.py [--prompt=512] [--new=128] [--rows=1,8] [--rounds=3]

Needs the extra [interop]. The model is the benchmarks' toy (toy.py) in float32, greedy, on the CPU. Tokens that are
read a second are those of texts with one new id, ids that are written a second what longer texts have beyond that, in
the time they take beyond; the best of the rounds. Reading grows with the square of the prompt on global layers, writing
with its length; neither does on local layers, beyond a window. One more line for each published size: bytes of the
cache of a sequence of 32K, against those of a model whose layers are all global.
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


def best_seconds(write, num_new: int, rounds: int) -> tuple[float, float, list]:
    """Of texts of one new id and of all, after one of each for what is compiled or set up; and the ids."""
    write(1)
    ids, seconds = write(num_new), {1: [], num_new: []}
    for _ in range(rounds):
        for number in seconds:
            started = time.perf_counter()
            write(number)
            seconds[number].append(time.perf_counter() - started)
    return min(seconds[1]), min(seconds[num_new]), ids


def compare(params: dict, theirs, prompts: np.ndarray, num_new: int, rounds: int) -> list[dict]:
    mesh = sharding.make_mesh()
    # So many slots whatever is asked for: one program for both lengths.
    gemma = sampler.Sampler(toy.MODEL, lambda: params, None, mesh=mesh, context=sampler.ANY_CONTEXT)

    def ours(number: int) -> list:
        asked = sampler.Asked(max_new_tokens=number, how=sampling.GREEDY)
        return [answer.ids for answer in gemma.go_on(prompts.tolist(), asked)]

    def of_transformers(number: int) -> list:
        ids = torch.from_numpy(prompts).long()
        with torch.no_grad():
            said = theirs.generate(
                ids, do_sample=False, max_new_tokens=number, eos_token_id=toy.MODEL.vocab_size, pad_token_id=0
            )
        return said[:, prompts.shape[1] :].tolist()

    found, ids = [], []
    for name, write in (("gemma3_jax", ours), ("transformers", of_transformers)):
        of_one, of_all, written = best_seconds(write, num_new, rounds)
        ids.append(written)
        found.append(
            {
                "benchmark": "decode",
                "program": name,
                "rows": len(prompts),
                "prompt_tokens": prompts.shape[1],
                "new_tokens": num_new,
                "read_tokens_per_second": round(prompts.size / of_one),
                "written_tokens_per_second": round(len(prompts) * (num_new - 1) / (of_all - of_one)),
                "machine": platform.machine(),
                "jax": jax.__version__,
                "torch": torch.__version__,
            }
        )
    ours_is, theirs_is = found
    ratios = {
        f"{what}_is_faster_by": round(ours_is[f"{what}_tokens_per_second"] / theirs_is[f"{what}_tokens_per_second"], 2)
        for what in ("read", "written")
    }
    return [*found, {"benchmark": "decode", "rows": len(prompts), **ratios, "same_ids": ids[0] == ids[1]}]


def cache_bytes(size: str) -> dict:
    model = config.SIZES[size]
    found = kv_cache.shapes(model, 1, CONTEXT, jnp.bfloat16)
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))
    all_global = weight_bytes.CACHED["bfloat16"] * weight_bytes.cached(model, CONTEXT, "full")
    return {
        "benchmark": "cache",
        "size": size,
        "context": CONTEXT,
        "bytes": num_bytes,
        "bytes_all_global": all_global,
        "share": round(num_bytes / all_global, 3),
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
