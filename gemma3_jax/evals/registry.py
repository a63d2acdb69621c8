"""Every measure by its name: for `evaluate`, and for evaluations while a stage trains."""

import pathlib
from collections.abc import Sequence

from gemma3_jax.evals import (
    context,
    documents,
    memorization,
    model_api,
    needle,
    perplexity,
    settings,
    task,
    weight_bytes,
)
from gemma3_jax.inference import sampler
from gemma3_jax.model import config


def make(name: str, gemma: sampler.Sampler, asked: settings.Measures) -> task.Task:
    """The task of this name, all that it can refuse refused. Raises: ValueError."""
    if name == "bytes":
        return of_bytes(gemma.model, asked.cache_lengths)
    if name == "samples":
        return of_samples(gemma, asked)
    of = model_api.of(gemma)
    if name == "needle":
        return needle.make(of, asked.needle)
    read = documents.read(pathlib.Path(asked.documents))
    if name == "perplexity":
        return perplexity.make(of, read, asked.perplexity)
    if name == "context":
        return context.make(of, read, asked.context)
    assert name == "memorization", name
    return memorization.make(of, read, asked.memorization)


def of_bytes(model: config.Config, lengths: Sequence[int]) -> task.Task:
    """What weights and cache take. It has one item."""
    return task.Task(
        name="bytes",
        asked={"lengths": list(lengths)},
        items=[model],
        items_at_once=1,
        measure=lambda items: [weight_bytes.table(model, lengths)],
        summarise=lambda results: results[0],
        lines=lambda table: weight_bytes.lines(model, table),
    )


def of_samples(gemma: sampler.Sampler, asked: settings.Measures) -> task.Task:
    """How each prompt goes on, drawn as Gemma 3 is published to be."""

    def measure(prompts: Sequence[str]) -> list[dict]:
        answers = gemma.sample(prompts, max_new_tokens=asked.sample_tokens)
        return [{"prompt": prompt, "text": answer.text} for prompt, answer in zip(prompts, answers, strict=True)]

    return task.Task(
        name="samples",
        asked={"prompts": list(asked.prompts), "sample_tokens": asked.sample_tokens},
        items=asked.prompts,
        items_at_once=len(asked.prompts),
        measure=measure,
        summarise=lambda results: {"samples": results},
        lines=lambda summary: [f"{sample['prompt']}|{sample['text']}" for sample in summary["samples"]],
    )
