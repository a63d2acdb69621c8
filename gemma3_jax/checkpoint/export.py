"""What a checkpoint is written as: checked before anything large is read, and complete or not there at all."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gemma3_jax import console, sharding
from gemma3_jax.checkpoint import (
    encoding,
    gemma_orbax,
    gguf_file,
    gguf_vocabulary,
    hf,
    hf_config,
    hf_extra_files,
    load_sharded,
    manager,
    modelfile,
    names,
    orbax,
    packed,
    peft,
    target,
    tensor_file,
    tensor_source,
)
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.durable import atomic
from gemma3_jax.model import config
from gemma3_jax.tokenizer import directory as tokenizer_directory
from gemma3_jax.tokenizer import pieces, vocabulary

KINDS = ("orbax", "hf", "gguf", "peft", "gemma")
TOKENIZER = tokenizer_directory.MODEL


@dataclasses.dataclass(frozen=True)
class Export:
    """A kind of checkpoint, and everything needed to write one.

    `plan` has the formats of a GGUF file, or those that a quantized Hugging Face directory is rounded to. Whatever has
    no plan is stored in `dtype`, or as the source stores it (None). The tokenizer is written where the kind holds one.
    `carried` has the files of a Hugging Face directory that are written as the source has them, by name.
    """

    kind: str
    model: config.Config
    plan: encoding.StoragePlan | None = None
    dtype: DTypeLike | None = None
    tokenizer: vocabulary.Tokenizer | None = None
    notes: tuple[str, ...] = ()
    carried: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    adapted: checkpoint_open.Checkpoint | None = None  # of kind peft: whose adapters are written, without its base

    @functools.cached_property
    def _extra_files(self) -> tuple[dict[str, bytes], tuple[str, ...]]:
        """Files beside the model of a Hugging Face directory, and notes on them: seconds for a tokenizer of Gemma."""
        return hf_extra_files.complete(self.carried, self.tokenizer, hf_config.context_length(self.model))

    def check(self) -> tuple[str, ...]:
        """Returns notes for the user on what will be written.

        Raises: ValueError if the kind cannot describe the model, or a format cannot hold it.
        """
        if self.kind == "hf":
            hf_config.write(self.model, "float32")
            if self.plan:
                self.plan.check(self.model, names.hf_name)
            return self.notes + self._extra_files[1]
        if self.kind == "gguf":
            if self.tokenizer is None:
                raise ValueError(
                    f"the source has no {TOKENIZER} in it or beside it, and a GGUF file holds a tokenizer; name one "
                    "with --tokenizer=FILE"
                )
            return self.notes + gguf_file.check(self.model, self.plan, self.tokenizer)
        return self.notes

    def num_bytes(self, shapes: dict) -> int:
        """Returns about how many bytes will be written of parameters that are stored in these shapes and dtypes."""
        if self.kind == "gguf":
            return gguf_file.num_bytes(self.model, self.plan)
        if self.kind == "peft":
            return peft.num_bytes(self.model, self.adapted.adapter, self.dtype)
        dtype = self.dtype or (np.float32 if self.plan else None)
        return hf.num_bytes(self.model, shapes, dtype) + (packed.num_bytes(self.model, self.plan) if self.plan else 0)

    def check_new(self, path: pathlib.Path, shapes: dict) -> None:
        """Raises: ValueError if the checkpoint, or the file beside it, could not be written at `path`."""
        if self.kind == "gguf":
            if path.suffix != ".gguf":
                raise ValueError(f"--target is {path}; the name of a GGUF file ends in .gguf")
            if not path.name.isprintable():  # nor can a Modelfile name it
                raise ValueError(f"--target is {str(path)!r}; the name of a GGUF file ends in .gguf and is printable")
            target.check_new(modelfile.path_of(path), 0)
        target.check_new(path, self.num_bytes(shapes))

    def write(
        self,
        path: pathlib.Path,
        source: tensor_source.TensorSource,
        progress: Callable[[int], None] = console.ignore,
    ) -> None:
        """Writes a new checkpoint at `path`, and a Modelfile for Ollama beside a GGUF file.

        Tensors are read and written one at a time (see tensor_source.copy for the host memory that takes), except for
        kinds orbax and gemma: their parameters are all read first, as Orbax writes a tree as a whole.
        Raises: OSError if the disk refuses. ValueError naming a parameter that a format cannot hold.
        """
        if self.kind == "gguf":
            # The large file appears first: if the process stops between the two, only the Modelfile is missing.
            with atomic.new(path, modelfile.path_of(path)) as (partial, modelfile_partial):
                modelfile_partial.write_text(modelfile.content(path, self.tokenizer))
                write = gguf_file.create(partial, self.model, self.plan, self.tokenizer, target=path)
                tensor_source.copy(source, [write], progress)
        elif self.kind == "hf":
            with atomic.new(path) as (partial,):
                partial.mkdir()
                self._write_hf(partial, source, progress)
        elif self.kind == "peft":
            with atomic.new(path) as (partial,):
                partial.mkdir()
                base, dtype = self.adapted.base, self.dtype
                architecture, name = base.source.architecture, str(base.path.absolute())
                adapter = self.adapted.adapter
                peft.write(partial, self.model, adapter, architecture=architecture, base=name, dtype=dtype)
            progress(self.num_bytes({}))
        elif self.kind == "gemma":
            with atomic.new(path) as (partial,), target.uninterrupted(partial):
                gemma_orbax.write(partial, source, self.dtype, progress)
        else:
            assert self.kind in KINDS, self.kind
            params = load_sharded.load(source, sharding.make_mesh(), self.dtype, progress)
            with atomic.new(path) as (partial,), target.uninterrupted(partial):
                orbax.save(partial, self.model, params)

    def _write_hf(
        self, directory: pathlib.Path, source: tensor_source.TensorSource, progress: Callable[[int], None]
    ) -> None:
        files, _ = self._extra_files
        for name, content in files.items():
            tensor_file.write_small(directory / name, content)
        ids = hf_extra_files.special_ids(files)
        write = hf.create(
            directory,
            self.model,
            source.shapes(),
            plan=self.plan,
            dtype=self.dtype,
            special_ids=ids,
            padding=source.padding,
        )
        writes = [write, packed.create(directory, self.model, self.plan)] if self.plan else [write]
        tensor_source.copy(source, writes, progress)


def resolve(
    source: checkpoint_open.Checkpoint,
    kind: str,
    *,
    quant: str = "none",
    dtype: str | None = None,
    embedding: str | None = None,
    tokenizer: str | None = None,
    merge: bool = False,
) -> Export:
    """Returns what to write for a checkpoint and the options of the command line. `merge`: adapters into their base.

    By default the parameters are as stored. With `quant`, the embedding table has the format that the checkpoint was
    trained for or is rounded to, else float16.
    Raises: ValueError if the tokenizer is no such file, or not the one that the checkpoint was trained with; if a file
    beside the weights of the source is damaged.
    """
    if (source.adapter is None) if merge or kind == "peft" else source.adapter:
        raise ValueError(_not_mergeable(source, kind))
    if kind == "peft":
        notes = _peft_notes(source)
        return Export(kind, source.base.model, None, encoding.FLOATS[dtype] if dtype else None, None, notes, {}, source)
    plan = None
    if quant != "none":
        table = source.quant.get("embedding") if source.quant.get("format") == quant else None
        plan = encoding.StoragePlan(quant, embedding or table or "float16")
    elif kind == "gguf":
        leaves = [leaf.dtype for path, leaf in names.flatten(source.shapes) if path[-2] in ("attention", "mlp")]
        table = source.shapes["embedder"]["table"].dtype.name
        plan = encoding.StoragePlan(dtype or jnp.result_type(*leaves).name, embedding or dtype or table)
    words, notes, carried = None, (), {}
    if kind in ("hf", "gguf"):
        words, notes = find_tokenizer(tokenizer, source, is_needed=kind == "gguf")
    if kind != "orbax":  # which is to continue training from, with the unrounded weights
        notes = _rounding_notes(source, plan, dtype) + notes
    files_of = source.base or source
    if kind == "hf" and files_of.kind == "hf":
        carried, more = _carried(files_of, words, tokenizer)
        notes += more
    return Export(kind, source.model, plan, encoding.FLOATS[dtype] if dtype else None, words, notes, carried)


def _not_mergeable(source: checkpoint_open.Checkpoint, kind: str) -> str:
    """Returns the error of a command that does not say what becomes of adapters, or of one for a whole model."""
    if source.adapter:
        return (
            f"{source.path} holds adapters; --merge writes their base with them in it as {kind}, and --format=peft the "
            "adapters alone"
        )
    return f"{source.path} holds a whole model; {'--format=peft' if kind == 'peft' else '--merge'} is for adapters"


def _peft_notes(source: checkpoint_open.Checkpoint) -> tuple[str, ...]:
    architecture = source.base.source.architecture or "as convert --format=hf writes it"
    notes = (f"for the base {source.base.path}, {architecture}",)
    if format := source.adapter.lora.base_format:
        notes += (
            f"warning: the adapters were trained on a base in {format}, which PEFT does not know; load them on a base "
            f"that convert --format=hf --quant={format} has written",
        )
    if source.adapter.lora.rslora:
        rank, scale = source.adapter.lora.rank, source.adapter.lora.scale
        notes += (
            f"warning: llama.cpp's converter of adapters reads no rslora; set use_rslora to false and lora_alpha to "
            f"{scale * rank:g} for it, which is the same",
        )
    if source.model.rope_scale != source.base.model.rope_scale:
        notes += (
            f"warning: the adapters were trained at RoPE scale {source.model.rope_scale:g}, their base has "
            f"{source.base.model.rope_scale:g}, and PEFT loads them on that; --merge writes a model of the first",
        )
    return notes


def _carried(
    source: checkpoint_open.Checkpoint, tokenizer: vocabulary.Tokenizer | None, named: str | None
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Returns the files of a Hugging Face directory that are carried into another, and notes for the user.

    Those of its tokenizer are not if the new directory has another, or if its tokenizer.model cannot be read.
    """
    carried = hf_extra_files.read(source.path)
    left_out = sorted(carried.keys() & set(hf_extra_files.TOKENIZER_FILES))
    others = {name: content for name, content in carried.items() if name not in left_out}
    if named and left_out:
        original, _ = find_tokenizer(None, source)
        if not original or original.digest != tokenizer.digest:
            files = f"{', '.join(left_out)} of {source.path} are left out"
            return others, (f"{files}, as {named} is another tokenizer; what a directory needs is made of that",)
    if tokenizer is None and TOKENIZER in carried:
        return others, ()
    if tokenizer is None and carried:
        return carried, (f"{', '.join(sorted(carried))} of {source.path} are copied unread",)
    return carried, ()


