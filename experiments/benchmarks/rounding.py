"""The cost of quantization-aware training: a step of the demo's `qat` by format, against the same step unrounded.

    python experiments/benchmarks/rounding.py [--formats=q4_0,int4] [--devices=1] [--steps=10] [--rounds=3]

Prints one JSON line for each format: seconds (of the fastest round), their ratio to the step without rounding (same
teacher, same loss over the whole distribution), and the compiler's temporary bytes on a device. Rounds alternate. The
cost of rounding grows with the parameters, not with the tokens: it shows at 2,048 tokens a step, and not at a million.
"""

import argparse
import json

import demo_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="", help="formats to measure, with commas between (default: all)")
    flags = demo_steps.parse(parser)

    import demo
    import jax

    from gemma3_jax.model import config
    from gemma3_jax.quant import formats

    model = config.Config(**demo.STUDENT)
    chosen = flags.formats.split(",") if flags.formats else formats.MATRICES
    if unknown := set(chosen) - set(formats.MATRICES):
        parser.error(f"--formats has {', '.join(sorted(unknown))}; it can have {', '.join(formats.MATRICES)}")
    names = {"unrounded": "", **{format: format for format in chosen}}
    steps = {name: demo_steps.make("qat", {"quant.format": format}, model, flags) for name, format in names.items()}
    unrounded = steps["unrounded"]
    rows = demo_steps.make_rows(unrounded)
    compiled, take_step = {}, {}
    for name, step in steps.items():
        compiled[name], take_step[name] = step.compile(rows)
    times = demo_steps.time_steps(take_step, unrounded.program.mesh, num_rounds=flags.rounds, num_steps=flags.steps)
    for name, seconds in times.items():
        line = {"benchmark": "rounding", "format": name, "devices": flags.devices, "seconds": round(seconds, 4)}
        line |= {
            "against_unrounded": round(seconds / times["unrounded"], 3),
            "tokens": unrounded.program.tokens_per_step,
        }
        line["temporary_bytes"] = compiled[name].memory_analysis().temp_size_in_bytes
        print(json.dumps(line | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main()
