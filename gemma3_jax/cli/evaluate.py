"""`evaluate`: evaluates a checkpoint."""

import argparse
import dataclasses
import functools
import json
import math
import pathlib

from gemma3_jax.cli import model_flags, terminal

_MODEL_FLAGS = ("dtype", "mesh", "tokenizer")
# The flags of each task, besides --checkpoint, --model and --json.
_TASK_FLAGS = {
    "logprobs": ("input", "dtype", "mesh"),
    "perplexity": ("input", "window", "output", *_MODEL_FLAGS),
    "context": ("input", "lengths", "last_tokens", "num_documents", "output", *_MODEL_FLAGS),
    "needle": ("kinds", "lengths", "num_depths", "num_samples", "seed", "output", *_MODEL_FLAGS),
    "memorization": ("input", "num_samples", "prefix_tokens", "suffix_tokens", "seed", "output", *_MODEL_FLAGS),
    "bytes": ("context",),
    "lm_eval": ("lm_tasks", "include_path", "limit", "num_fewshot", "chat", *_MODEL_FLAGS),
}
_HELP = {
    "input": (
        "FILE",
        "for logprobs, a JSON list of lists of token ids; for other tasks the documents: a file that prepare --input "
        "reads (JSON lines with 'text' and optionally 'source', a JSON array, Parquet, a text), or a directory of "
        "these; for perplexity also chats ('messages'), of which what the model says is scored",
    ),
    "output": ("FILE", "append the result of each item to this file, and resume from the results that it has"),
    "window": ("N", "tokens that are scored together"),
    "lengths": ("N,...", "lengths in tokens, of the context (context) or of the prompt (needle)"),
    "last_tokens": ("N", "tokens at the end of a document that are scored"),
    "num_documents": ("N", "documents to score at most"),
    "kinds": ("NAME,...", "kinds of question: single, multikey, multivalue, tracking, common_words"),
    "num_depths": ("N", "positions of the needle, evenly from the start to the end of the text"),
    "num_samples": ("N", "prompts of each length and depth (needle), or documents (memorization)"),
    "prefix_tokens": ("N", "tokens of a document in the prompt"),
    "suffix_tokens": ("N", "tokens after the prefix that the model should generate"),
    "seed": ("N", "seed of the random draws"),
    "context": ("N,...", "tokens in the cache"),
    "lm_tasks": ("NAME,...", "tasks of lm-eval; they need the extra [eval]"),
    "include_path": ("DIR", "a directory with lm-eval tasks of your own"),
    "limit": ("N", "items of each lm-eval task, for a trial; all if left out"),
    "num_fewshot": ("N", "examples before each item; those of the task if left out"),
}


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax evaluate",
        description="Evaluates a checkpoint. --task is one of\n\n"
        "logprobs      natural log of the probability of each token after the first, for lists of ids; --json prints\n"
        '              {"task": "logprobs", "logprobs": [[...], ...]}\n'
        "perplexity    nats per token and bits per byte of documents, or of the answers in chats, by source\n"
        "context       loss by position, and loss of documents' last tokens by length of context\n"
        "needle        retrieval from generated texts, by length and depth (after RULER)\n"
        "memorization  how often the model continues its training text exactly, or with at most 10 % of edits\n"
        "bytes         size of weights and cache, compared with the report's Table 3; takes --model instead, too\n"
        "lm_eval       tasks of lm-eval",
        epilog="example:\n  echo '[[2, 9259, 1902]]' > ids.json\n"
        "  python -m gemma3_jax evaluate --checkpoint=gemma-3-1b-pt --task=logprobs --input=ids.json --json\n"
        "  python -m gemma3_jax evaluate --checkpoint=run --task=context --input=books.jsonl --lengths=512,4096,32768\n"
        "  python -m gemma3_jax evaluate --model=27b --task=bytes --context=32768,131072",
    )
    model_flags.add_flags(flags, "data")
    flags.add_argument("--task", required=True, choices=tuple(_TASK_FLAGS), help="the evaluation to run")
    for name, (metavar, text) in _HELP.items():
        flags.add_argument(f"--{name}", metavar=metavar, help=f"{text}. {_tasks_and_defaults(name)}")
    flags.add_argument("--chat", action="store_true", default=None, help="use Gemma's chat format. Used by lm_eval")
    flags.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return flags


def _tasks_and_defaults(name: str) -> str:
    """The tasks that have a flag, with its defaults."""
    tasks = {task: _default(task, name) for task, names in _TASK_FLAGS.items() if name in names}
    return f"Used by {', '.join(task if x is None else f'{task} (default: {_format(x)})' for task, x in tasks.items())}"


def _default(task: str, name: str) -> object:
    from gemma3_jax.evals import settings

    options = settings.Measures()
    if (task, name) == ("bytes", "context"):
        return options.cache_lengths
    return getattr(getattr(options, task, None), name, None)


