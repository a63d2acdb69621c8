"""Speed of `prepare` against plain SentencePiece on the same text, in one process: each stage, and end to end.

    python experiments/benchmarks/prepare.py [--copies=2] [--size=2048]

The text is the Python standard library as JSONL, 12 MB a copy (each document begins with the number of its copy, so
that no copies are exact duplicates). Prints one JSON line per stage, one for `SentencePieceProcessor.encode` alone, and
two for the whole of `prepare`, without and with near-duplicate removal. `of_plain` is a fraction of the speed of plain
SentencePiece. Time grows with the text, that of MinHash with 128 times its words. About two minutes on one core. The
end-to-end results are in docs/results.md.
"""

import argparse
import json
import pathlib
import platform
import tempfile
import time

import sentencepiece

from gemma3_jax.data import packing
from gemma3_jax.data.prepare import builtin, duplicates, filters, pipeline, settings, sources
from gemma3_jax.tokenizer import training, vocabulary


def write_corpus(path: pathlib.Path, num_copies: int, num_files: int | None) -> list[str]:
    texts = [row["text"] for file in builtin.files()[:num_files] for row in builtin.rows(file)]
    texts = [f"copy {copy}\n{text}" for copy in range(num_copies) for text in texts if len(text) > 200]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


def shuffled_lines(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """200 evaluation items: words of the corpus in reverse order, so that decontamination finds none of them."""
    return tuple((f"item:{number}", " ".join(reversed(text[:600].split()))) for number, text in enumerate(texts[:200]))


def measure(config: settings.PrepareConfig, texts: list[str], model: bytes) -> dict[str, float]:
    """Seconds of each stage over all texts, and the number of `tokens`."""
    tokenizer = vocabulary.Tokenizer(model)
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
    seconds = {}

    def timed(stage: str, work) -> list:
        started = time.perf_counter()
        result = list(work())
        seconds[stage] = time.perf_counter() - started
        return result

    tokens = timed("plain SentencePiece", lambda: (plain.encode(text) for text in texts))
    units = sources.units(config.sources)
    [source] = config.sources.values()
    records = timed("read", lambda: (record for unit in units for record in sources.read(unit, source)))
    configs = {
        "length": (config, ()),
        "quality": (
            settings.PrepareConfig(
                quality=settings.QualityConfig("heuristic"), personal_data=settings.PersonalDataConfig("")
            ),
            (),
        ),
        "personal data": (config, ()),
        "decontamination": (
            settings.PrepareConfig(personal_data=settings.PersonalDataConfig("")),
            shuffled_lines(texts),
        ),
    }
    for stage, (stage_config, evaluation) in configs.items():
        keep, *_ = [
            f
            for f in filters.build(stage_config, filters.Inputs(evaluation))
            if stage.replace(" ", "") in type(f).__name__.lower()
        ]
        keep(records[0])  # imports and compiles once, outside of the measurement
        timed(stage, lambda keep=keep: map(keep, records))
    timed("tokenize", lambda: (tokenizer.document(text) for text in texts))
    timed("MinHash", lambda: (duplicates.signature(text, 0) for text in texts))
    timed("pack", lambda: packing.pack([len(ids) + 2 for ids in tokens], 2_048))
    seconds["tokens"] = sum(map(len, tokens))
    return seconds


def end_to_end(config: settings.PrepareConfig, directory: pathlib.Path, near: bool) -> float:
    config = settings.PrepareConfig(
        sources=config.sources,
        tokenizer=config.tokenizer,
        duplicates=settings.DuplicatesConfig(near=near),
        length=config.length,
    )
    started = time.perf_counter()
    pipeline.run(config, str(directory / f"out-{near}"))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=2, help="of the standard library")
    parser.add_argument("--size", type=int, default=2_048, help="pieces of the tokenizer")
    parser.add_argument("--library_files", type=int, help="take this many of its modules only")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        texts = write_corpus(directory / "corpus.jsonl", flags.copies, flags.library_files)
        model = training.train(texts[: len(texts) // (4 * flags.copies)], flags.size)
        (directory / "tokenizer.model").write_bytes(model)
        config = settings.PrepareConfig(
            sources={"corpus": settings.SourceConfig(paths=(str(directory / "corpus.jsonl"),))},
            tokenizer=settings.TokenizerConfig(path=str(directory / "tokenizer.model")),
        )
        seconds = measure(config, texts, model)
        num_tokens = seconds.pop("tokens")
        seconds["prepare without near-duplicates"] = end_to_end(config, directory, near=False)
        seconds["prepare"] = end_to_end(config, directory, near=True)
    num_bytes = sum(len(text.encode()) for text in texts)
    for stage, stage_seconds in seconds.items():
        line = {
            "benchmark": "prepare",
            "stage": stage,
            "documents": len(texts),
            "seconds": round(stage_seconds, 3),
            "documents_per_second": round(len(texts) / stage_seconds),
            "tokens_per_second": round(num_tokens / stage_seconds),
            "megabytes_per_second": round(num_bytes / 1e6 / stage_seconds, 2),
            "of_plain": round(seconds["plain SentencePiece"] / stage_seconds, 3),
            "processes": 1,
            "machine": platform.machine(),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
