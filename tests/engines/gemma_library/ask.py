"""Asks the chat sampler of Google's gemma library: see ../engines.py.

The model is built from its numbers, as the library knows the published sizes alone.
"""

import importlib.metadata
import json
import sys

from gemma import gm

with open(sys.argv[1]) as file:
    question = json.load(file)
model = question["config"]
num_locals = model["num_local_per_global"]
local, everywhere = gm.nn.AttentionType.LOCAL_SLIDING, gm.nn.AttentionType.GLOBAL
pattern = (local,) * num_locals + (everywhere,)
config = gm.nn.config.TransformerConfig(
    num_embed=model["vocab_size"],
    embed_dim=model["embed_dim"],
    hidden_dim=model["mlp_dim"],
    num_heads=model["num_heads"],
    head_dim=model["head_dim"],
    num_kv_heads=model["num_kv_heads"],
    final_logit_softcap=None,
    use_post_attn_norm=True,
    use_post_ffw_norm=True,
    use_qk_norm=True,
    attention_types=gm.nn.config.make_attention_layers_types(pattern, num_layers=model["num_layers"]),
    sliding_window_size=model["sliding_window"],
    transpose_gating_einsum=True,
    local_base_frequency=int(model["rope_base_local"]),
    global_base_frequency=int(model["rope_base_global"]),
    global_scale_factor=model["rope_scale"],
)
tokenizer = gm.text.Gemma3Tokenizer(question["tokenizer"])


class Model(gm.nn.Gemma3_1B):
    """The class says which tokenizer the model has; all else is in the numbers."""


sampler = gm.text.ChatSampler(
    model=Model(config=config, dtype="float32"),
    params=gm.ckpts.load_params(question["model"]),
    tokenizer=tokenizer,
    cache_length=512,
    max_out_length=question["num_tokens"],
)
found = {"version": f"gemma {importlib.metadata.version('gemma')}"}
found |= {"prompt_ids": [], "answer_ids": [], "texts": [], "ended": []}
found["text_ids"] = tokenizer.encode(question["text"], add_bos=True)
for turns in question["questions"]:
    # Its own system turn is `<start_of_turn>system`, which Gemma 3 does not know: a system text goes before the user's.
    text = sampler.chat("\n\n".join(turn["content"] for turn in turns))
    found["texts"].append(text.removesuffix("<end_of_turn>"))  # it leaves this to its users
    found["prompt_ids"].append(tokenizer.encode(sampler.turns[-2].text, add_bos=True))
    [ids] = sampler.last_state.predicted_tokens.tolist()
    ended = tokenizer.special_tokens.END_OF_TURN in ids
    found["answer_ids"].append(ids[: ids.index(tokenizer.special_tokens.END_OF_TURN)] if ended else ids)
    found["ended"].append(ended)
with open(sys.argv[2], "w") as file:
    json.dump(found, file)
