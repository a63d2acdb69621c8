"""Opens a checkpoint of any kind for generation.

gemma = open_sampler.open_sampler(pathlib.Path("run"))
for completion in gemma.sample(["def main():", "import "], max_new_tokens=32):
    print(completion.text)
"""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax

from gemma3_jax import console, sharding
from gemma3_jax.checkpoint import export, hf_config
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.inference import constraint
from gemma3_jax.inference import sampler as sampler_lib
from gemma3_jax.model import config, execution, parameters
from gemma3_jax.quant import settings, view
from gemma3_jax.tokenizer import vocabulary


class CheckpointSampler:
    """A sampler bound to the parameters of one checkpoint, which are loaded when they are first needed."""

    def __init__(self, sampler: sampler_lib.Sampler, load_params: Callable[[], dict]):
        self.sampler, self._load_params = sampler, load_params

    @functools.cached_property
    def params(self) -> dict:
        return self._load_params()

    @property
    def model(self) -> config.Config:
        return self.sampler.engine.model

    @property
    def tokenizer(self) -> vocabulary.Tokenizer | None:
        return self.sampler.tokenizer

    def sample(self, prompts: Sequence[str], **options) -> list[sampler_lib.Completion]:
        """Completions of texts. `options` are fields of sampler.GenerateOptions."""
        return self.continue_([self.encode(prompt) for prompt in prompts], sampler_lib.GenerateOptions(**options))

    def reply(
        self, turns: sampler_lib.Turns, show: Callable[[str], None] | None = None, **options
    ) -> sampler_lib.Completion:
        """The model's next turn of a chat, as `Sampler.reply`."""
        return self.continue_([self.encode_turns(turns)], sampler_lib.GenerateOptions(**options), show=show)[0]

    def encode(self, text: str) -> list[int]:
        """BOS and the ids of a text."""
        return self.sampler.encode(text)

    def encode_turns(self, turns: sampler_lib.Turns) -> list[int]:
        """The ids of a chat, up to where the model writes its next turn."""
        return self.sampler.encode_turns(turns)

    def continue_(
        self,
        prompts: Sequence[Sequence[int]],
        options: sampler_lib.GenerateOptions,
        *,
        constraints: Sequence[constraint.Constraint] | None = None,
        show: Callable[[str], None] | None = None,
        progress: Callable[[int], None] = console.ignore,
        is_interrupted: Callable[[], bool] = console.never,
    ) -> list[sampler_lib.Completion]:
        """Completions of prompts in ids, as `Sampler.continue_`. What it refuses, it refuses before it loads."""
        self.sampler.check(prompts, options)
        return self.sampler.continue_(
            self.params,
            prompts,
            options,
            constraints=constraints,
            show=show,
            progress=progress,
            is_interrupted=is_interrupted,
        )


def open_sampler(
    path: pathlib.Path,
    *,
    open_checkpoint: Callable[..., checkpoint_open.Checkpoint] = checkpoint_open.open_checkpoint,
    tokenizer: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str = "float32",
    context: int = 0,
    say: Callable[..., None] = console.ignore,
    bar: console.Bar = console.silent_bar,
) -> CheckpointSampler:
    """Opens the checkpoint at `path`, with its tokenizer if it has one.

    `mesh` None puts all devices on axis `model`. `open_checkpoint` may know more than the path, such as the base of
    adapters; `tokenizer` is a SentencePiece file, a tokenizer.json, or a directory with one; `dtype` is that of
    activations and parameters; `context` 0 is the model's. Weights of a quantization-aware run are rounded as in
    training.
    Raises: ValueError if there is no such checkpoint or tokenizer.
    """
    execute = execution.Execution(dtype=dtype)
    checkpoint = open_checkpoint(path)
    vocab, notes = export.find_tokenizer(tokenizer, checkpoint)
    mesh = mesh or sharding.make_mesh(model=jax.device_count())
    say(*notes)
    context = context or hf_config.context_length(checkpoint.model)
    return CheckpointSampler(
        sampler_lib.build(checkpoint.model, vocab, mesh=mesh, execute=execute, context=context),
        functools.partial(load_params, checkpoint, mesh, dtype, say=say, bar=bar),
    )


def load_params(
    checkpoint: checkpoint_open.Checkpoint,
    mesh: jax.sharding.Mesh,
    dtype: str | None,
    *,
    say: Callable[..., None] = console.ignore,
    bar: console.Bar = console.silent_bar,
) -> dict:
    """The parameters of a checkpoint on a mesh, rounded as in training. `dtype` None: as stored."""
    say(f"reading {checkpoint.path} ({checkpoint.kind}, {checkpoint.num_bytes() / 2**20:.1f} MiB)", *checkpoint.notes)
    if mesh.size > 1:
        say(sharding.describe(checkpoint.shapes, parameters.shardings(checkpoint.model, mesh)))
    is_rounded = checkpoint.kind == "orbax" and bool(checkpoint.quant)
    with bar("read", checkpoint.num_bytes()) as progress:
        params = checkpoint.load(mesh, None if is_rounded else dtype, progress.update)
    if is_rounded:
        quant = settings.Quant(**checkpoint.quant)
        say(f"weights are rounded as they were in training: {quant.name}")
        round_params = view.make(quant, parameters.dims(checkpoint.model))
        params = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(dtype or x.dtype), round_params(params)))(
            params
        )
    return params
