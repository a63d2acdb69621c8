"""`evaluate`: scores a checkpoint."""

import argparse
import json
import math
import pathlib

from gemma3_jax.cli import terminal


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax evaluate",
        description="Scores a checkpoint. Task logprobs: for every list of token ids in --input, the natural-log\n"
        "probability of each token after the first; one line of numbers per list, or with --json\n"
        '{"task": "logprobs", "logprobs": [[...], ...]}.',
        epilog="example:\n  echo '[[2, 9259, 1902]]' > ids.json\n"
        "  python -m gemma3_jax evaluate --checkpoint=gemma-3-1b-pt --task=logprobs --input=ids.json --json",
    )
    flags.add_argument("--checkpoint", required=True, metavar="DIR", help="of any kind that convert reads")
    flags.add_argument("--task", required=True, choices=("logprobs",), help="what to score")
    flags.add_argument("--input", required=True, metavar="FILE", help="a JSON list of lists of token ids")
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations (float32)")
    flags.add_argument(
        "--mesh",
        default="",
        metavar="AXIS=N,...",
        help="axes replica, data, seq, model, on the first N * ... devices (default: data=every device)",
    )
    flags.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    terminal.add_model_flag(flags)
    return flags


def run(flags: argparse.Namespace) -> None:
    import jax

    from gemma3_jax import sharding
    from gemma3_jax.checkpoint import convert
    from gemma3_jax.evals import logprobs
    from gemma3_jax.model import execution, parameters

    if flags.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # TPUs and GPUs round the factors otherwise
    token_lists = _read_json(pathlib.Path(flags.input))
    mesh = terminal.mesh(flags.mesh)
    checkpoint = convert.open_checkpoint(pathlib.Path(flags.checkpoint), convert.find_model(flags.model))
    logprobs.check(token_lists, checkpoint.model.vocab_size, flags.input)
    terminal.say(
        f"reading {flags.checkpoint} ({checkpoint.kind}, {checkpoint.num_bytes() / 2**20:.1f} MiB)", *checkpoint.notes
    )
    if mesh.size > 1:
        terminal.say(sharding.describe(checkpoint.shapes, parameters.shardings(checkpoint.model, mesh)))
    with terminal.bar("read", checkpoint.num_bytes()) as bar:
        params = checkpoint.load(mesh, None, bar.update)
    with terminal.bar("score", sum(map(len, token_lists)), unit="tokens") as bar:
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
