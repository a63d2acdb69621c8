"""The program: its verbs, its exit status, and how it ends. Everything heavy is imported by the verb that needs it."""

import difflib
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence

from gemma3_jax.cli import convert, evaluate, generate, plan, prepare, report, teach, terminal, train

USER_ERROR = 1
BROKEN = 71  # an error that is nobody's input, with its traceback: another attempt may find another machine
SECONDS_TO_END = 60.0  # once all is done: wandb, for one, still sends what it has
# Libraries that not everybody needs, and the extra of setup.cfg that brings them.
EXTRAS = {
    "datasketch": "prepare",
    "detect_secrets": "prepare",
    "libtpu": "tpu",
    "phonenumbers": "prepare",
    "pyarrow": "prepare",
    "stdnum": "prepare",
    "apache_beam": "beam",
    "tensorflow_datasets": "tfds",
    "wandb": "wandb",
    "matplotlib": "plots",
    "llguidance": "structured",
    "jsonschema": "structured",
    "lm_eval": "eval",
}

VERBS = {
    "prepare": (prepare, "raw text -> filtered, tokenised, packed rows"),
    "train": (train, "walks a recipe's stages in one run directory"),
    "plan": (plan, "what a stage costs on TPUs, with no TPU at hand"),
    "teach": (teach, "stores what a teacher says of the rows of a stage"),
    "convert": (convert, "writes a checkpoint as another kind"),
    "generate": (generate, "samples from a checkpoint"),
    "evaluate": (evaluate, "scores a checkpoint"),
    "report": (report, "one page that shows a run"),
}


def _overview() -> str:
    verbs = "\n".join(f"  {verb:<10} {says}" for verb, (_, says) in VERBS.items())
    return (
        f"usage: python -m gemma3_jax VERB --flag=value ...\n\nThe Gemma 3 recipe as a program.\n\nverbs:\n{verbs}\n\n"
        f"python -m gemma3_jax VERB --help says what a verb does, its flags, and an example."
    )


def main(arguments: Sequence[str]) -> int:
    """Runs one verb; returns the exit status. Errors of the user are one line on stderr, never a traceback."""
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # Orbax logs tracebacks of what it also raises
    terminal.on_stop = terminal.LEAVE_NOTHING
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_overview())
            return 0 if arguments else USER_ERROR
        verb, *rest = arguments
        if verb not in VERBS:
            close = difflib.get_close_matches(verb, VERBS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"no verb {verb}{hint} (there are: {', '.join(VERBS)})")
        module, _ = VERBS[verb]
        status = module.run(module.parser().parse_all(rest))
        sys.stdout.flush()  # a full disk or a closed pipe is an error of this verb, not of the interpreter's end
        return status or 0
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        terminal.say(f"gemma3_jax: error: {error.name} is not installed; pip install 'gemma3_jax[{extra}]'")
        return USER_ERROR
    except (ValueError, OSError) as error:
        terminal.say(f"gemma3_jax: error: {' '.join(str(error).split())}")
        return USER_ERROR
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = str(error).partition("\n")[0] or "no host memory left"
        terminal.say(f"gemma3_jax: error: out of memory: {reason}; spread over more devices, or give it less at once")
        return USER_ERROR


def _stop(number: int, frame: object) -> None:
    """Ends the process from a signal handler, whatever it is doing, with nothing half-written.

    An exception would do the same where it lands in our code, but is lost where it lands in a callback of a library.
    """
    if target := sys.modules.get("gemma3_jax.checkpoint.target"):
        target.remove_partials()
    line = "\n" if sys.stderr.isatty() else ""  # behind a bar
    terminal.say(f"{line}gemma3_jax: stopped by {signal.Signals(number).name}; {terminal.on_stop.note}")
    os._exit(128 + number if terminal.on_stop.status is None else terminal.on_stop.status)


def run() -> None:
    """The console script."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    # Over an error that is told in one line, Orbax's event loops leave behind pages of what they could not raise any
    # more, some as late as the interpreter's end. They are shown if there was no such error.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    kept_back: list[str] = []
    sys.unraisablehook = lambda args: kept_back.append(f"{args.err_msg or 'Exception ignored'}: {args.exc_value!r}")
    try:
        status = main(sys.argv[1:])
    except Exception:
        traceback.print_exc()
        status = BROKEN
    if status != 0:
        os._exit(status)
    sys.unraisablehook = sys.__unraisablehook__
    if kept_back:
        terminal.say(*kept_back)
    threading.Thread(target=_end, daemon=True).start()


def _end() -> None:
    """Ends a process that is done and stays: after a save that failed, threads of Orbax wait for good."""
    time.sleep(SECONDS_TO_END)
    os._exit(0)
