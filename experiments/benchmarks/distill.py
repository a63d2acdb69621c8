"""The cost of distillation: steps of the demo's student on next tokens, on stored targets, and with its teacher.

    python experiments/benchmarks/distill.py [--devices=1] [--num_samples=256] [--steps=10] [--rounds=3]

Prints one JSON line for each kind of step, and one for the teacher alone: seconds (of the fastest round), their ratio
to a step on next tokens, the compiler's temporary bytes on a device, and the bytes of the teacher's parameters. Rounds
alternate. The cost of stored targets grows with tokens times M, that of the teacher with its parameters.
"""

import argparse
import json

import demo_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_samples", type=int, default=256)
    parser.add_argument("--estimator", default="stratified")
    flags = demo_steps.parse(parser)

    import demo
    import jax

    from gemma3_jax import sharding
    from gemma3_jax.data import stream
    from gemma3_jax.model import config
    from gemma3_jax.stages import step as stage_step
    from gemma3_jax.train import program

    teacher_model = config.Config(**demo.TEACHER)
    samples = {"samples.num_samples": flags.num_samples, "samples.estimator": flags.estimator}
    steps = {
        "next token": demo_steps.make("pretrain", {**samples, "loss": "next_token"}, None, flags),
        "stored targets": demo_steps.make("pretrain", samples, None, flags),
        "with teacher": demo_steps.make("pretrain", samples, teacher_model, flags),
    }
    with_teacher = steps["with teacher"]
    rows, mesh = demo_steps.make_rows(with_teacher), with_teacher.program.mesh
    with jax.set_mesh(mesh):
        inputs = {**with_teacher.frozen, "seed": with_teacher.program.place_hyperparameters().seed}
        teacher = jax.jit(stage_step.make_teacher(with_teacher.config, teacher_model)).lower(inputs, rows).compile()
        targets = jax.device_put(teacher(inputs, rows), sharding.batch_sharding(mesh))
    compiled, take_step = {"teacher alone": teacher}, {"teacher alone": lambda: teacher(inputs, rows)}
    for name, step in steps.items():
        batch = stream.DistillBatch(rows, targets) if name == "stored targets" else rows
        compiled[name], take_step[name] = step.compile(batch)
    times = demo_steps.time_steps(take_step, mesh, num_rounds=flags.rounds, num_steps=flags.steps)
    for name, seconds in times.items():
        line = {"benchmark": "distill", "what": name, "devices": flags.devices, "seconds": round(seconds, 4)}
        line |= {
            "against_next_token": round(seconds / times["next token"], 3),
            "tokens": with_teacher.program.tokens_per_step,
        }
        line |= {"num_samples": flags.num_samples, "estimator": flags.estimator}
        line["temporary_bytes"] = compiled[name].memory_analysis().temp_size_in_bytes
        if "teacher" in name:
            line["teacher_parameter_bytes"] = program.bytes_per_device(with_teacher.program.frozen_shapes)
        print(json.dumps(line | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main()
