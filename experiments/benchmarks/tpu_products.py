"""How near to its peak the TPU compiler's cost model puts a matrix product: the scale of all cycles that `plan` prints.

    python experiments/benchmarks/tpu_products.py [--chips=v5e,v4,v5p] [--sizes=1024,8192]

Needs libtpu, and no TPU. Compiles bfloat16 products [n, n] x [n, n] for one chip (v4 and v5p: both cores), and prints a
JSON line for each: the compiler's estimated cycles, those at peak, and their ratio. Estimates, nothing measured.
"""

import argparse
import json
import os

import jax
import jax.numpy as jnp
import tpu_bundles

from gemma3_jax import chips
from gemma3_jax.planning import hlo, profile, topologies


def measure(chip_name: str, size: int) -> dict:
    """The estimate of one product."""
    chip = next(one for one in chips.CHIPS if one.name == chip_name)
    [device, *_] = topologies.find(tpu_bundles.TOPOLOGIES[chip_name]).devices()
    matrix = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
    text = jax.jit(jnp.dot).lower(matrix, matrix).compile().as_text()
    costs = profile.instruction_costs(text, hlo.read(text), chip)
    cycles = sum(one.cycles for one in costs if one.kind == "product")
    at_peak = 2 * size**3 / chip.flops_per_cycle
    return {"chip": chip_name, "size": size, "estimated_cycles": cycles, "fraction_of_peak": round(at_peak / cycles, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(tpu_bundles.TOPOLOGIES))
    parser.add_argument("--sizes", default="1024,2048,4096,8192", help="rows of each matrix")
    args = parser.parse_args()
    chip_names, sizes = args.chips.split(","), args.sizes.split(",")
    for name in chip_names:
        if name not in tpu_bundles.TOPOLOGIES:
            parser.error(f"--chips has {name!r}; a chip is one of {', '.join(tpu_bundles.TOPOLOGIES)}")
    for size in sizes:
        if not size.isdecimal() or int(size) < 1:
            parser.error(f"--sizes has {size!r}; a size is a number of rows, such as 4096")
    os.environ |= tpu_bundles.VARIABLES
    for name in chip_names:
        for size in sizes:
            print(json.dumps(measure(name, int(size))), flush=True)


if __name__ == "__main__":
    main()
