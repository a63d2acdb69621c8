"""The tasks by name, for `evaluate` and for evaluations during training."""

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


def make(name: str, gemma: sampler.Sampler, options: settings.Measures) -> task.Task:
    """The task with this name, its settings and documents checked. Raises: ValueError."""
    if name == "bytes":
        return bytes_task(gemma.engine.model, options.cache_lengths)
    if name == "samples":
        return samples_task(gemma, options)
    model = model_api.of_sampler(gemma)
    if name == "needle":
        return needle.make(model, options.needle)
    path = pathlib.Path(options.documents)
    if name == "perplexity":
        return perplexity.make(model, documents.read(path), options.perplexity)
    texts = documents.read_texts(path, name)
    if name == "context":
        return context.make(model, texts, options.context)
    assert name == "memorization", name
    return memorization.make(model, texts, options.memorization)


def bytes_task(model: config.Config, lengths: Sequence[int]) -> task.Task:
    """The task of the bytes of weights and cache. It has one item, and reads no parameters."""
    return task.Task(
        name="bytes",
        identity={"lengths": list(lengths)},
        items=[model],
        batch_size=1,
        measure=lambda params, items: [weight_bytes.table(model, lengths)],
        summarize=lambda results: results[0],
        format_lines=lambda table: weight_bytes.lines(model, table),
    )


def samples_task(gemma: sampler.Sampler, options: settings.Measures) -> task.Task:
    """The task of sampling a completion of each prompt, with the published sampling options."""

    def measure(params: dict, prompts: Sequence[str]) -> list[dict]:
        completions = gemma.sample(params, prompts, max_new_tokens=options.sample_tokens)
        return [
            {"prompt": prompt, "text": completion.text} for prompt, completion in zip(prompts, completions, strict=True)
        ]

    return task.Task(
        name="samples",
        identity={"prompts": list(options.prompts), "sample_tokens": options.sample_tokens},
        items=options.prompts,
        batch_size=len(options.prompts),
        measure=measure,
        summarize=lambda results: {"samples": results},
        format_lines=lambda summary: [f"{sample['prompt']}|{sample['text']}" for sample in summary["samples"]],
    )
