"""`plan`: shows the memory, FLOPs and collectives of a stage on TPUs, from the TPU compiler, without a TPU."""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
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
        description="Compiles the training step of a stage for a TPU topology, without a TPU. Prints the bytes on\n"
        "each chip and whether they fit, the FLOPs of a step by formula and as compiled, the bytes of\n"
        "collectives by kind and mesh axes, a lower bound for the time of a step, and an estimate of it\n"
        "from the compiler's cost model. --profile shows where that time goes.\n\n"
        "A distillation stage runs a teacher if the config names one or --teacher_model gives its size;\n"
        "otherwise it reads stored targets. The exit status is 0 also if the step does not fit. Takes one to\n"
        "ten minutes and 3 to 10 GB of host memory. --config.FIELD=VALUE sets any field of the recipe.\n\n"
        "Needs the extra [tpu]; --profile also [plots].",
        epilog="example:\n  python -m gemma3_jax plan --config=experiments/recipe.py:27b --stage=pretrain \\\n"
        "      --topology=v5p:16x16x24 --teacher_model=27b --json\n"
        "  python -m gemma3_jax plan --config=experiments/recipe.py:1b --topology=v5e:4x4 --search \\\n"
        "      --config.mesh.replica=1 --config.mesh.data=16 --config.mesh.seq=1 \\\n"
        "      --config.stages.pretrain.batch_size=16 --config.stages.pretrain.seq_len=8192\n"
        "  python -m gemma3_jax plan --config=experiments/starter.py:1b --topology=v5e:4x4 \\\n"
        "      --profile=runs/profiles/after --compare=runs/profiles/before/profile.json",
    )
    flags.takes_overrides = True
    flags.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="the recipe: a Python file with get_config()"
    )
    flags.add_argument("--stage", default="", metavar="NAME", help="the stage (default: the first one of the recipe)")
    flags.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="the chip (v4, v5e, v5p, v6e or tpu7x) and the shape of a slice, as v5e:16x16 or v5p:4x4x8",
    )
    flags.add_argument(
        "--num_slices", type=int, default=1, metavar="N", help="number of slices of this shape (default: 1)"
    )
    flags.add_argument(
        "--teacher_model",
        metavar="SIZE|FILE",
        help="the model of the teacher: 270m, 1b, 4b, 12b, 27b or a config.json (default: that of config.teacher)",
    )
    flags.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="X",
        help="the MFU, from 0 to 1, for the days of training (default: 0.4)",
    )
    flags.add_argument(
        "--search", action="store_true", help="if the step does not fit, try changes of the config until one does"
    )
    flags.add_argument(
        "--profile",
        metavar="DIR",
        help="print the estimated cycles of the step by place in the model, kind of work and instruction, and write "
        "them as DIR/profile.json and DIR/profile.html",
    )
    flags.add_argument(
        "--compare", metavar="FILE", help="show the profile side by side with another profile.json; needs --profile"
    )
    flags.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return flags


def run(flags: argparse.Namespace) -> None:
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError("No module named 'libtpu'", name="libtpu")
    if not 0 < flags.mfu <= 1:
        raise ValueError(f"--mfu is {flags.mfu}; it must be over 0 and at most 1")
    # Before JAX is imported: JAX must not look for a TPU, and another process may use libtpu too.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # else libtpu warns that there is no TPU

    from gemma3_jax import settings
    from gemma3_jax.cli import recipes
    from gemma3_jax.planning import plan, topologies

    compared = _check_profile(flags)
    config = recipes.load(flags.config, flags.overrides)
    name = flags.stage or config.stage_order[0]
    if name not in config.stages:
        raise ValueError(f"--stage is {name}; config.stages has: {', '.join(config.stages)}")
    topology = topologies.find(flags.topology, flags.num_slices)
    teacher_model = find_teacher(flags.teacher_model, settings.resolve(config, name))

    def attempt(config: settings.Train, what: str) -> plan.Plan:
        with _ticking(f"compiling {name} for {topology.num_chips:,} chips of {topology.name}{what}"):
            return plan.make(settings.resolve(config, name), topology, teacher_model=teacher_model, mfu=flags.mfu)

    result = attempt(config, "")
    if not result.fits:
        change = next(plan.changes(config, name, result.mesh), None)
        advice = f"try {' '.join(change.flags)}" if change else "use more chips"
        if flags.search:
            other = plan.search(config, name, result.mesh, lambda one: attempt(one.config, f", {' '.join(one.flags)}"))
            result, advice = other or result, "no change of the search makes it fit; use more chips"
        if not result.fits:
            result = dataclasses.replace(result, notes=(*result.notes, advice))
    if flags.json:
        terminal.show(json.dumps(result.as_json()))
    else:
        _print(result)
    if flags.profile is not None:
        _write_profile(flags, result, compared)


def _check_profile(flags: argparse.Namespace):
    """Returns the profile to compare with, if any. Raises: ValueError before anything is compiled."""
    if flags.profile is None:
        if flags.compare is not None:
            raise ValueError("--compare needs --profile=DIR, the directory for the profile that is compared")
        return None
    if not flags.profile:
        raise ValueError("--profile is empty; it must be a directory, which is created if it does not exist")
    directory = pathlib.Path(flags.profile)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--profile {directory} is not a directory; name another one")
    existing = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--profile {directory} cannot be written: {existing} is no directory, or not writable")

    from gemma3_jax.planning import profile_file
    from gemma3_jax.report import profile_page  # noqa: F401 (its libraries are missed here, and not after compilation)

    return None if flags.compare is None else profile_file.load(pathlib.Path(flags.compare))


