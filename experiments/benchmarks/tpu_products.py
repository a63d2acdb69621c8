"""How near to its peak the TPU compiler's cost model puts a matrix product: the scale of all cycles that `plan` prints.

    python experiments/benchmarks/tpu_products.py [--chips=v5e,v4,v5p] [--sizes=1024,8192]

Needs libtpu, and no TPU. Compiles bfloat16 products [n, n] x [n, n] for one chip (v4 and v5p: both cores), and prints a
JSON line for each: the compiler's estimated cycles, those at peak, and their ratio. Estimates, nothing measured.
"""

import argparse
import json
import os

TOPOLOGIES = {"v5e": "v5e:2x2", "v4": "v4:2x2x1", "v5p": "v5p:2x2x1"}
# Read when libtpu and JAX are imported.
VARIABLES = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def measure(chip_name: str, size: int) -> dict:
    """The estimate of one product."""
    import jax
    import jax.numpy as jnp

    from gemma3_jax import chips
    from gemma3_jax.planning import hlo, profile, topologies

    chip = next(one for one in chips.CHIPS if one.name == chip_name)
    [device, *_] = topologies.find(TOPOLOGIES[chip_name]).devices()
    matrix = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
    text = jax.jit(jnp.dot).lower(matrix, matrix).compile().as_text()
    costs = profile.instruction_costs(text, hlo.read(text), chip)
    cycles = sum(one.cycles for one in costs if one.kind == "product")
    at_peak = 2 * size**3 / chip.flops_per_cycle
    return {"chip": chip_name, "size": size, "estimated_cycles": cycles, "fraction_of_peak": round(at_peak / cycles, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(TOPOLOGIES))
    parser.add_argument("--sizes", default="1024,2048,4096,8192")
    args = parser.parse_args()
    os.environ |= VARIABLES | {"JAX_PLATFORMS": "cpu"}
    for chip in args.chips.split(","):
        if chip not in TOPOLOGIES:
            parser.error(f"--chips has {chip!r}; a chip is one of {', '.join(TOPOLOGIES)}")
        for size in args.sizes.split(","):
            print(json.dumps(measure(chip, int(size))), flush=True)


if __name__ == "__main__":
    main()