def _format(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run(flags: argparse.Namespace) -> None:
    for name in dict.fromkeys(name for names in _TASK_FLAGS.values() for name in names):
        if name not in _TASK_FLAGS[flags.task] and getattr(flags, name) is not None:
            tasks = ", ".join(task for task, names in _TASK_FLAGS.items() if name in names)
            raise ValueError(f"--{name} is for --task={tasks}; leave it out, or choose that task")
    needed = ["checkpoint"] * (flags.task != "bytes") + ["input"] * ("input" in _TASK_FLAGS[flags.task])
    for name in needed:
        if not getattr(flags, name):
            raise ValueError(f"--task={flags.task} needs --{name}")
    {"logprobs": _logprobs, "bytes": _bytes, "lm_eval": _lm_eval}.get(flags.task, _run_task)(flags)


def _run_task(flags: argparse.Namespace) -> None:
    """Runs a task of the registry, and prints its summary."""
    from gemma3_jax.evals import registry, task

    options = _options(flags)
    if flags.output:
        terminal.on_stop = terminal.Stop(None, f"run the same command to resume from {flags.output}")
    gemma = _open(flags)
    chosen = registry.make(flags.task, gemma.sampler, options)
    path = pathlib.Path(flags.output) if flags.output else None
    with terminal.bar(flags.task, len(chosen.items), unit="items") as bar:
        model_id = _model_id(flags) if path else ""
        summary = task.run(chosen, lambda: gemma.params, model_id=model_id, path=path, progress=bar.update)
    print_summary(flags, summary, chosen.format_lines(summary))


def _open(flags: argparse.Namespace):
    """The checkpoint, without a limit of its context: the task determines lengths."""
    from gemma3_jax.inference import engine

    return model_flags.open_sampler(flags, axis="data", context=engine.ANY_CONTEXT)


def _options(flags: argparse.Namespace):
    """The settings of the task, from the flags that are set. Raises: ValueError that names the flag."""
    from gemma3_jax.evals import settings

    changes = {}
    for field in dataclasses.fields(getattr(settings.Measures(), flags.task)):
        if (text := getattr(flags, field.name, None)) is not None:
            kind = type(field.default)
            changes[field.name] = text if kind is str else _parse(field, text)
    try:
        task_options = dataclasses.replace(getattr(settings.Measures(), flags.task), **changes)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    return settings.Measures(tasks=(flags.task,), documents=flags.input or "", **{flags.task: task_options})


def _parse(field: dataclasses.Field, text: str) -> int | tuple:
    if isinstance(field.default, int):
        return _parse_integer(field.name, text)
    if isinstance(field.default[0], str):
        return tuple(text.split(","))
    return tuple(_parse_integer(field.name, part) for part in text.split(","))


def _parse_integer(name: str, text: str) -> int:
    minimum = 0 if name in ("seed", "num_fewshot") else 1
    if not text.isascii() or not text.isdecimal() or not minimum <= int(text) < 2**31:
        raise ValueError(
            f"--{name} has {text!r:.40}; it must be whole numbers from {minimum} to 2^31 - 1, as 512 or 512,4096"
        )
    return int(text)


def _model_id(flags: argparse.Namespace) -> str:
    """Identifies the weights and the dtype they are used in."""
    checkpoint = model_flags.open_checkpoint(flags, pathlib.Path(flags.checkpoint))
    return f"{checkpoint.fingerprint()} {flags.dtype or 'float32'}"


def print_summary(flags: argparse.Namespace, summary: dict, lines: list[str]) -> None:
    """Prints a summary: as JSON if the flags ask for it, else these lines."""
    if flags.json:
        terminal.show(json.dumps({"task": flags.task, **summary}))
    else:
        terminal.show(*lines)


def _logprobs(flags: argparse.Namespace) -> None:
    from gemma3_jax.evals import logprobs

    token_lists = _read_json(pathlib.Path(flags.input))
    gemma = _open(flags)
    logprobs.check(token_lists, gemma.model.vocab_size, flags.input)
    params, engine = gemma.params, gemma.sampler.engine
    with terminal.bar("score", sum(map(len, token_lists)), unit="tokens") as bar:
        scores = logprobs.score(
            engine.model, params, token_lists, mesh=engine.mesh, execute=engine.execute, progress=bar.update
        )
    for number, row in enumerate(scores):
        if not all(map(math.isfinite, row)):
            raise ValueError(f"{flags.checkpoint} gives list {number} a log-probability that is not finite")
    print_summary(flags, {"logprobs": scores}, [" ".join(f"{value:.6f}" for value in row) for row in scores])


def _bytes(flags: argparse.Namespace) -> None:
    from gemma3_jax.checkpoint import open as checkpoint_open
    from gemma3_jax.evals import settings, weight_bytes

    lengths = settings.Measures().cache_lengths
    if flags.context is not None:
        lengths = tuple(_parse_integer("context", part) for part in flags.context.split(","))
    if flags.checkpoint:
        model = model_flags.open_checkpoint(flags, pathlib.Path(flags.checkpoint)).model
    else:
        model = checkpoint_open.find_model(flags.model)
    if model is None:
        raise ValueError("--task=bytes needs --checkpoint or --model")
    table = weight_bytes.table(model, lengths)
    print_summary(flags, table, weight_bytes.lines(model, table))


def _lm_eval(flags: argparse.Namespace) -> None:
    if not flags.lm_tasks:
        raise ValueError("--task=lm_eval needs --lm_tasks, names of lm-eval tasks")
    from gemma3_jax.checkpoint import hf_config
    from gemma3_jax.evals import harness, model_api

    numbers = {
        name: _parse_integer(name, getattr(flags, name))
        for name in ("limit", "num_fewshot")
        if getattr(flags, name) is not None
    }
    gemma = _open(flags)
    output = harness.evaluate(
        harness.LmEvalModel(
            model_api.of_sampler(gemma.sampler),
            lambda: gemma.params,
            max_tokens=hf_config.context_length(gemma.model),
            say=terminal.say,
            bar=functools.partial(terminal.bar, unit="requests"),
        ),
        flags.lm_tasks.split(","),
        include_path=pathlib.Path(flags.include_path) if flags.include_path else None,
        apply_chat_template=bool(flags.chat),
        **numbers,
    )
    lines = [
        f"{task}  {metric}  {value:.4f}"
        for task, row in output["results"].items()
        for metric, value in row.items()
        if isinstance(value, float)
    ]
    print_summary(flags, output, lines)


def _read_json(path: pathlib.Path) -> object:
    if not path.exists() or path.is_dir():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise ValueError(f"--input {path} {problem}; it must be a JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--input {path} is not JSON: {error}") from error
