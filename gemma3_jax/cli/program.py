"""The command line: verbs, errors and exit statuses. A verb imports its heavy libraries only when it runs."""

import argparse
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

from gemma3_jax import provenance
from gemma3_jax.cli import (
    convert,
    evaluate,
    generate,
    os_error,
    plan,
    prepare,
    report,
    teach,
    terminal,
    tool_process,
    train,
)

USER_ERROR = 1
INTERNAL_ERROR = 71  # an error that the user did not cause, with a traceback; it may not occur on another machine
SECONDS_TO_END = 60.0  # for threads that work on after the verb: wandb still uploads
# Optional libraries, and the extra of setup.cfg that installs them.
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
    "jinja2": "plots",
    "llguidance": "structured",
    "jsonschema": "structured",
    "lm_eval": "eval",
}

VERBS = {
    "prepare": (prepare, "Turn raw text into filtered, tokenized and packed sequences"),
    "train": (train, "Train the stages of a recipe in a run directory"),
    "plan": (plan, "Show the memory, FLOPs and communication of a stage on TPUs, without a TPU"),
    "teach": (teach, "Store the targets of a teacher for the sequences of a stage"),
    "convert": (convert, "Convert a checkpoint to another format"),
    "generate": (generate, "Generate text with a checkpoint, or chat with it"),
    "evaluate": (evaluate, "Evaluate a checkpoint"),
    "report": (report, "Write an HTML page about a run"),
}


def _overview() -> str:
    verbs = "\n".join(f"  {verb:<10} {summary}" for verb, (_, summary) in VERBS.items())
    return (
        "usage: python -m gemma3_jax VERB --flag=value ...\n\n"
        "Trains, distills, quantizes, evaluates and exports language models by the recipe of Gemma 3.\n\n"
        f"verbs:\n{verbs}\n\n"
        "Run 'python -m gemma3_jax VERB --help' for the flags of a verb and an example, and\n"
        "'python -m gemma3_jax --version' for the versions that results depend on."
    )


def _versions() -> list[str]:
    """Returns a line for each package that results depend on, and one for the commit, if there is one."""
    installed = {name: version or "not installed" for name, version in provenance.versions().items()}
    return [f"{name} {value}" for name, value in (*installed.items(), ("commit", provenance.commit())) if value]


def main(arguments: Sequence[str]) -> int:
    """Runs one verb and returns the exit status. A user error prints one line on stderr and no traceback."""
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # Orbax logs the tracebacks of errors that it raises
    terminal.on_stop = terminal.REMOVE_PARTIAL
    flags = argparse.Namespace()
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            terminal.show(_overview())
            return 0 if arguments else USER_ERROR
        if arguments[0] == "--version":
            terminal.show(*_versions())
            return 0
        verb, *rest = arguments
        if verb not in VERBS:
            close = difflib.get_close_matches(verb, VERBS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"there is no verb {verb}{hint} (the verbs are: {', '.join(VERBS)})")
        module, _ = VERBS[verb]
        flags = module.parser().parse_all(rest)
        status = module.run(flags)
        with terminal.of_stdout():
            sys.stdout.flush()  # so that a full disk or a closed pipe is reported here and not at interpreter exit
        return status or 0
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        terminal.say(f"gemma3_jax: error: {error.name} is not installed; pip install 'gemma3_jax[{extra}]'")
        return USER_ERROR
    except (ValueError, OSError) as error:
        message = os_error.describe(error, flags) if isinstance(error, OSError) else str(error)
        terminal.say(f"gemma3_jax: error: {' '.join(message.split())}")
        return USER_ERROR
    except (RuntimeError, MemoryError, AssertionError) as error:
        if problem := _platform_problem():
            terminal.say(f"gemma3_jax: error: {problem}")
            return USER_ERROR
        if not isinstance(error, MemoryError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = str(error).partition("\n")[0] or "no host memory left"
        terminal.say(f"gemma3_jax: error: out of memory: {reason}; use more devices, or smaller batches")
        return USER_ERROR


def _platform_problem() -> str | None:
    """Returns why JAX cannot use the platform that JAX_PLATFORMS names; None if it can, or may at another attempt."""
    platforms, jax = os.environ.get("JAX_PLATFORMS"), sys.modules.get("jax")
    if not platforms or not jax:
        return None
    try:
        jax.devices()
        return None
    except (RuntimeError, AssertionError) as error:  # the second, without a text, for a GPU without its plugin
        reason = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0]
    if "already in use" in reason or any(status in reason for status in ("UNAVAILABLE", "ABORTED", "DEADLINE")):
        return None
    return (
        f"JAX_PLATFORMS is {platforms}, and JAX finds no such devices{reason and f': {reason}'}; set it to a platform "
        "of this machine, or unset it"
    )


def stop(number: int, frame: object) -> None:
    """Ends the process and its tools in a signal handler, and removes files that are partly written.

    An exception would be lost if it were raised in a callback of a library.
    """
    _clean_up()
    line = "\n" if sys.stderr.isatty() else ""  # ends the line of a progress bar
    terminal.say(f"{line}gemma3_jax: stopped by {signal.Signals(number).name}; {terminal.on_stop.note}")
    os._exit(128 + number if terminal.on_stop.status is None else terminal.on_stop.status)


def _hang_up(number: int, frame: object) -> None:
    """Ends the process in a signal handler after its terminal was closed."""
    _clean_up()
    os._exit(128 + number)


def _clean_up() -> None:
    """Ends tools, and removes files that are partly written."""
    tool_process.kill()
    if atomic := sys.modules.get("gemma3_jax.durable.atomic"):
        atomic.remove_partials()


def run() -> None:
    """Runs the program: the entry point of `python -m gemma3_jax` and of the console script."""
    _open_closed_streams()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, _hang_up)
    # After a user error, the event loops of Orbax report pages of errors that they could not raise, some of them at
    # interpreter exit. They are shown only if the verb has not failed.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    unraisable: list[str] = []
    sys.unraisablehook = lambda args: unraisable.append(f"{args.err_msg or 'Exception ignored'}: {args.exc_value!r}")
    try:
        status = main(sys.argv[1:])
    except Exception:
        terminal.say(traceback.format_exc().rstrip())
        status = INTERNAL_ERROR
    if status != 0:
        os._exit(status)
    sys.unraisablehook = sys.__unraisablehook__
    if unraisable:
        terminal.say(*unraisable)
    threading.Thread(target=_end, daemon=True).start()


def _open_closed_streams() -> None:
    """Opens the null device as each of stdin, stdout and stderr that a shell has closed.

    Otherwise the next file that is opened would take its place, and get what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def _end() -> None:
    """Ends the process after a while: threads of Orbax wait forever after a save that failed."""
    time.sleep(SECONDS_TO_END)
    os._exit(0)
