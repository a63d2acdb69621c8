#!/usr/bin/env bash
# Without token_type_ids Transformers' Gemma 3 reads images causally, and does not warn.
#
# Natural guess: input_ids already mark the image's tokens and pixel_values hold the image, so the model knows which
#   tokens see each other both ways.
# Version: transformers 5.23.0, torch 2.13.0 (CPU)
# Seen: a toy with one image of 4 tokens in 10. Largest change of a logit by leaving token_type_ids out, token by token:
#   text before [0.0, 0.0, 0.0], image [0.96, 0.49, 0.22, 0.04], text behind [0.04, 0.02, 0.04]
#   and the answer without it is bit for bit that of token_type_ids that say there is no image
# Here: gemma3_jax/model/masks.py takes the image number of every token from the batch. A processor of Transformers
#   makes token_type_ids; a custom collator or packer has to pass them on, in training too.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cd "$work"
TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 venv/bin/python -I - <<'PYTHON'
import torch
import transformers

IMAGE, BEGIN, END = 60, 61, 62
text = transformers.Gemma3TextConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    query_pre_attn_scalar=8,
    sliding_window=16,
    layer_types=["sliding_attention", "full_attention"],
)
vision = transformers.SiglipVisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=2
)
config = transformers.Gemma3Config(
    text_config=text,
    vision_config=vision,
    mm_tokens_per_image=4,
    image_token_index=IMAGE,
    boi_token_index=BEGIN,
    eoi_token_index=END,
)
torch.manual_seed(0)
model = transformers.Gemma3ForConditionalGeneration(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(0, 0.5)
    ids = torch.tensor([[2, 5, BEGIN, IMAGE, IMAGE, IMAGE, IMAGE, END, 7, 8]])
    pixels = torch.randn(1, 3, 8, 8)
    marked = model(input_ids=ids, pixel_values=pixels, token_type_ids=(ids == IMAGE).long()).logits
    unmarked = model(input_ids=ids, pixel_values=pixels).logits
    causal = model(input_ids=ids, pixel_values=pixels, token_type_ids=torch.zeros_like(ids)).logits
change = [round(x, 2) for x in (marked - unmarked).abs().amax(-1)[0].tolist()]
print(f"text before {change[:3]}, image {change[3:7]}, text behind {change[7:]}")
if not (max(change[3:7]) > 0.1 and torch.equal(unmarked, causal)):
    raise SystemExit("changed: without token_type_ids images are seen both ways, or refused")
PYTHON