def _rounding_notes(
    source: checkpoint_open.Checkpoint, plan: encoding.StoragePlan | None, dtype: str | None
) -> tuple[str, ...]:
    """Returns a note if the weights to be written are not those that training with a format saw."""
    if not source.quant:
        return ()
    known = encoding.StoragePlan(source.quant["format"], source.quant["embedding"])
    options = f"--quant={known.matrices} --embedding={known.table}"
    if source.kind == "orbax":
        note = f"warning: {source.path} was trained for {options}; this writes weights that its training did not see"
        return () if plan == known else (note,)
    # The source is rounded already, and float32 holds its values exactly.
    written = plan or encoding.StoragePlan(dtype or "float32", dtype or known.table)
    if written.matrices not in ("float32", known.matrices) or written.table not in ("float32", known.table):
        return (f"warning: {source.path} is rounded to {options}; this rounds it again, to other weights",)
    if written.matrices in ("int4", "sfp8"):
        return (
            f"{source.path} is rounded to {options} already; rounding again may move weights by a step of float32, "
            "as the scales are computed again",
        )
    return ()


def find_tokenizer(
    named: str | None, source: checkpoint_open.Checkpoint, *, is_needed: bool = False
) -> tuple[vocabulary.Tokenizer | None, tuple[str, ...]]:
    """Returns the tokenizer of a checkpoint, and notes for the user on where it comes from.

    It is the file `named`, or else one that fits: in the checkpoint's directory; in a GGUF file, or the original of
    that or any other beside it; or beside the directory, if the checkpoint stores the digest of its tokenizer.
    Raises: ValueError if `named` is not the tokenizer that the checkpoint was trained with, or if one that is needed
    cannot be read.
    """
    if named:
        tokenizer = tokenizer_directory.load(pathlib.Path(named))
        if source.tokenizer and tokenizer.digest != source.tokenizer:
            raise ValueError(
                f"--tokenizer {named} is tokenizer {tokenizer.digest[:12]}; {source.path} was trained with "
                f"{source.tokenizer[:12]}"
            )
        return tokenizer, (f"tokenizer {named}",)
    if source.base and not (source.tokenizer or _tokenizer_files(source)):
        return find_tokenizer(None, source.base, is_needed=is_needed)
    notes, errors = (), []
    for file in _tokenizer_files(source):
        try:
            if file.is_file():
                tokenizer, file = _in_gguf(file, source.model.vocab_size)
            else:
                warnings: list[str] = []
                tokenizer = tokenizer_directory.load(file, warnings.append)
                notes += tuple(warnings)
            if tokenizer.size > source.model.vocab_size:
                rows = source.model.vocab_size
                raise ValueError(f"{file} has {tokenizer.size} pieces, the table of the model {rows} rows")
        except (ValueError, OSError) as error:  # such as the pointer to a Git LFS file that was not fetched
            errors.append(error)
            notes += (f"warning: {error}; it is left out",)
            continue
        if source.tokenizer in ("", tokenizer.digest):
            return tokenizer, (*notes, f"tokenizer {tokenizer_directory.file_of(file) or file}")
    if is_needed and errors:
        raise ValueError(f"{errors[0]}; name another with --tokenizer=FILE") from errors[0]
    return None, notes


