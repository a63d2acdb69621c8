"""What TPU instructions without a compiler's estimate cost, from the instruction words (bundles) that libtpu emits.

    python experiments/benchmarks/tpu_bundles.py [--chips=v5e,v4,v5p] [--kinds=sort,gather] [--output=bundles.json]

Needs libtpu, and no TPU. Compiles small programs (scatters, gathers, sorts, TopK, reshapes, the kernels of attention,
of the loss and of drawing), each in a process of its own with libtpu's low-level dump, and reads `final_bundles`: a
bundle is a cycle if nothing stalls. Loops count their trips, by the constant that their exit test compares with; a loop
whose trips depend on data counts once. Fits bundles an element by kind and generation, prints a JSON line for each
program, and writes the table that gemma3_jax/planning/bundles.py reads. Kinds and chips that are not run stay as the
table has them. Some hundred MB of dumps are deleted after each program. All of it takes some 20 minutes on two CPU
cores.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np

from gemma3_jax.model import splash
from gemma3_jax.planning import bundles, kernels

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1"}
# So that libtpu compiles without a TPU. It reads them when it is loaded, by the first topology.
VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


class Case(NamedTuple):
    """A program of one instruction, compiled for one chip."""

    kind: str
    source: str  # of a function of arrays
    shapes: str
    instruction: str  # regular expression of the names of the instructions that count
    features: dict[str, float]  # what bundles are proportional to


def cases() -> list[Case]:
    """All programs. The largest of a kind are large enough that what is not proportional is small."""
    found = []
    for tokens, vocab, samples in ((512, 2048, 64), (1024, 2048, 64)):
        shapes = f"f32[{tokens},{vocab}] s32[{tokens},{samples}]"
        elements = {"elements": tokens * samples}
        rows = f"jnp.arange({tokens})[:, None]"
        source = f"lambda x, i, w: x.at[{rows}, i].add(w)"
        found.append(Case("scatter_elements", source, f"{shapes} f32[{tokens},{samples}]", "scatter", elements))
        found.append(Case("gather_elements", "lambda x, i: jnp.take_along_axis(x, i, -1)", shapes, "gather", elements))
    for width, dtype in ((256, "f32"), (640, "f32"), (1152, "f32"), (1152, "bf16")):
        features = {"rows": 4096, "tiles": 4096 * bundles.num_tiles(width)}
        source, shapes = "lambda x, i: x[i]", f"{dtype}[8192,{width}] s32[4096]"
        found.append(Case("gather_rows", source, shapes, "gather", features))
        source, shapes = "lambda x, i, w: x.at[i].add(w)", f"{dtype}[8192,{width}] s32[4096] {dtype}[4096,{width}]"
        if dtype == "f32":
            found.append(Case("scatter_rows", source, shapes, "scatter", features))
    for length in (1024, 4096):
        elements = 256 * length
        features = {"elements": elements, "stages": elements * bundles.sort_stages(length)}
        pairs = "lambda x: jax.lax.sort((x, jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)), num_keys=1, is_stable={})"
        found.append(Case("sort_rows", pairs.format("False"), f"f32[256,{length}]", "sort", features))
    for length in (65_536, 262_144):
        features = {"elements": length, "stages": length * bundles.sort_stages(length)}
        source = "lambda i, x: jax.lax.sort((i, x), num_keys=1)"
        found.append(Case("sort_flat", source, f"s32[{length}] s32[{length}]", "sort", features))
    for rows, length, k in ((256, 16_384, 8), (256, 16_384, 64), (256, 32_768, 8), (256, 32_768, 32)):
        features = {"elements": rows * length, "choices": rows * k, "comparisons": rows * length * k}
        found.append(
            Case("top_k", f"lambda x: jax.lax.top_k(x, {k})", f"f32[{rows},{length}]", "custom-call", features)
        )
    features = {"elements": 256 * 16_384}
    found.append(Case("top_k_128", "lambda x: jax.lax.top_k(x, 128)", "f32[256,16384]", "custom-call", features))
    for dtype in ("f32", "bf16"):
        features = {"elements": 1024 * 16_384}
        # The barrier keeps the flat array a result of its own, which has to be laid out anew.
        source = "lambda x: jnp.flip(jax.lax.optimization_barrier(x * 2)).reshape(1024, 16384)"
        found.append(Case(f"reshape_{dtype}", source, f"{dtype}[{1024 * 16_384}]", "reshape", features))
    return found + _loss_cases() + _attention_cases()


def _loss_cases() -> list[Case]:
    """The kernels over a chunk's logits. What is drawn does not change what the drawing executes."""
    found = []
    ids = 16_384
    for tokens, samples in ((1024, 256), (1024, 128)):
        elements = tokens * ids
        call = "sparse_kernel.dot_and_gradient(z, i, w, lambda z, w, _, a, b, c: b * jnp.exp(z - c) - a * w, "
        source = f"lambda z, i, w, x: {call}x, x, x, dtype=jnp.bfloat16)"
        shapes = f"f32[1,{tokens},{ids}] s32[1,{tokens},{samples}] f32[1,{tokens},{samples}] f32[1,{tokens}]"
        features = {"elements": elements, "flops": 4.0 * elements * samples}
        found.append(Case(kernels.FEW_IDS, source, shapes, kernels.FEW_IDS, features))
    summary, weights = kernels.DRAWING
    for tokens in (1024, 2048):
        logits, features = f"f32[{tokens},{ids}]", {"elements": tokens * ids}
        source = "lambda z, y: page_kernels.summarize(z, y, temperature=1.0)"
        found.append(Case(summary, source, f"{logits} s32[{tokens}]", summary, features))
        gradient = "lambda z, w, _, a, b, c: b * jnp.exp(z - c) - a * w"
        options = f"gradient={gradient}, temperature=1.0, num_draws=256, dtype=jnp.bfloat16"
        source = f"lambda t, z, x, n: page_kernels.weigh(t, z, pages.Draw(x, x, x, x, x, x, n), x, x, x, {options})"
        found.append(Case(weights, source, f"{logits} {logits} f32[{tokens}] s32[{tokens}]", weights, features))
    for exact, drawn in ((0, 128), (128, 128), (0, 256)):
        elements = 256 * ids
        options = f"temperature=1.0, num_exact={exact}, num_draws={drawn}"
        source = f"lambda z, x, n: list_kernel.listed(z, pages.Draw(x, x, x, x, x, x, n), n, {options})"
        features = {"elements": elements, "drawn": elements * drawn, "exact": elements * exact}
        found.append(Case(kernels.LISTS, source, f"f32[256,{ids}] f32[256] s32[256]", kernels.LISTS, features))
    return found


