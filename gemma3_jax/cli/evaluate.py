"""`evaluate`: scores a checkpoint."""

import argparse
import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator

from gemma3_jax.cli import model_flags, terminal

_MODEL = ("dtype", "mesh", "tokenizer")
# The flags that a task has, beside --checkpoint, --model and --json.
_OF_TASK = {
    "logprobs": ("input", "dtype", "mesh"),
    "perplexity": ("input", "window", "output", *_MODEL),
    "context": ("input", "lengths", "last_tokens", "num_documents", "output", *_MODEL),
    "needle": ("kinds", "lengths", "num_depths", "num_samples", "seed", "output", *_MODEL),
    "memorization": ("input", "num_samples", "prefix_tokens", "suffix_tokens", "seed", "output", *_MODEL),
    "bytes": ("context",),
    "lm_eval": ("lm_tasks", "include_path", "limit", "num_fewshot", "chat", *_MODEL),
}
_SAYS = {
    "input": (
        "FILE",
        "logprobs: a JSON list of lists of token ids; else text: .jsonl (text, source), a text file, a dir",
    ),
    "output": ("FILE", "results item by item; the same command goes on from what is there"),
    "window": ("N", "tokens scored together"),
    "lengths": ("N,...", "tokens: of what is given (context), of the prompt (needle)"),
    "last_tokens": ("N", "tokens at the end of a document that are scored"),
    "num_documents": ("N", "at most"),
    "kinds": ("NAME,...", "single, multikey, multivalue, tracking, common_words"),
    "num_depths": ("N", "places of the needle, from the start to the end"),
    "num_samples": ("N", "needle: of each length and depth; memorization: documents"),
    "prefix_tokens": ("N", "that are given"),
    "suffix_tokens": ("N", "that are to be said"),
    "seed": ("N", "of what is drawn"),
    "context": ("N,...", "tokens in the cache"),
    "lm_tasks": ("NAME,...", "tasks of lm-eval (extra eval)"),
    "include_path": ("DIR", "of lm-eval tasks of your own"),
    "limit": ("N", "items of each task, for a trial"),
    "num_fewshot": ("N", "examples before each item"),
}


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax evaluate",
        description="Scores a checkpoint.\n\n"
        "logprobs      the natural-log probability of each token after the first, for lists of ids; with --json\n"
        '              {"task": "logprobs", "logprobs": [[...], ...]}\n'
        "perplexity    nats a token and bits a byte of documents, by source\n"
        "context       loss by position, and of documents' last tokens against the length of what is given\n"
        "needle        what is found in generated text, by length and depth (after RULER)\n"
        "memorization  how much of its training text is said by heart: exactly, or with a tenth of it edited\n"
        "bytes         what weights and cache take, beside the report's Table 3; --model alone will do\n"
        "lm_eval       tasks of lm-eval, with this model in place",
        epilog="example:\n  echo '[[2, 9259, 1902]]' > ids.json\n"
        "  python -m gemma3_jax evaluate --checkpoint=gemma-3-1b-pt --task=logprobs --input=ids.json --json\n"
        "  python -m gemma3_jax evaluate --checkpoint=run --task=context --input=books.jsonl --lengths=512,4096,32768\n"
        "  python -m gemma3_jax evaluate --model=27b --task=bytes --context=32768,131072",
    )
    model_flags.add_flags(flags, "data")
    flags.add_argument("--task", required=True, choices=tuple(_OF_TASK), help="what to score")
    for name, (metavar, says) in _SAYS.items():
        tasks = [task for task, names in _OF_TASK.items() if name in names]
        defaults = [f"{task}: {_written(_default(task, name))}" for task in tasks if _default(task, name) is not None]
        known = f" ({'; '.join(defaults)})" if defaults else f" ({', '.join(tasks)})"
        flags.add_argument(f"--{name}", metavar=metavar, help=says + known)
    flags.add_argument("--chat", action="store_true", default=None, help="lm_eval: in Gemma's turns")
    flags.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return flags


def _default(task: str, name: str) -> object:
    from gemma3_jax.evals import settings

    asked = settings.Measures()
    return (
        asked.cache_lengths if (task, name) == ("bytes", "context") else getattr(getattr(asked, task, None), name, None)
    )


def _written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run(flags: argparse.Namespace) -> None:
    for name in dict.fromkeys(name for names in _OF_TASK.values() for name in names):
        if name not in _OF_TASK[flags.task] and getattr(flags, name) is not None:
            tasks = ", ".join(task for task, names in _OF_TASK.items() if name in names)
            raise ValueError(f"--{name} is for --task={tasks}; leave it out, or ask for that task")
    needed = ["checkpoint"] * (flags.task != "bytes") + ["input"] * ("input" in _OF_TASK[flags.task])
    for name in needed:
        if not getattr(flags, name):
            raise ValueError(f"--task={flags.task} needs --{name}")
    {"logprobs": _logprobs, "bytes": _bytes, "lm_eval": _lm_eval}.get(flags.task, _measure)(flags)


def _measure(flags: argparse.Namespace) -> None:
    """Tasks that are made of items."""
    from gemma3_jax.evals import registry, task

    asked = _asked(flags)
    if flags.output:
        terminal.on_stop = terminal.Stop(None, f"the same command goes on from {flags.output}")
    gemma = _open(flags)
    found = registry.make(flags.task, gemma, asked)
    kept = pathlib.Path(flags.output) if flags.output else None
    with terminal.bar(flags.task, len(found.items), unit="items") as bar:
        summary = task.run(found, of=_named(flags) if kept else "", kept=kept, progress=bar.update)
    _tell(flags, summary, found.lines(summary))