def _in_gguf(file: pathlib.Path, vocab_size: int) -> tuple[vocabulary.Tokenizer, pathlib.Path]:
    """Returns the tokenizer of a GGUF file, and where it is: in the file, or its original beside that.

    One that is rebuilt has the same pieces as the original, but another digest.
    """
    rebuilt = gguf_vocabulary.read(file, vocab_size)
    if (file.parent / TOKENIZER).is_file():
        try:
            original = tokenizer_directory.load(file.parent, console.ignore)
        except (ValueError, OSError):  # it belongs to something else
            return rebuilt, file
        if _texts_and_kinds(original) == _texts_and_kinds(rebuilt):
            return original, file.parent
    return rebuilt, file


def _texts_and_kinds(tokenizer: vocabulary.Tokenizer) -> list[tuple[str, pieces.PieceKind]]:
    return [(piece.text, piece.kind) for piece in pieces.listed(tokenizer)]


def _tokenizer_files(source: checkpoint_open.Checkpoint) -> list[pathlib.Path]:
    """Returns the directories that may hold a checkpoint's tokenizer, after a GGUF file that does.

    One beside the directory may belong to something else, so only a checkpoint that stores a digest can tell.
    """
    path = source.path
    if path.is_file():
        directories = [path.parent]
    else:
        inside = path.parent.parent if path.parent.name == manager.CHECKPOINTS else path
        directories = [inside, inside.parent] if source.tokenizer else [inside]
    return [path] * path.is_file() + [one for one in directories if tokenizer_directory.file_of(one)]
