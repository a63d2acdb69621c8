"""`evaluate`: scores a checkpoint."""

import argparse
import json
import math
import pathlib

from gemma3_jax.cli import terminal

# The flags that one task alone has.
_OF_TASK = {"logprobs": ("input", "dtype", "mesh"), "bytes": ("context",)}


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax evaluate",
        description="Scores a checkpoint.\n\n"
        "Task logprobs: for every list of token ids in --input, the natural-log probability of each token after the\n"
        'first; one line of numbers per list, or with --json {"task": "logprobs", "logprobs": [[...], ...]}.\n\n'
        "Task bytes: what the model's weights take in every format, and its cache of keys and values; beside the\n"
        "report's Table 3 where it is one of its sizes. --model alone will do.",
        epilog="example:\n  echo '[[2, 9259, 1902]]' > ids.json\n"
        "  python -m gemma3_jax evaluate --checkpoint=gemma-3-1b-pt --task=logprobs --input=ids.json --json\n"
        "  python -m gemma3_jax evaluate --model=27b --task=bytes --context=32768,131072",
    )
    flags.add_argument("--checkpoint", metavar="PATH", help="of any kind that convert reads")
    flags.add_argument("--task", required=True, choices=tuple(_OF_TASK), help="what to score")
    flags.add_argument("--input", metavar="FILE", help="logprobs: a JSON list of lists of token ids")
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), help="logprobs: of activations (float32)")
    flags.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="logprobs: axes replica, data, seq, model, on the first N * ... devices (default: data=every device)",
    )
    flags.add_argument("--context", metavar="N,...", help="bytes: tokens in the cache (32768)")
    flags.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    terminal.add_model_flag(flags)
    return flags


def run(flags: argparse.Namespace) -> None:
    for task, names in _OF_TASK.items():
        for name in names:
            if task != flags.task and getattr(flags, name) is not None:
                raise ValueError(f"--{name} is for --task={task}; leave it out, or ask for that task")
    if flags.task == "bytes":
        _bytes(flags)
    else:
        _logprobs(flags)


def _logprobs(flags: argparse.Namespace) -> None:
    import jax

    from gemma3_jax import sharding
    from gemma3_jax.checkpoint import convert
    from gemma3_jax.evals import logprobs
    from gemma3_jax.model import execution, parameters
    from gemma3_jax.quant import settings, view

    for name in ("checkpoint", "input"):
        if not getattr(flags, name):
            raise ValueError(f"--task=logprobs needs --{name}")
    execute = execution.Execution(dtype=flags.dtype or "float32")
    if execute.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # TPUs and GPUs round the factors otherwise
    token_lists = _read_json(pathlib.Path(flags.input))
    mesh = terminal.mesh(flags.mesh or "")
    checkpoint = convert.open_checkpoint(pathlib.Path(flags.checkpoint), convert.find_model(flags.model))
    logprobs.check(token_lists, checkpoint.model.vocab_size, flags.input)
    terminal.say(
        f"reading {flags.checkpoint} ({checkpoint.kind}, {checkpoint.num_bytes() / 2**20:.1f} MiB)", *checkpoint.notes
    )
    if mesh.size > 1:
        terminal.say(sharding.describe(checkpoint.shapes, parameters.shardings(checkpoint.model, mesh)))
    with terminal.bar("read", checkpoint.num_bytes()) as bar:
        params = checkpoint.load(mesh, None, bar.update)
    if checkpoint.kind == "orbax" and checkpoint.quant:
        quant = settings.Quant(**checkpoint.quant)
        terminal.say(f"weights are rounded as they were in training: {quant.name}")
        params = jax.jit(view.make(quant, parameters.dims(checkpoint.model)))(params)
    with terminal.bar("score", sum(map(len, token_lists)), unit="tokens") as bar:
        scores = logprobs.score(checkpoint.model, params, token_lists, mesh=mesh, execute=execute, progress=bar.update)
    for number, row in enumerate(scores):
        if not all(map(math.isfinite, row)):
            raise ValueError(f"{flags.checkpoint} gives list {number} a log-probability that is not finite")
    if flags.json:
        print(json.dumps({"task": flags.task, "logprobs": scores}))
    else:
        for row in scores:
            print(" ".join(f"{value:.6f}" for value in row))


def _bytes(flags: argparse.Namespace) -> None:
    from gemma3_jax.checkpoint import convert
    from gemma3_jax.evals import weight_bytes

    contexts = [_whole(text) for text in (flags.context or str(weight_bytes.REPORT_CONTEXT)).split(",")]
    model = convert.find_model(flags.model)
    if flags.checkpoint:
        model = convert.open_checkpoint(pathlib.Path(flags.checkpoint), model).model
    if model is None:
        raise ValueError("--task=bytes needs --checkpoint or --model")
    table = weight_bytes.table(model, contexts)
    if flags.json:
        print(json.dumps({"task": flags.task, **table}))
        return
    told = table.get("report", {})
    rows = [
        (f"weights {format}, embedding {weight_bytes.STORED[format]}", size, told.get("weights_gb", {}).get(format))
        for format, size in table["weights"].items()
    ]
    for context, layouts in table["cache"].items():
        for layout, numbers in layouts.items():
            for number, size in numbers.items():
                is_told = (context, number, layout) == (told.get("context"), "int8", "window")
                kept = f"a window of {model.window}" if layout == "window" else "all tokens"
                rows.append(
                    (
                        f"cache {number}, {context} tokens, local layers keep {kept}",
                        size,
                        told.get("cache_gb") if is_told else None,
                    )
                )
    width = max(len(name) for name, *_ in rows)
    print(f"{'GB':<{width}}  {'here':>8}" + ("  report" if told else ""))
    for name, size, reported in rows:
        print(
            f"{name:<{width}}  {'-' if size is None else format(size / 1e9, '.3f'):>8}"
            + (f"  {reported:6.1f}" if reported else "")
        )
    if told:
        print(table["note"])


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 2**31:
        raise ValueError(f"--context has {text!r:.40}; it must be whole numbers > 0 and below 2^31, as 32768,131072")
    return int(text)


def _read_json(path: pathlib.Path) -> object:
    if not path.exists() or path.is_dir():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise ValueError(f"--input {path} {problem}; it must be a JSON file")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--input {path} is not JSON: {error}") from error