def _open(flags: argparse.Namespace):
    """The model; how long its rows may be is for the task to say."""
    from gemma3_jax.inference import sampler

    return model_flags.sampler(flags, axis="data", context=sampler.ANY_CONTEXT)


def _asked(flags: argparse.Namespace):
    """Settings of the task, where flags do not say otherwise. Raises: ValueError that names the flag."""
    from gemma3_jax.evals import settings

    given = {}
    for field in dataclasses.fields(getattr(settings.Measures(), flags.task)):
        if (text := getattr(flags, field.name, None)) is not None:
            kind = type(field.default)
            given[field.name] = text if kind is str else _numbers_or_names(field, text)
    try:
        of_task = dataclasses.replace(getattr(settings.Measures(), flags.task), **given)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    return settings.Measures(tasks=(flags.task,), documents=flags.input or "", **{flags.task: of_task})


def _numbers_or_names(field: dataclasses.Field, text: str) -> int | tuple:
    if isinstance(field.default, int):
        return _whole(field.name, text)
    if isinstance(field.default[0], str):
        return tuple(text.split(","))
    return tuple(_whole(field.name, part) for part in text.split(","))


def _whole(name: str, text: str) -> int:
    least = 0 if name in ("seed", "num_fewshot") else 1
    if not text.isascii() or not text.isdecimal() or not least <= int(text) < 2**31:
        raise ValueError(
            f"--{name} has {text!r:.40}; it must be whole numbers from {least} to 2^31 - 1, as 512 or 512,4096"
        )
    return int(text)


def _named(flags: argparse.Namespace) -> str:
    """What tells this model, and how it computes, from others."""
    from gemma3_jax.checkpoint import open as checkpoint_open

    found = checkpoint_open.open_checkpoint(pathlib.Path(flags.checkpoint), checkpoint_open.find_model(flags.model))
    return f"{found.fingerprint()} {flags.dtype or 'float32'}"


def _tell(flags: argparse.Namespace, summary: dict, lines: list[str]) -> None:
    if flags.json:
        print(json.dumps({"task": flags.task, **summary}))
    else:
        print(*lines, sep="\n")


def _logprobs(flags: argparse.Namespace) -> None:
    from gemma3_jax.evals import logprobs

    token_lists = _read_json(pathlib.Path(flags.input))
    gemma = _open(flags)
    logprobs.check(token_lists, gemma.model.vocab_size, flags.input)
    params = gemma.params
    with terminal.bar("score", sum(map(len, token_lists)), unit="tokens") as bar:
        scores = logprobs.score(
            gemma.model, params, token_lists, mesh=gemma.mesh, execute=gemma.execute, progress=bar.update
        )
    for number, row in enumerate(scores):
        if not all(map(math.isfinite, row)):
            raise ValueError(f"{flags.checkpoint} gives list {number} a log-probability that is not finite")
    _tell(flags, {"logprobs": scores}, [" ".join(f"{value:.6f}" for value in row) for row in scores])


def _bytes(flags: argparse.Namespace) -> None:
    from gemma3_jax.checkpoint import open as checkpoint_open
    from gemma3_jax.evals import settings, weight_bytes

    lengths = settings.Measures().cache_lengths
    if flags.context is not None:
        lengths = tuple(_whole("context", part) for part in flags.context.split(","))
    model = checkpoint_open.find_model(flags.model)
    if flags.checkpoint:
        model = checkpoint_open.open_checkpoint(pathlib.Path(flags.checkpoint), model).model
    if model is None:
        raise ValueError("--task=bytes needs --checkpoint or --model")
    table = weight_bytes.table(model, lengths)
    _tell(flags, table, weight_bytes.lines(model, table))


def _lm_eval(flags: argparse.Namespace) -> None:
    if not flags.lm_tasks:
        raise ValueError("--task=lm_eval needs --lm_tasks, names of tasks that lm-eval knows")
    from gemma3_jax.checkpoint import hf_config
    from gemma3_jax.evals import harness, model_api

    numbers = {
        name: _whole(name, getattr(flags, name))
        for name in ("limit", "num_fewshot")
        if getattr(flags, name) is not None
    }
    gemma = _open(flags)
    found = harness.evaluate(
        harness.Model(
            model_api.of(gemma), max_tokens=hf_config.context_length(gemma.model), say=terminal.say, bar=_requests
        ),
        flags.lm_tasks.split(","),
        include_path=pathlib.Path(flags.include_path) if flags.include_path else None,
        apply_chat_template=bool(flags.chat),
        **numbers,
    )
    lines = [
        f"{task}  {metric}  {value:.4f}"
        for task, row in found["results"].items()
        for metric, value in row.items()
        if isinstance(value, float)
    ]
    _tell(flags, found, lines)


@contextlib.contextmanager
def _requests(label: str, total: int) -> Iterator[Callable[[int], object]]:
    with terminal.bar(label, total, unit="requests") as bar:
        yield bar.update


def _read_json(path: pathlib.Path) -> object:
    if not path.exists() or path.is_dir():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise ValueError(f"--input {path} {problem}; it must be a JSON file")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--input {path} is not JSON: {error}") from error
