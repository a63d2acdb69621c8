"""`report`: one page that shows a run."""

import argparse
import json
import os
import pathlib

from gemma3_jax.cli import terminal


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax report",
        description="Writes one HTML page that shows a run: loss, learning rate, speed, where the time went, what was\n"
        "measured and sampled, what rounding and the cache cost, the config, and what the run was made of. The page\n"
        "loads nothing, so it can be mailed; it can be made while the run is still at work.\n\n"
        "--compare lays other runs over it. Needs the extra [plots].",
        epilog="example:\n  python -m gemma3_jax report --workdir=runs/demo/student\n"
        "  python -m gemma3_jax report --workdir=runs/wide --compare=runs/narrow,runs/base --output=widths.html",
    )
    flags.add_argument("--workdir", required=True, metavar="DIR", help="the run: what was the --workdir of train")
    flags.add_argument(
        "--compare", action="append", default=[], metavar="DIR,...", help="other runs, to be laid over it"
    )
    flags.add_argument("--output", metavar="FILE", help="the page (WORKDIR/report.html); what is there is replaced")
    flags.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return flags


def run(flags: argparse.Namespace) -> None:
    workdir = pathlib.Path(flags.workdir)
    output = pathlib.Path(flags.output) if flags.output else workdir / "report.html"
    _check_output(output, workdir)
    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported: the devices are those of a run that may be at work

    from gemma3_jax.checkpoint import target
    from gemma3_jax.report import page

    compared = [pathlib.Path(path) for several in flags.compare for path in several.split(",") if path]
    runs = page.read(workdir, compared)
    sections = page.sections(runs)
    content = page.render(runs, sections)
    target.replace(output, content)
    names = [section.name for section in sections]
    if flags.json:
        print(json.dumps({"output": str(output), "bytes": len(content), "sections": names}))
    else:
        print(f"{output}: {len(content) / 1e3:,.0f} kB")


def _check_output(output: pathlib.Path, workdir: pathlib.Path) -> None:
    if output.suffix not in (".html", ".htm"):
        raise ValueError(f"--output is {output}; it must end in .html, so that no file of a run is replaced")
    if output.is_dir():
        raise ValueError(f"--output {output} is a directory; name a file in it")
    if output.parent != workdir and not output.parent.is_dir():
        raise ValueError(f"--output {output}: {output.parent} is not a directory; make it first")
