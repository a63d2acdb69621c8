"""`report`: writes an HTML page about a run."""

import argparse
import json
import os
import pathlib

from gemma3_jax.cli import terminal


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax report",
        description="Writes an HTML page about a run: loss, learning rate, throughput and time by kind; evaluations\n"
        "and samples; the cost of quantization and of the KV cache; the config, the data and the versions. The\n"
        "page is a single file that loads nothing else. It can be written while the run trains.\n\n"
        "Needs the extra [plots].",
        epilog="example:\n  python -m gemma3_jax report --workdir=runs/demo/student\n"
        "  python -m gemma3_jax report --workdir=runs/wide --compare=runs/narrow,runs/base --output=widths.html",
    )
    flags.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
    flags.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="DIR,...",
        help="other runs to plot next to it; may be repeated",
    )
    flags.add_argument(
        "--output", metavar="FILE", help="the page; replaced if it exists (default: WORKDIR/report.html)"
    )
    flags.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return flags


def run(flags: argparse.Namespace) -> None:
    workdir = pathlib.Path(flags.workdir)
    output = pathlib.Path(flags.output) if flags.output else workdir / "report.html"
    _check_output(output, workdir)
    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported: the run may still use the devices

    from gemma3_jax.durable import atomic
    from gemma3_jax.report import page

    compared = [pathlib.Path(path) for several in flags.compare for path in several.split(",") if path]
    runs = page.read(workdir, compared)
    sections = page.sections(runs)
    content = page.render(runs, sections)
    atomic.replace(output, content)
    names = [section.name for section in sections]
    if flags.json:
        terminal.show(json.dumps({"output": str(output), "bytes": len(content), "sections": names}))
    else:
        terminal.show(f"{output}: {len(content) / 1e3:,.0f} kB")


def _check_output(output: pathlib.Path, workdir: pathlib.Path) -> None:
    if output.suffix not in (".html", ".htm"):
        raise ValueError(f"--output is {output}; it must end in .html, so that it cannot replace another file of a run")
    if output.is_dir():
        raise ValueError(f"--output {output} is a directory; name a file in it")
    if output.parent != workdir and not output.parent.is_dir():
        raise ValueError(f"--output {output}: {output.parent} is not a directory; create it first")