def _attention_cases() -> list[Case]:
    """The three kernels of a local layer, forward and backward; one document, so that no block is skipped."""
    source = (
        "jax.grad(lambda a, s: jnp.sum(attention.attend(*a, masks.TokenLayout(s, s, None), {}, 'splash')"
        ".astype(jnp.float32) ** 2))"
    )
    found = []
    for tokens, num_heads, num_kv_heads, head_dim, window in (
        (2048, 4, 1, 256, 512),
        (2048, 8, 4, 128, 512),
        (2048, 4, 4, 256, 1024),
    ):
        shapes = f"bf16[1,{tokens},{num_heads},{head_dim}]" + 2 * f" bf16[1,{tokens},{num_kv_heads},{head_dim}]"
        block = splash.block_size(tokens)
        visits = tokens // block * (1 + math.ceil((window - 1) / block))
        scores = num_heads * visits * block**2
        call = f"lambda q, k, v, s: {source.format(window)}((q, k, v), s)"
        for kernel in ("fwd", "dq", "dkv"):
            features = {"flops": kernels.flops_of_scores(kernel, scores, head_dim), "scores": scores}
            name = rf"splash_m[hq]a_{kernel}"
            found.append(Case(f"splash_{kernel}", call, f"{shapes} s32[1,{tokens}]", name, features))
    return found


# In a process of its own, as libtpu reads where to write its dump when JAX is imported.
_COMPILE = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from gemma3_jax import sharding
from gemma3_jax.distill import list_kernel, page_kernels, pages
from gemma3_jax.losses import sparse_kernel
from gemma3_jax.model import attention, masks
from gemma3_jax.planning import topologies

chip, source, shapes = sys.argv[1:]
types = (jax.sharding.AxisType.Auto,) * len(sharding.AXES)
mesh = jax.sharding.Mesh(np.reshape(topologies.find(chip).devices()[:1], (1, 1, 1, 1)), sharding.AXES, axis_types=types)
place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
dtypes = {"f32": jnp.float32, "bf16": jnp.bfloat16, "s32": jnp.int32}
arrays = [
    jax.ShapeDtypeStruct(tuple(map(int, dims.split(","))), dtypes[dtype], sharding=place)
    for dtype, dims in re.findall(r"(\\w+)\\[([\\d,]+)\\]", shapes)
]
with jax.set_mesh(mesh):
    jax.jit(eval(source)).lower(*arrays).compile()
"""


@functools.lru_cache(maxsize=1)  # a program may have several instructions that count
def compile_with_dump(chip: str, source: str, shapes: str) -> dict[str, "Executed"]:
    """Compiles a program; returns what each of its instructions executes, by name."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="bundles-"))
    flags = f"--xla_jf_dump_to={work} --xla_jf_dump_hlo_text=true --xla_jf_dump_llo_text=true"
    environment = os.environ | VARIABLES | {"LIBTPU_INIT_ARGS": flags}
    command = [sys.executable, "-c", _COMPILE, TOPOLOGIES[chip], source, shapes]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{source} for {chip} does not compile: {done.stderr[-2000:]}")
        executed = {}
        for file in work.glob("*-final_bundles.txt"):
            name = re.fullmatch(r"\d+-(.*)-\d+-final_bundles\.txt", file.name)
            if name:
                executed[name[1]] = executed_bundles(file.read_text())
        return executed
    finally:
        shutil.rmtree(work)


