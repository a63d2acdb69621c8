"""Texts that were sampled while a run trained, by prompt."""

import dataclasses
from collections.abc import Mapping, Sequence

from gemma3_jax.report import labeled_run

COLUMN = "samples"  # of the evaluations
MAX_PROMPTS = 4  # the others are collapsed


@dataclasses.dataclass(frozen=True)
class PromptSamples:
    """The last continuations of a prompt after each stage."""

    prompt: str
    continuations: list[tuple[str, str]]  # (label, text)


def by_prompt(runs: Sequence[labeled_run.LabeledRun]) -> list[PromptSamples]:
    """The last samples of every stage of every run; empty if nothing was sampled."""
    result: dict[str, PromptSamples] = {}
    for run in runs:
        last_samples: dict[str, list] = {}
        for row in run.data.evaluations:
            if isinstance(row.get(COLUMN), list):
                last_samples[row["stage"]] = row[COLUMN]
        for stage, samples in last_samples.items():
            label = labeled_run.prefixed(runs, run, f"after {stage}")
            for sample in samples:
                if isinstance(sample, Mapping):
                    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
                    result.setdefault(prompt, PromptSamples(prompt, [])).continuations.append((label, text))
    return list(result.values())
