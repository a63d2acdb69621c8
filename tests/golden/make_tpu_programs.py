"""Makes tpu_programs/*.txt.xz: compiled programs of three generations of TPUs, for tests/planning/test_profile.py.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu TPU_WORKER_HOSTNAMES=localhost python tests/golden/make_tpu_programs.py

Needs libtpu, and no TPU. A toy's training step for four chips of each, and a scatter for one. What the profile does not
read is cut: most of the compiler's own notes, the code of Pallas kernels, and where this checkout lies.
"""

import lzma
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from gemma3_jax import settings
from gemma3_jax.model import config, execution
from gemma3_jax.planning import compiling, topologies
from gemma3_jax.train import settings as train_settings

OUTPUT = pathlib.Path(__file__).parent / "tpu_programs"
TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1"}
NUM_PERIODS, NUM_LOCAL = 2, 3  # loops of these lengths, forward and backward
MODEL = config.Config(
    num_layers=NUM_PERIODS * (NUM_LOCAL + 1),
    num_local_per_global=NUM_LOCAL,
    embed_dim=256,
    mlp_dim=512,
    num_heads=2,
    num_kv_heads=1,
    head_dim=128,
    sliding_window=128,
    query_scale=128**-0.5,
    rope_scale=1.0,
    vocab_size=4096,
)
ADAM = train_settings.AdamW(peak_lr=1e-3, warmup_steps=1)
STAGE = settings.StageEntry(num_steps=2, seq_len=512, batch_size=4, optimizer=ADAM)
RECIPE = settings.Train(
    model=MODEL,
    stage_order=("only",),
    stages={"only": STAGE},
    mesh=settings.Mesh(data=4),
    execution=execution.Execution(dtype="bfloat16", remat="full"),
)
NUM_UPDATES, NUM_ROUNDS = 4096, 5


def step(topology: topologies.Topology) -> str:
    return compiling.run(compiling.make_program(settings.resolve(RECIPE, "only"), topology, None)).text


def scatter(topology: topologies.Topology) -> str:
    """A loop of scatters, each between two passes over all elements."""

    def one_round(x, ids):
        return jnp.tanh(x).at[ids].add(1.0) * 2, None

    def rounds(x, ids):
        return jax.lax.scan(one_round, x, ids)[0]

    there = jax.sharding.SingleDeviceSharding(topology.devices()[0])
    x = jax.ShapeDtypeStruct((1 << 20,), jnp.float32, sharding=there)
    ids = jax.ShapeDtypeStruct((NUM_ROUNDS, NUM_UPDATES), np.int32, sharding=there)
    return jax.jit(rounds).lower(x, ids).compile().as_text()


def trim(text: str) -> str:
    text = re.sub(r'"/[^"]*/(site-packages/[^"]*|gemma3_jax/[^"]*\.py|tests/golden/[^"]*)"', r'"/cut/\1"', text)
    text = re.sub(
        r", (frontend_attributes|custom_call_has_side_effect|operand_layout_constraints)=[^\n]*?(?=, \w+=|$)", "", text
    )
    return "\n".join(_trim_line(line) for line in _joined(text))


def _joined(text: str) -> list[str]:
    """The lines of the text, each with the lines that continue its backend_config."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and line.startswith(('"', "}}")):
            lines[-1] += line
        else:
            lines.append(line)
    return lines


def _trim_line(line: str) -> str:
    head, found, notes = line.partition(", backend_config=")
    if not found:
        return line
    cycles = re.search(r'"estimated_cycles":"\d+"', notes)
    return f"{head}, backend_config={{{cycles[0]}}}" if cycles else head


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    for chip, name in TOPOLOGIES.items():
        topology = topologies.find(name)
        for what, make in {"step": step, "scatter": scatter}.items():
            file = OUTPUT / f"{what}_{chip}.txt.xz"
            file.write_bytes(lzma.compress(trim(make(topology)).encode(), preset=9))
            print(f"{file}: {file.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
