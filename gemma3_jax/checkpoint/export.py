"""What a checkpoint is written as: checked before anything large is read, and there whole or not at all."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gemma3_jax.checkpoint import encoding, gguf_file, hf, hf_config, manager, modelfile, names, orbax, packed, target
from gemma3_jax.checkpoint.open import Checkpoint
from gemma3_jax.model import config
from gemma3_jax.tokenizer import vocabulary

KINDS = ("orbax", "hf", "gguf")
TOKENIZER = "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class Export:
    """A kind of checkpoint, and all it takes to write one.

    `plan` is how a GGUF file stores parameters, and what those of a quantised Hugging Face directory are rounded to;
    `dtype` is that of all others, None their own. The tokenizer goes along where the kind has a place for it.
    """

    kind: str
    model: config.Config
    plan: encoding.Plan | None = None
    dtype: DTypeLike | None = None
    tokenizer: vocabulary.Tokenizer | None = None
    notes: tuple[str, ...] = ()

    def check(self) -> tuple[str, ...]:
        """What a person should know of what will be written.

        Raises: ValueError if the kind cannot say what the model is, or a format not hold it.
        """
        if self.kind == "hf":
            hf_config.write(self.model, "float32")
            if self.plan:
                self.plan.check(self.model, names.hf_name)
        if self.kind == "gguf":
            if self.tokenizer is None:
                raise ValueError(
                    f"no {TOKENIZER} of its own lies in or beside the source, and a GGUF file holds one; name it with "
                    "--tokenizer=FILE"
                )
            return self.notes + gguf_file.check(self.model, self.plan, self.tokenizer)
        return self.notes

    @property
    def load_dtype(self) -> DTypeLike | None:
        """What to load parameters as: what is rounded is rounded once, from what is stored."""
        return None if self.plan else self.dtype

    def num_bytes(self, shapes: dict) -> int:
        """Bytes of what will be written, near enough, given the shapes of the parameters as stored."""
        if self.kind == "gguf":
            return gguf_file.num_bytes(self.model, self.plan)
        dtype = self.dtype or (np.float32 if self.plan else None)
        return hf.num_bytes(self.model, shapes, dtype) + (packed.num_bytes(self.model, self.plan) if self.plan else 0)

    def check_new(self, path: pathlib.Path, shapes: dict) -> None:
        """Raises: ValueError if the checkpoint, or what goes beside it, could not be written at `path`."""
        if self.kind == "gguf":
            if path.suffix != ".gguf":
                raise ValueError(f"--target is {path}; the name of a GGUF file ends in .gguf")
            target.check_new(modelfile.path_beside(path), 0)
        target.check_new(path, self.num_bytes(shapes))

    def write(self, path: pathlib.Path, params: dict, progress: Callable[[int], None] = lambda num_bytes: None) -> None:
        """Writes `params` as a new checkpoint at `path`, and for Ollama a Modelfile beside a GGUF file.

        Raises: OSError where the disk refuses. ValueError naming a parameter that a format cannot hold.
        """
        if self.kind == "gguf":
            # The large one appears first: stopped between the two, it is whole, and only its Modelfile is missing.
            with target.new(path, modelfile.path_beside(path)) as (partial, beside):
                beside.write_text(modelfile.content(path, self.tokenizer))
                gguf_file.write(partial, self.model, params, self.plan, self.tokenizer, progress, target=path)
            return
        with target.new(path) as (partial,):
            if self.kind == "hf":
                partial.mkdir()
                hf.write(partial, self.model, params, progress, plan=self.plan, dtype=self.dtype)
                if self.plan:
                    packed.write(partial, self.model, params, self.plan, progress)
                if self.tokenizer:
                    (partial / TOKENIZER).write_bytes(self.tokenizer.model)
            else:
                assert self.kind in KINDS, self.kind
                with target.uninterrupted(partial):
                    orbax.save(partial, self.model, params)


def ask(
    source: Checkpoint,
    kind: str,
    *,
    quant: str = "none",
    dtype: str | None = None,
    embedding: str | None = None,
    tokenizer: str | None = None,
) -> Export:
    """What to write of a checkpoint, of what was asked for by name.

    What is not said is as stored; but beside a `quant` the table is of the format that the checkpoint was trained for
    or is rounded to, else float16.
    Raises: ValueError if the tokenizer is no such file, or another than the checkpoint was trained with.
    """
    plan = None
    if quant != "none":
        table = source.quant.get("embedding") if source.quant.get("format") == quant else None
        plan = encoding.Plan(quant, embedding or table or "float16")
    elif kind == "gguf":
        leaves = [leaf.dtype for path, leaf in names.flatten(source.shapes) if path[-2] in ("attention", "mlp")]
        table = source.shapes["embedder"]["table"].dtype.name
        plan = encoding.Plan(dtype or jnp.result_type(*leaves).name, embedding or dtype or table)
    found, notes = None, ()
    if kind != "orbax":  # which is for going on, from what the masters are
        found, notes = find_tokenizer(tokenizer, source, is_needed=kind == "gguf")
        notes = _of_rounding(source, plan, dtype) + notes
    return Export(kind, source.model, plan, encoding.FLOATS[dtype] if dtype else None, found, notes)


def _of_rounding(source: Checkpoint, plan: encoding.Plan | None, dtype: str | None) -> tuple[str, ...]:
    """What a person should know if the weights to write are not those that training with a format saw."""
    if not source.quant:
        return ()
    known = encoding.Plan(source.quant["format"], source.quant["embedding"])
    said = f"--quant={known.matrices} --embedding={known.table}"
    if source.kind == "orbax":
        note = f"warning: {source.path} was trained for {said}; this writes weights that its training did not see"
        return () if plan == known else (note,)
    # It is rounded already, and what float32 holds of that is exact.
    written = plan or encoding.Plan(dtype or "float32", dtype or known.table)
    if written.matrices not in ("float32", known.matrices) or written.table not in ("float32", known.table):
        return (f"warning: {source.path} is rounded to {said}; this rounds it again, to other weights",)
    if written.matrices in ("int4", "sfp8"):
        return (
            f"{source.path} is rounded to {said} already; once more may move weights by a step of float32, where a "
            "scale is found again",
        )
    return ()


def find_tokenizer(
    named: str | None, source: Checkpoint, *, is_needed: bool = False
) -> tuple[vocabulary.Tokenizer | None, tuple[str, ...]]:
    """The tokenizer of a checkpoint, and what a person should know of where it is from.

    It is the one named, or else one that fits and lies in the checkpoint's directory, or beside a GGUF file, or, where
    its digest is known to be the checkpoint's, beside the directory.
    Raises: ValueError if the one named is another than the checkpoint was trained with, or if one that is needed cannot
    be read.
    """
    if named:
        tokenizer = vocabulary.load(pathlib.Path(named))
        if source.tokenizer and tokenizer.digest != source.tokenizer:
            raise ValueError(
                f"--tokenizer {named} is tokenizer {tokenizer.digest[:12]}; {source.path} was trained with "
                f"{source.tokenizer[:12]}"
            )
        return tokenizer, (f"tokenizer {named}",)
    notes = ()
    for file in _tokenizer_files(source):
        try:
            tokenizer = vocabulary.load(file)
        except (ValueError, OSError) as error:  # it may stand for a file of Git LFS that was not fetched
            if is_needed:
                raise ValueError(f"{error}; name another with --tokenizer=FILE") from error
            notes += (f"warning: {error}; it is left out",)
            continue
        if source.tokenizer in ("", tokenizer.digest) and tokenizer.size <= source.model.vocab_size:
            return tokenizer, (*notes, f"tokenizer {file}")
    return None, notes


def _tokenizer_files(source: Checkpoint) -> list[pathlib.Path]:
    """Where a checkpoint's tokenizer may lie; a stranger's may lie beside a directory, and is told by its digest."""
    if source.path.is_file():
        places = [source.path.parent]
    else:
        inside = source.path.parent.parent if source.path.parent.name == manager.CHECKPOINTS else source.path
        places = [inside, inside.parent] if source.tokenizer else [inside]
    return [place / TOKENIZER for place in places if (place / TOKENIZER).is_file()]
