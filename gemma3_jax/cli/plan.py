"""`plan`: what a stage costs on TPUs, by the compiler's own word, without one of them."""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import socket
import threading
import time

from gemma3_jax.cli import terminal

GIB = 1 << 30
SECONDS_PER_TICK = 30.0


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax plan",
        description="Compiles the step that train would run, for a TPU topology and with no TPU at hand: what a chip\n"
        "holds and whether it fits, the operations of a step by formula and in the program, the bytes that travel by\n"
        "kind and mesh axis, and the time that none of them lets a step be faster than.\n\n"
        "A stage that distils has a teacher beside it if the config names one or --teacher_model says its size, and\n"
        "stored targets if not; one whose teacher is its own start has that one. That a step does not fit is an\n"
        "answer (exit status 0). Takes one to ten minutes, and some GB of memory.",
        epilog="example:\n  python -m gemma3_jax plan --config=experiments/recipe.py:27b --stage=pretrain \\\n"
        "      --topology=v5p:16x16x24 --teacher_model=27b --json\n"
        "  python -m gemma3_jax plan --config=experiments/recipe.py:1b --topology=v5e:4x4 --search \\\n"
        "      --config.mesh.replica=1 --config.mesh.data=16 --config.mesh.seq=1 \\\n"
        "      --config.stages.pretrain.batch_size=16 --config.stages.pretrain.seq_len=8192",
    )
    flags.takes_overrides = True
    flags.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a Python file with get_config()")
    flags.add_argument("--stage", default="", metavar="NAME", help="of the recipe (default: its first)")
    flags.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="v4, v5e, v5p or v6e, and a slice: v5e:16x16, v5p:4x4x8"
    )
    flags.add_argument("--num_slices", type=int, default=1, metavar="N", help="slices of that shape (1)")
    flags.add_argument("--teacher_model", metavar="SIZE|FILE", help="270m, 1b, 4b, 12b, 27b or a config.json")
    flags.add_argument("--mfu", type=float, default=0.4, help="share of the peak that days are counted at (0.4)")
    flags.add_argument("--search", action="store_true", help="if it does not fit, try changes until it does")
    flags.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return flags


def run(flags: argparse.Namespace) -> None:
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError("No module named 'libtpu'", name="libtpu")
    if not 0 < flags.mfu <= 1:
        raise ValueError(f"--mfu is {flags.mfu}; it must be over 0 and at most 1")
    # Before JAX is imported: no TPU is asked for, and another process may have the library open.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # else it warns that there is no TPU here

    from gemma3_jax import settings
    from gemma3_jax.cli import configs
    from gemma3_jax.planning import plan, topologies

    given = configs.load(flags.config, flags.overrides, settings.Train)
    name = flags.stage or given.stage_order[0]
    if name not in given.stages:
        raise ValueError(f"--stage is {name}; config.stages has: {', '.join(given.stages)}")
    topology = topologies.find(flags.topology, flags.num_slices)
    teacher_model = _teacher_model(flags.teacher_model, given, name)

    def attempt(given: settings.Train, what: str) -> plan.Plan:
        with _ticking(f"compiling {name} for {topology.num_chips:,} chips of {topology.name}{what}"):
            return plan.make(given, name, topology, teacher_model=teacher_model, mfu=flags.mfu)

    found = attempt(given, "")
    if not found.fits:
        change = next(plan.changes(given, name, found.mesh), None)
        advice = f"try {' '.join(change.flags)}" if change else "take more chips"
        if flags.search:
            other = plan.search(given, name, found.mesh, lambda one: attempt(one.given, f", {' '.join(one.flags)}"))
            found, advice = other or found, "no change that was tried makes it fit; take more chips"
        if not found.fits:
            found = dataclasses.replace(found, notes=(*found.notes, advice))
    if flags.json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        _print(found)


def _teacher_model(asked: str | None, given, name: str):
    """What the stage has beside it when `train` runs it, as asked or as its checkpoint says; None if nothing.

    Raises: ValueError if a teacher is asked for where the stage would have none, or its own start.
    """
    from gemma3_jax import settings
    from gemma3_jax.checkpoint import open as checkpoint_open

    stage, flag = given.stages[name], "--teacher_model"
    for has_none, why in (
        (stage.loss != "distill", f"loss is {stage.loss}, which has no teacher"),
        (stage.teacher == settings.START, "teacher is start, the parameters that the stage begins with"),
        (stage.targets, f"targets are {stage.targets}, what a teacher said before"),
    ):
        if has_none:
            if asked:
                raise ValueError(f"{flag} is {asked}, but config.stages.{name}.{why}; leave it out")
            return None
    if checkpoint := stage.teacher or given.teacher:
        return (
            checkpoint_open.find_model(asked, flag) or checkpoint_open.open_checkpoint(pathlib.Path(checkpoint)).model
        )
    return checkpoint_open.find_model(asked, flag)


@contextlib.contextmanager
def _ticking(what: str):
    """Says what is done, and now and then how long it has taken: the compiler does not say how long it will.

    Its thread answers Ctrl-C, too: Python runs handlers in the main thread alone, once the compiler is done with it.
    """
    started = time.monotonic()
    reader, writer = socket.socketpair()
    reader.settimeout(SECONDS_PER_TICK)
    writer.setblocking(False)
    previous_fd = signal.set_wakeup_fd(writer.fileno())

    def listen() -> None:
        while True:
            try:
                numbers = reader.recv(64)
            except TimeoutError:
                terminal.say(f"{what}: {time.monotonic() - started:,.0f} s")
                continue
            if not numbers:
                return
            for number in numbers:
                signal.getsignal(number)(number, None)

    terminal.say(f"{what}; usually one to five minutes")
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        writer.close()
        thread.join()
        reader.close()


def _print(found) -> None:
    mesh = " x ".join(f"{axis} {size}" for axis, size in found.mesh.items())
    print(f"{found.stage} on {found.num_slices} x {found.topology} ({found.num_chips:,} chips), mesh {mesh}")
    print(f"{found.batch_size} rows of {found.seq_len:,} tokens a step\n")
    for kind, size in found.hbm_bytes_by_kind.items():
        print(f"  {kind:<24}{size / GIB:8.2f} GiB a chip")
    verdict = "fits" if found.fits else "does not fit"
    print(f"  {'all':<24}{found.hbm_bytes_per_chip / GIB:8.2f} of {found.hbm_bytes_allowed / GIB:.2f} GiB: {verdict}\n")
    print(f"  operations by formula   {found.flops_per_step_formula:12.3e} a step")
    if found.fits:
        print(f"  operations as compiled  {found.flops_per_step_hlo:12.3e} a step, {found.flops_ratio:.2f} x\n")
        for one in found.collective_bytes:
            over = "between slices" if one["crosses_slices"] else "links"
            size = one["received_bytes"] / GIB
            print(f"  {one['kind']:<20}{'+'.join(one['axes']):<18}{size:9.3f} GiB a chip and step, {over}")
        print()
        for limit, seconds in found.seconds_by_limit.items():
            print(f"  {limit:<24}{seconds:8.3f} s")
        print(f"  a step takes at least   {found.step_seconds_bound:8.3f} s: MFU {found.mfu_bound:.1%} at most")
    days = f"{found.days_per_stage:,.1f} days at an MFU of {found.mfu:.0%}"
    print(f"  {found.tokens_per_stage / 1e9:,.1f} billion tokens: {days}; compiled in {found.compile_seconds:.0f} s")
    for note in found.notes:
        print(f"  {note}")
