"""The names of tensors in the files of others: with the prefixes of image models and of wrappers around a model.

A text model is model.layers.0..., its table model.embed_tokens.weight; Gemma3TextModel has no prefix at all.
"""

import re
from collections.abc import Iterable

from gemma3_jax.checkpoint import names

PREFIX, HEAD = "model.", "lm_head.weight"
TABLE = f"{PREFIX}{names.ROOT[0].hf}"
# What torch.compile, FSDP and activation checkpointing put before any part of a name; DDP and PEFT before the whole.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
    r"|^(?:module|base_model\.model)\."
)
# The prefixes of "layers.0..." in a text model, and in the text part of an image model, older and newer.
_TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", PREFIX, "")
_IMAGE_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_HEADS = (HEAD, "language_model.lm_head.weight")  # the table again, in files that repeat it
_ADAPTER = re.compile(r"\.(?:lora_\w+|base_layer|modules_to_save|original_module)\.")


def text_model(path: str, stored: Iterable[str], *, has_image_part: bool) -> tuple[dict[str, str], int]:
    """Returns stored names by those of a Gemma3ForCausalLM, and how many tensors of the image part are left out.

    A name that fits no part stays as it is. Raises: ValueError naming `path` and the tensor, if an adapter is not
    merged, or two tensors have one name.
    """
    plain = {}
    for name in sorted(stored):
        if _ADAPTER.search(name):
            raise ValueError(
                f"{path} has tensor {name} of an adapter that is not merged; merge it with PEFT (merge_and_unload) and "
                "save the model again"
            )
        _add(path, plain, unwrapped(name), name)
    prefix = text_prefix(plain)
    text = {}
    for name, original in plain.items():
        if has_image_part and name.startswith(_IMAGE_PREFIXES):
            continue
        below = PREFIX + name.removeprefix(prefix) if name.startswith(prefix) else name
        _add(path, text, HEAD if name in _HEADS else below, original)
    num_image_tensors = sum(has_image_part and name.startswith(_IMAGE_PREFIXES) for name in plain)
    return text, num_image_tensors


def text_prefix(stored: Iterable[str]) -> str:
    """Returns what stands before "layers.0..." in unwrapped names of a text model, or of a model with images."""
    stored = list(stored)
    known = (some for some in _TEXT_PREFIXES if any(name.startswith(f"{some}layers.") for name in stored))
    return next(known, PREFIX)


def _add(path: str, table: dict[str, str], name: str, stored: str) -> None:
    if name in table:
        raise ValueError(f"{path} has tensors {table[name]} and {stored}, which are one of the model; remove one")
    table[name] = stored


def unwrapped(name: str) -> str:
    """Returns a name without what wrappers put before it."""
    while (shorter := _WRAPPERS.sub("", name)) != name:
        name = shorter
    return name