class Executed(NamedTuple):
    """What one run of an instruction executes."""

    bundles: int
    once: int  # of them in loops whose trips are unknown, counted as one trip


_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s*(?:[A-Z]{2})?\s*:\s*>* ?\{")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_BRANCH = re.compile(r"= sbr\.rel(?: \((!?)(%p\w+)\))? ?target = \$region(\d+)")
_DELAY_SLOTS = 4  # bundles after a branch that run before it takes effect


def executed_bundles(text: str) -> Executed:
    """Counts the bundles that an instruction executes, from the text of its `final_bundles`.

    A branch to an earlier bundle makes a loop. A pipelined loop has a trip more than blocks for each of its stages but
    one; as these skip most of the body, they do not count.
    """
    lines = [line for line in text.splitlines() if _BUNDLE.match(line)]
    trips, is_unknown = np.ones(len(lines), np.int64), np.zeros(len(lines), bool)
    starts: dict[str, int] = {}
    for end, line in enumerate(lines):
        starts |= dict.fromkeys(_REGION.findall(line), end)
        for _, predicate, region in _BRANCH.findall(line):
            if region in starts:
                body = slice(starts[region], end + 1 + _DELAY_SLOTS)
                num_trips = _trips("\n".join(lines[body]), predicate)
                trips[body] *= num_trips or 1
                is_unknown[body] |= num_trips is None
    return Executed(int(trips.sum()), int(trips[is_unknown].sum()))


def _trips(body: str, predicate: str) -> int | None:
    """Returns the trips of a loop that ends where `predicate` holds; None if they depend on data."""
    name = re.escape(predicate)
    test = rf"{name} = scmp\.ge\.s32\.totalorder (?:\(%\w+\), )?%\w+, (\d+) /\* loop exit test \*/"
    if bound := re.search(test, body):
        stages = map(int, re.findall(r"iteration index, stage = (\d+)", body.partition("\n")[0]))
        return int(bound[1]) - max(stages, default=0)
    return 1 if re.search(rf"{name} = pmov 1 ", body) else None


def fit(measured: list[tuple[dict[str, float], int]]) -> dict:
    """Fits bundles as a sum of coefficients times features, none below 0; and says how far off the worst program is.

    As many programs as features are met exactly, which says nothing: None.
    """
    names = list(measured[0][0])
    features = np.array([[row[name] for name in names] for row, _ in measured], float)
    counted = np.array([count for _, count in measured], float)
    if len(measured) < len(names):
        raise ValueError(f"{len(measured)} programs cannot tell {names} apart; add programs to cases()")
    used = list(range(len(names)))
    while True:  # relative errors count, whatever the size
        solved = np.linalg.lstsq(features[:, used] / counted[:, None], np.ones(len(counted)), rcond=None)[0]
        if np.all(solved >= 0) or len(used) == 1:
            break
        used.pop(int(np.argmin(solved)))
    coefficients = dict.fromkeys(names, 0.0) | {names[i]: float(f"{c:.4g}") for i, c in zip(used, solved, strict=True)}
    worst = np.max(np.abs(features[:, used] @ solved / counted - 1))
    return {"bundles": coefficients, "worst_error": round(float(worst), 3) if len(measured) > len(used) else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(TOPOLOGIES))
    parser.add_argument("--kinds", default="", help="names of kinds begin with one of these; default: all")
    parser.add_argument("--output", default=str(bundles.PATH))
    args = parser.parse_args()
    output = pathlib.Path(args.output)
    versions = bundles.installed()
    table = json.loads(output.read_text()) if output.exists() else {}
    if {name: table.get(name) for name in versions} != versions:
        table = {**versions, "chips": {}}
    for chip in args.chips.split(","):
        measured: dict[str, list] = {}
        for case in cases():
            if not case.kind.startswith(tuple(args.kinds.split(","))):
                continue
            executed = compile_with_dump(chip, case.source, case.shapes)
            executed = {name: one for name, one in executed.items() if re.match(case.instruction, name)}
            total = sum(one.bundles for one in executed.values())
            once = sum(one.once for one in executed.values())
            line = {"chip": chip, "kind": case.kind, "shapes": case.shapes, "bundles": total, "in_unknown_loops": once}
            print(json.dumps(line | {"instructions": sorted(executed)}), flush=True)
            if total:
                measured.setdefault(case.kind, []).append((case.features, total))
        table["chips"].setdefault(chip, {}).update({kind: fit(rows) for kind, rows in measured.items()})
        output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
