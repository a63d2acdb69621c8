"""The command line: verbs, flags, exit status. Everything heavy is imported by the verb that needs it."""

import argparse
import difflib
import json
import logging
import math
import os
import pathlib
import re
import signal
import sys
import time
import warnings
from collections.abc import Sequence

PROGRAM = "gemma3_jax"
USER_ERROR = 1


class _Parser(argparse.ArgumentParser):
    """argparse with this program's manners: exit status 1, one line, and a suggestion for a flag it does not know."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        raise ValueError(f"{message} ({self.prog} --help lists what there is)")

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        known = [name for action in self._actions for name in action.option_strings]
        for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("-")):
            if flag not in known:
                close = difflib.get_close_matches(flag, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.error(f"{self.prog} has no flag {flag}{hint}")
        return self.parse_args(arguments)


def _convert_parser() -> _Parser:
    parser = _Parser(
        prog=f"python -m {PROGRAM} convert",
        description="Writes a checkpoint as another kind. The kind of the source is recognised: an Orbax checkpoint\n"
        "of this program, a Hugging Face directory, or an Orbax tree of the gemma library (nested or flat, per\n"
        "layer or stacked). The target appears whole or not at all. Parameters and the model's shape are carried;\n"
        "tokenizer and generation settings are not.",
        epilog=f"example:\n  python -m {PROGRAM} convert --source=gemma-3-1b-pt --target=1b.orbax --format=orbax",
    )
    parser.add_argument("--source", required=True, metavar="DIR", help="the checkpoint to read")
    parser.add_argument("--target", required=True, metavar="DIR", help="the checkpoint to write; must not exist")
    parser.add_argument("--format", required=True, choices=("orbax", "hf"), help="the kind to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of what is written (default: as stored)")
    _add_model_flag(parser)
    return parser


def _add_model_flag(parser: _Parser) -> None:
    parser.add_argument(
        "--model",
        metavar="SIZE|FILE",
        help="270m, 1b, 4b, 12b, 27b or a config.json: the model's shape, for an Orbax tree of the gemma library whose "
        "size is not a published one (default: recognised)",
    )


def _convert(flags: argparse.Namespace) -> None:
    import numpy as np

    from gemma3_jax import sharding
    from gemma3_jax.checkpoint import convert, hf_config, target
    from gemma3_jax.model import execution

    dtype = np.dtype(execution.DTYPES[flags.dtype]) if flags.dtype else None
    source = convert.open_checkpoint(pathlib.Path(flags.source), convert.find_model(flags.model))
    path = pathlib.Path(os.path.abspath(flags.target))
    if path.is_relative_to(os.path.abspath(flags.source)):
        raise ValueError(f"--target {flags.target} is inside --source {flags.source}; choose a place outside of it")
    target.check_new(path, source.num_bytes(dtype))
    if flags.format == "hf":
        hf_config.write(source.model, "float32")  # refuses what config.json cannot say, before anything is read
    _say(f"reading {flags.source} ({source.kind}, {source.num_bytes() / 2**20:.1f} MiB)", *source.notes)
    started = time.monotonic()
    with _bar("read", source.num_bytes(dtype)) as bar:
        params = source.load(sharding.make_mesh(), dtype, bar.update)
    with _bar("write", source.num_bytes(dtype) if flags.format == "hf" else None) as bar:
        convert.write(path, flags.format, source.model, params, bar.update)
    _say(f"wrote {flags.target} ({flags.format}) in {time.monotonic() - started:.1f} s")


def _evaluate_parser() -> _Parser:
    parser = _Parser(
        prog=f"python -m {PROGRAM} evaluate",
        description="Scores a checkpoint. Task logprobs: for every list of token ids in --input, the natural-log\n"
        "probability of each token after the first; one line of numbers per list, or with --json\n"
        '{"task": "logprobs", "logprobs": [[...], ...]}.',
        epilog=f"example:\n  echo '[[2, 9259, 1902]]' > ids.json\n"
        f"  python -m {PROGRAM} evaluate --checkpoint=gemma-3-1b-pt --task=logprobs --input=ids.json --json",
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="of any kind that convert reads")
    parser.add_argument("--task", required=True, choices=("logprobs",), help="what to score")
    parser.add_argument("--input", required=True, metavar="FILE", help="a JSON list of lists of token ids")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations (float32)")
    parser.add_argument(
        "--mesh",
        default="",
        metavar="AXIS=N,...",
        help="axes replica, data, seq, model, on the first N * ... devices (default: data=every device)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    _add_model_flag(parser)
    return parser


def _evaluate(flags: argparse.Namespace) -> None:
    import jax

    from gemma3_jax import sharding
    from gemma3_jax.checkpoint import convert
    from gemma3_jax.evals import logprobs
    from gemma3_jax.model import execution, parameters

    if flags.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # TPUs and GPUs round the factors otherwise
    token_lists = _read_json(pathlib.Path(flags.input))
    mesh = _mesh(flags.mesh)
    checkpoint = convert.open_checkpoint(pathlib.Path(flags.checkpoint), convert.find_model(flags.model))
    logprobs.check(token_lists, checkpoint.model.vocab_size, flags.input)
    _say(f"reading {flags.checkpoint} ({checkpoint.kind}, {checkpoint.num_bytes() / 2**20:.1f} MiB)", *checkpoint.notes)
    if mesh.size > 1:
        _say(sharding.describe(checkpoint.shapes, parameters.shardings(checkpoint.model, mesh)))
    with _bar("read", checkpoint.num_bytes()) as bar:
        params = checkpoint.load(mesh, None, bar.update)
    with _bar("score", sum(map(len, token_lists)), unit="tokens") as bar:
        scores = logprobs.score(
            checkpoint.model,
            params,
            token_lists,
            mesh=mesh,
            execute=execution.Execution(dtype=flags.dtype),
            progress=bar.update,
        )
    for number, row in enumerate(scores):
        if not all(map(math.isfinite, row)):
            raise ValueError(f"{flags.checkpoint} gives list {number} a log-probability that is not finite")
    if flags.json:
        print(json.dumps({"task": flags.task, "logprobs": scores}))
    else:
        for row in scores:
            print(" ".join(f"{value:.6f}" for value in row))


def _read_json(path: pathlib.Path) -> object:
    if not path.exists() or path.is_dir():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise ValueError(f"--input {path} {problem}; it must be a JSON file")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--input {path} is not JSON: {error}") from error


def _mesh(text: str):
    """The mesh that `--mesh` asks for: "data=4,model=2", or every device on `data`."""
    import jax

    from gemma3_jax import sharding

    if not text:
        return sharding.make_mesh(data=jax.device_count())
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sharding.AXES or not re.fullmatch("[0-9]+", size) or axis in sizes:
            raise ValueError(f"--mesh is {text}; it must be AXIS=N,... with each axis once: {', '.join(sharding.AXES)}")
        sizes[axis] = int(size)
    return sharding.make_mesh(**sizes)


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def _bar(label: str, total: int | None, unit: str = "B"):
    """A progress bar with ETA; where stderr is no terminal, a line every ten seconds of what takes longer."""
    import tqdm

    seconds = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm.tqdm(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=True,
        unit_divisor=1024 if unit == "B" else 1000,
        mininterval=seconds,
        delay=seconds,
        file=sys.stderr,
    )


VERBS = {
    "convert": (_convert_parser, _convert, "writes a checkpoint as another kind"),
    "evaluate": (_evaluate_parser, _evaluate, "scores a checkpoint"),
}


def _overview() -> str:
    verbs = "\n".join(f"  {verb:<10} {says}" for verb, (_, _, says) in VERBS.items())
    return (
        f"usage: python -m {PROGRAM} VERB --flag=value ...\n\nThe Gemma 3 recipe as a program.\n\nverbs:\n{verbs}\n\n"
        f"python -m {PROGRAM} VERB --help says what a verb does, its flags, and an example."
    )


def main(arguments: Sequence[str]) -> int:
    """Runs one verb; returns the exit status. Errors of the user are one line on stderr, never a traceback."""
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # Orbax logs tracebacks of what it also raises
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_overview())
            return 0 if arguments else USER_ERROR
        verb, *rest = arguments
        if verb not in VERBS:
            close = difflib.get_close_matches(verb, VERBS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"no verb {verb}{hint} (there are: {', '.join(VERBS)})")
        make_parser, run_verb, _ = VERBS[verb]
        run_verb(make_parser().parse_all(rest))
        sys.stdout.flush()  # a full disk or a closed pipe is an error of this verb, not of the interpreter's end
        return 0
    except (ValueError, OSError) as error:
        _say(f"{PROGRAM}: error: {' '.join(str(error).split())}")
        return USER_ERROR
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = str(error).partition("\n")[0] or "no host memory left"
        _say(f"{PROGRAM}: error: out of memory: {reason}; spread over more devices, or score shorter lists")
        return USER_ERROR


def _stop(number: int, frame: object) -> None:
    """Ends the process from a signal handler, whatever it is doing, with nothing half-written.

    An exception would do the same where it lands in our code, but is lost where it lands in a callback of a library.
    """
    if target := sys.modules.get("gemma3_jax.checkpoint.target"):
        target.remove_partials()
    _say(f"{PROGRAM}: stopped by {signal.Signals(number).name}; what was being written is removed")
    os._exit(128 + number)


def run() -> None:
    """The console script."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    # Over an error that is told in one line, Orbax's event loops leave behind pages of what they could not raise any
    # more, some as late as the interpreter's end. They are shown if there was no such error.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    kept_back: list[str] = []
    sys.unraisablehook = lambda args: kept_back.append(f"{args.err_msg or 'Exception ignored'}: {args.exc_value!r}")
    status = main(sys.argv[1:])
    if status != 0:
        os._exit(status)
    sys.unraisablehook = sys.__unraisablehook__
    if kept_back:
        _say(*kept_back)