def _write_profile(flags: argparse.Namespace, result, compared) -> None:
    from gemma3_jax.cli import profile_tables
    from gemma3_jax.durable import atomic
    from gemma3_jax.planning import profile_file
    from gemma3_jax.report import profile_page

    if result.profile is None:
        why = "the compiler estimated nothing" if result.fits else "the step does not fit"
        terminal.say(f"--profile: {why}, so no profile is written")
        return
    job = f"{flags.config}, {result.stage}, {result.batch_size} x {result.seq_len:,} tokens"
    of_step = dataclasses.replace(result.profile, title=f"{job}, {result.profile.title}")
    if not flags.json:
        profile_tables.show(of_step)
        if compared:
            profile_tables.show_comparison(of_step, compared)
    directory = pathlib.Path(flags.profile)
    directory.mkdir(parents=True, exist_ok=True)
    files = {"profile.json": profile_file.dump(of_step), "profile.html": profile_page.render(of_step, compared)}
    for name, content in files.items():
        atomic.replace(directory / name, content)
        terminal.say(f"{directory / name}: {len(content) / 1e3:,.0f} kB")


def find_teacher(model_flag: str | None, config):
    """Returns the model of the teacher, from the flag or from its checkpoint; None if the stage has no teacher.

    Raises: ValueError if the flag names one for a stage that takes none.
    """
    from gemma3_jax import settings
    from gemma3_jax.checkpoint import open as checkpoint_open

    flag = "--teacher_model"
    for takes_none, why in (
        (config.loss != "distill", f"loss is {config.loss}, which has no teacher"),
        (config.teacher == settings.START, "teacher is start, which has the model of the stage"),
        (config.targets, f"targets is {config.targets}, which replaces the teacher"),
    ):
        if takes_none:
            if model_flag:
                raise ValueError(f"{flag} is {model_flag}, but config.stages.{config.name}.{why}; leave it out")
            return None
    model = checkpoint_open.find_model(model_flag, flag)
    if model is None and config.teacher:
        model = checkpoint_open.open_checkpoint(pathlib.Path(config.teacher)).model
    return model


@contextlib.contextmanager
def _ticking(what: str):
    """Prints `what`, and every 30 seconds the time that it has taken: the compiler gives no estimate.

    Its thread also handles Ctrl-C: Python runs signal handlers in the main thread, after the compiler returns.
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


def _print(result) -> None:
    mesh = " x ".join(f"{axis} {size}" for axis, size in result.mesh.items())
    num_devices = math.prod(result.mesh.values())
    devices = "" if num_devices == result.num_chips else f", {num_devices:,} devices"
    unit = "device" if devices else "chip"
    terminal.show(
        f"{result.stage} on {result.num_slices} x {result.topology} ({result.num_chips:,} chips{devices}), mesh {mesh}"
    )
    terminal.show(f"{result.batch_size} sequences of {result.seq_len:,} tokens a step\n")
    for kind, size in result.hbm_bytes_by_kind.items():
        terminal.show(f"  {kind:<24}{size / GIB:8.2f} GiB a {unit}")
    verdict = "fits" if result.fits else "does not fit"
    terminal.show(
        f"  {'all':<24}{result.hbm_bytes_per_chip / GIB:8.2f} of {result.hbm_bytes_allowed / GIB:.2f} GiB: {verdict}\n"
    )
    terminal.show(f"  FLOPs by formula        {result.flops_per_step_formula:12.3e} a step")
    if result.fits:
        terminal.show(
            f"  FLOPs as compiled       {result.flops_per_step_hlo:12.3e} a step, {result.flops_ratio:.2f} x\n"
        )
        for one in result.collective_bytes:
            over = "between slices" if one["crosses_slices"] else "links"
            size = one["num_bytes"] / GIB
            terminal.show(f"  {one['kind']:<20}{'+'.join(one['axes']):<18}{size:9.3f} GiB a {unit} and step, {over}")
        terminal.show()
        for limit, seconds in result.seconds_by_limit.items():
            terminal.show(f"  {limit:<24}{seconds:8.3f} s")
        terminal.show(
            f"  a step takes at least   {result.step_seconds_bound:8.3f} s: MFU {result.mfu_bound:.1%} at most"
        )
    if result.estimated_cycles:
        terminal.show(
            f"  estimated, not measured {result.estimated_step_seconds:8.3f} s: MFU {result.estimated_mfu:.1%}, "
            f"{result.estimated_cycles:.2e} cycles, {result.compiler_cycles:.2e} of them by the compiler's model"
        )
        missing = [f"{runs:,} x {kind}" for kind, runs in result.runs_without_estimate.items()]
        if result.estimated_exposed_seconds is None:
            missing.insert(0, "waiting for links and memory")
        else:
            terminal.show(f"  of it, waiting          {result.estimated_exposed_seconds:8.3f} s for links and memory")
        if missing:
            terminal.show(f"  cycles not estimated:   {', '.join(missing)}")
    days = f"{result.days_per_stage:,.1f} days at an MFU of {result.mfu:.0%}"
    terminal.show(
        f"  {result.tokens_per_stage / 1e9:,.1f} billion tokens: {days}; compiled in {result.compile_seconds:.0f} s"
    )
    for note in result.notes:
        terminal.show(f"  {note}")
