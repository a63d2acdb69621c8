"""`prepare`: raw text -> a data set of filtered, tokenized, packed sequences."""

import argparse
import json
import logging
import os
import pathlib
import textwrap

from gemma3_jax.cli import terminal


def parser() -> terminal.Parser:
    from gemma3_jax.cli import field_help
    from gemma3_jax.data.prepare import settings

    fields = textwrap.indent("\n".join(field_help.describe(settings.PrepareConfig)), "  ")
    flags = terminal.Parser(
        prog="python -m gemma3_jax prepare",
        description="Turns raw text into packed sequences to train on.\n\n"
        "Reads the files of --input (JSON lines, a JSON array, Parquet, or texts; documents or chats; .gz, .bz2, .xz,\n"
        ".zst or .zip), whose format it recognizes and names, or the sources of a config. Filters them, removes\n"
        "duplicates and overlap with evaluation sets, masks personal data, tokenizes, and packs sequences into\n"
        "ArrayRecord shards with a manifest. Trains a tokenizer if none is named.\n\n"
        "It can be stopped at any moment; run the same command to resume. The same sources and config give the\n"
        "same bytes. --config.FIELD=VALUE sets any field.",
        epilog="example:\n  python -m gemma3_jax prepare --input=chats.jsonl --tokenizer=gemma-3-1b-it --output=data\n"
        "  python -m gemma3_jax prepare --config=experiments/demo_data.py --output=data/demo \\\n"
        "      --config.seq_lens='(512,)' --config.duplicates.near=False\n\n"
        f"fields of the config, with their defaults (you choose each NAME):\n{fields}",
    )
    flags.takes_overrides = True
    flags.add_argument(
        "--input",
        action="append",
        metavar="FILE",
        help="a file, a glob or an archive of records with 'text' or with 'messages' (turns of {role, content}), or of "
        "texts; may be repeated",
    )
    flags.add_argument("--config", metavar="FILE[:ARG]", help="instead of --input: a Python file with get_config()")
    flags.add_argument(
        "--tokenizer",
        metavar="FILE|DIR",
        help="a tokenizer.model, a tokenizer.json, or a Hugging Face directory (default: config.tokenizer.path)",
    )
    flags.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="the data set to write: a new directory, or an unfinished data set",
    )
    flags.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="worker processes on this machine (default: one per core)",
    )
    flags.add_argument(
        "--runner",
        metavar="NAME",
        help="run as an Apache Beam pipeline: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner (extra [beam])",
    )
    flags.add_argument(
        "--runner_options",
        default="",
        metavar="FLAGS",
        help="flags of the Beam runner, such as --runner_options='--A=B ...'",
    )
    flags.add_argument("--json", action="store_true", help="print the report as one JSON object on stdout")
    return flags


def run(flags: argparse.Namespace) -> None:
    config = _config(flags)
    if flags.processes < 0:
        raise ValueError(f"--processes is {flags.processes}; it must be >= 0 (0: in this process)")
    if flags.runner_options and not flags.runner:
        raise ValueError("--runner_options needs --runner")
    if not flags.output:
        raise ValueError("--output is empty; name the directory to write")
    output = flags.output if "://" in flags.output else str(pathlib.Path(flags.output).absolute())
    if flags.runner:
        note = f"{flags.output} is not finished; end the job of {flags.runner} if it still runs, then run this again"
        terminal.on_stop = terminal.Stop(75, note)
        logging.getLogger().setLevel(logging.ERROR)  # Beam warns about every cloud it cannot reach
        from gemma3_jax.data.prepare import beam

        manifest, report = beam.run(config, output, flags.runner, flags.runner_options.split(), bar=terminal.bar)
    else:
        terminal.on_stop = terminal.Stop(75, f"finished work stays in {flags.output}; run the same command to resume")
        from gemma3_jax.data.prepare import pipeline

        manifest, report = pipeline.run(config, output, num_processes=flags.processes, bar=terminal.bar)
    terminal.say(summary(flags.output, manifest, report))
    if flags.json:
        terminal.show(json.dumps(report, ensure_ascii=False))


def _config(flags: argparse.Namespace):
    """Returns the settings, from a config file or from the files to read. Raises: ValueError."""
    from gemma3_jax.cli import configs
    from gemma3_jax.data.prepare import formats, settings

    if bool(flags.input) == bool(flags.config):
        got = "both --input and --config" if flags.input else "neither --input nor --config"
        raise ValueError(
            f"prepare has {got}; it takes one: --input=FILE for your text or chats, or --config=FILE for sources, "
            "filters and a mixture of your own"
        )
    values = configs.run_file(flags.config) if flags.config else {"sources": formats.sources_of(flags.input)}
    values = configs.read(values, flags.overrides, settings.PrepareConfig)
    if flags.tokenizer is not None:
        if not flags.tokenizer:
            raise ValueError("--tokenizer is empty; name a tokenizer.model, a tokenizer.json or a directory with one")
        if values["tokenizer"]["path"] not in ("", flags.tokenizer):
            raise ValueError(
                f"--tokenizer is {flags.tokenizer}, and config.tokenizer.path is {values['tokenizer']['path']}; set one"
            )
        values["tokenizer"]["path"] = flags.tokenizer
    elif flags.input and not values["tokenizer"]["path"]:
        terminal.say(
            f"--tokenizer is not set: one of {values['tokenizer']['size']} pieces is trained on these files; to train "
            "on from a checkpoint, name its tokenizer"
        )
    config = configs.build(values, settings.PrepareConfig)
    for name, source in config.sources.items():
        num_files = f"{len(source.paths)} files" if len(source.paths) > 1 else "".join(source.paths)
        terminal.say(f"{name}: {formats.describe(source)}{num_files and f' ({num_files})'}")
    return config


def summary(output: str, manifest: dict, report: dict) -> str:
    """Returns what is in the data set and what was dropped, for people."""
    lines = [f"{report['records']:,} records read"]
    if report["broken"]["count"]:
        first = report["broken"]["examples"][0]
        lines.append(f"  {report['broken']['count']:>10,}  could not be read, such as: {first}")
    for reason, dropped in report["dropped"].items():
        example = dropped["examples"][0]
        lines.append(f"  {dropped['count']:>10,}  {reason}, such as: {example['record']} ({example['detail']})")
    if report["changed"]:
        lines.append(f"  {report['changed']:>10,}  changed: something was masked or cut out")
    lengths = list(report["fill"])
    lines.append("".join(["part".ljust(18), *map("{:>14}".format, ["documents", "tokens", "of training"])]))
    lines[-1] += "".join(f"{f'sequences of {length}':>21}" for length in lengths)
    for name, part in {**report["parts"], "in all": report["kept"]}.items():
        fraction = part.get("share", {}).get(lengths[0]) if lengths else None
        drawn = "" if fraction is None else f"{fraction:.2%}" if fraction else "not drawn"
        rows = part.get("rows") or {n: sum(p["rows"][n] for p in report["parts"].values()) for n in lengths}
        lines.append(f"{name:<18}{part['documents']:>14,}{part['tokens']:>14,}{drawn:>14}")
        lines[-1] += "".join(f"{rows[length]:>21,}" for length in lengths)
    for length in lengths:
        lines.append(f"sequences of {length} are {report['fill'][length]:.2%} full")
    lines.append(f"wrote {output}, digest {manifest['digest'][:12]}; more in {output}/report.json")
    return "\n".join(lines)
