"""Compiles every pod job of this project with the TPU compiler on a CPU, and writes the tables of docs/tpu_pods.md.

    python experiments/pods.py [--only=27b] [--output=runs/pods] [--readme]

Compiles each stage of the published jobs (experiments/recipe.py, on the chips of the report's Table 2), of the starter
jobs (experiments/starter.py), and of the jobs that MaxText was measured on, one process after the other, with the
compiler flags of the launchers. Results are saved in OUTPUT/plans.jsonl; a run that was stopped resumes, and compiles
again only what was compiled from other code. `--readme` writes the tables between the marks in docs/tpu_pods.md, once
all jobs are compiled. A job takes one to eight minutes on one or two CPU cores, and 3 to 10 GB; all jobs take an hour.
Needs extra [tpu].
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

from gemma3_jax.planning import compiler_flags

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tpu_pods.md"
MARKS = "<!-- pods: made by experiments/pods.py -->", "<!-- end of pods -->"
GIB = 1 << 30

# MaxText 0.2.5 with the same compiler, measured once: AdamW in float32, full remat, next-token loss, one sequence per
# chip; GiB of arguments + temporaries by XLA's analysis. Its 1B is its 4B config with the sizes of 1B.
MAXTEXT = {
    "1b starter": "0.70 + 10.73; with its vocabulary tiling 0.70 + 5.04",
    "4b peer": "does not fit; tiled 2.72 + 11.95",
    "27b peer": "does not fit, nor tiled (15.82 of 15.75)",
}


class Job(NamedTuple):
    name: str
    config: str
    stage: str
    topology: str
    num_slices: int = 1
    flags: tuple[str, ...] = ()


def one_sequence_per_chip(num_chips: int, seq_len: int) -> tuple[str, ...]:
    stage = "--config.stages.continued"
    return (
        f"--config.mesh.data={num_chips}",
        f"{stage}.batch_size={num_chips}",
        f"{stage}.seq_len={seq_len}",
    )


def recipe(size: str, topology: str, num_slices: int, *stages: str, teacher: str) -> list[Job]:
    jobs = []
    for stage in stages:
        flags = () if stage == "qat" else (f"--teacher_model={teacher}",)
        jobs.append(Job(f"{size} {stage}", f"experiments/recipe.py:{size}", stage, topology, num_slices, flags))
    return jobs


JOBS = [
    *recipe("1b", "v5e:16x16", 2, "pretrain", "qat", teacher="4b"),
    *recipe("4b", "v5e:16x16", 8, "pretrain", "long_context", "qat", teacher="12b"),
    *recipe("12b", "v4:16x16x24", 1, "pretrain", "long_context", "qat", teacher="27b"),
    *recipe("27b", "v5p:16x16x24", 1, "pretrain", "long_context", "qat", teacher="27b"),
    Job(
        "12b pretrain, as launched", "experiments/recipe.py:12b", "pretrain", "v4:8x16x16", 3, ("--teacher_model=27b",)
    ),
    Job("27b pretrain, targets stored", "experiments/recipe.py:27b", "pretrain", "v5p:16x16x24"),
    *(
        Job(f"{size} starter", f"experiments/starter.py:{size}", "continued", topology)
        for size, topology in (
            ("270m", "v5e:2x2"),
            ("1b", "v5e:4x4"),
            ("4b", "v5e:8x8"),
            ("12b", "v5e:8x16"),
            ("27b", "v5e:16x16"),
        )
    ),
    Job("4b peer", "experiments/starter.py:4b", "continued", "v5e:4x4", 1, one_sequence_per_chip(16, 8_192)),
    Job("27b peer", "experiments/starter.py:27b", "continued", "v5e:8x8", 1, one_sequence_per_chip(64, 4_096)),
]


def compile_job(job: Job) -> dict:
    command = [sys.executable, "-m", "gemma3_jax", "plan", f"--config={job.config}", f"--stage={job.stage}"]
    command += [f"--topology={job.topology}", f"--num_slices={job.num_slices}", "--json", *job.flags]
    # XLA_FLAGS of this machine's devices do not apply to a TPU.
    libtpu_flags = compiler_flags.libtpu_init_args(job.num_slices)
    flags = {"LIBTPU_INIT_ARGS": libtpu_flags, "XLA_FLAGS": ""}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | flags)
    if done.returncode:
        raise SystemExit(f"{job.name}: {' '.join(command)} ended with status {done.returncode}")
    return {"job": job.name, "code": code(), **json.loads(done.stdout)}


def code() -> str:
    """The git id of the package's tree in the last commit."""
    command = ["git", "rev-parse", "HEAD:gemma3_jax"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()


def table(plans: list[dict]) -> str:
    head = (
        "| job | chips | replica x data x seq | seq_len | GiB per chip, of which arguments | FLOPs, compiled / formula "
        "| collective bytes per chip and step: ICI, DCN | step time bound | MFU bound "
        "| estimated step, of which waiting | estimated MFU | compile time |"
    )
    rows = [head, "|" + "---|" * 12]
    for plan in plans:
        kinds, slices = plan["hbm_bytes_by_kind"], f"{plan['num_slices']} x " if plan["num_slices"] > 1 else ""
        arguments = sum(kinds.get(kind, 0) for kind in ("parameters", "optimizer", "teacher", "base", "batch"))
        mesh = " x ".join(str(plan["mesh"][axis]) for axis in ("replica", "data", "seq"))
        memory = f"{plan['hbm_bytes_per_chip'] / GIB:.2f}, {arguments / GIB:.2f}"
        if plan["fits"]:
            costs = [
                f"{plan['flops_ratio']:.2f}",
                f"{plan['ici_bytes_per_step'] / GIB:.1f}, {plan['dcn_bytes_per_step'] / GIB:.2f} GiB",
                f"{plan['step_seconds_bound']:.2f} s",
                f"{plan['mfu_bound']:.0%}",
                f"{plan['estimated_step_seconds']:.2f}, {plan['estimated_exposed_seconds']:.2f} s",
                f"{plan['estimated_mfu']:.0%}",
            ]
        else:
            costs = [f"does not fit in {plan['hbm_bytes_allowed'] / GIB:.2f}", "", "", "", "", ""]
        cells = [plan["job"], f"{slices}{plan['topology']}", mesh, f"{plan['seq_len']:,}", memory, *costs]
        rows.append("| " + " | ".join([*cells, f"{plan['compile_seconds']:.0f} s"]) + " |")
    return "\n".join(rows)


def maxtext_table(plans: dict[str, dict]) -> str:
    rows = [
        "| one sequence per chip, full remat | peak per chip | XLA's analysis: arguments + temporaries | "
        "MaxText 0.2.5, the same |",
        "|" + "---|" * 4,
    ]
    for name, theirs in MAXTEXT.items():
        if name in plans:
            plan, kinds = plans[name], plans[name]["hbm_bytes_by_kind"]
            arguments = sum(kinds[kind] for kind in ("parameters", "optimizer", "batch")) / GIB
            job = f"{name.split()[0]}, {plan['topology']}, {plan['seq_len']:,} tokens"
            ours = f"{arguments:.2f} + {plan['temporary_bytes'] / GIB:.2f}" if plan["fits"] else "does not fit"
            rows.append(f"| {job} | {plan['hbm_bytes_per_chip'] / GIB:.2f} GiB | {ours} | {theirs} |")
    return "\n".join(rows)


def write_page(text: str) -> None:
    """Replaces the text between the marks in PAGE."""
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise SystemExit(f"{PAGE} has no table to replace; put the marks {' and '.join(MARKS)} where it should be")
    PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/pods", help="directory of plans.jsonl")
    parser.add_argument("--only", default="", metavar="TEXT", help="only jobs with this in their name, such as 27b")
    parser.add_argument("--readme", action="store_true", help="write the tables into docs/tpu_pods.md")
    flags = parser.parse_args()
    file = pathlib.Path(flags.output) / "plans.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    plans = {}
    if file.exists():
        written = map(json.loads, file.read_text().splitlines())
        plans = {plan["job"]: plan for plan in written if plan["code"] == code()}
    selected = [job for job in JOBS if flags.only in job.name]
    if not selected:
        parser.error(f"--only is {flags.only}; the jobs are: {', '.join(job.name for job in JOBS)}")
    for number, job in enumerate(selected, start=1):
        if job.name not in plans:
            print(f"{number} of {len(selected)}: {job.name}", file=sys.stderr, flush=True)
            plans[job.name] = compile_job(job)
            with file.open("a") as out:
                out.write(json.dumps(plans[job.name]) + "\n")
    tables = f"{table([plans[job.name] for job in JOBS if job.name in plans])}\n\n{maxtext_table(plans)}"
    print(tables)
    if flags.readme:
        if missing := [job.name for job in JOBS if job.name not in plans]:
            parser.error(f"--readme: not compiled yet, with this code: {', '.join(missing)}")
        write_page(tables)


if __name__ == "__main__":
    main()
