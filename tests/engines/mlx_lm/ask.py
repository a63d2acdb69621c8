"""Asks mlx-lm, with its own template, tokenizer and stops: see ../engines.py."""

import json
import sys

import mlx_lm

with open(sys.argv[1]) as file:
    question = json.load(file)
model, tokenizer = mlx_lm.load(question["model"])
found = {"version": f"mlx-lm {mlx_lm.__version__}", "prompt_ids": [], "answer_ids": [], "texts": [], "ended": []}
found["text_ids"] = tokenizer.encode(question["text"])
for turns in question["questions"]:
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    steps = list(mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=question["num_tokens"]))  # greedy
    found["prompt_ids"].append(list(prompt))
    ended = steps[-1].finish_reason == "stop"
    found["answer_ids"].append([step.token for step in steps][: -1 if ended else None])
    found["texts"].append("".join(step.text for step in steps))
    found["ended"].append(ended)
with open(sys.argv[2], "w") as file:
    json.dump(found, file)
