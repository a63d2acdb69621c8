"""Asks llama.cpp's server, in the package xllamacpp, with its own template and stops: see ../engines.py."""

import importlib.metadata
import json
import sys
import urllib.request

import xllamacpp

with open(sys.argv[1]) as file:
    question = json.load(file)
params = xllamacpp.CommonParams()
params.model.path = question["model"]
params.n_ctx, params.n_parallel, params.warmup, params.use_jinja = 512, 1, False, True
params.port, params.endpoint_props = 0, True
server = xllamacpp.Server(params)


def post(path: str, **body) -> dict:
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


found = {"version": f"xllamacpp {importlib.metadata.version('xllamacpp')}"}
found |= {"prompt_ids": [], "answer_ids": [], "texts": [], "ended": []}
found["text_ids"] = post("/tokenize", content=question["text"], add_special=True)["tokens"]
for turns in question["questions"]:
    prompt = post("/apply-template", messages=turns)["prompt"]
    found["prompt_ids"].append(post("/tokenize", content=prompt, add_special=True, parse_special=True)["tokens"])
    greedy = {"temperature": 0, "cache_prompt": False, "return_tokens": True}
    answer = post("/completion", prompt=prompt, n_predict=question["num_tokens"], **greedy)
    found["answer_ids"].append(answer["tokens"][: -1 if answer["stop_type"] == "eos" else None])
    chat = post("/v1/chat/completions", messages=turns, max_tokens=question["num_tokens"], temperature=0)
    found["texts"].append(chat["choices"][0]["message"]["content"])
    found["ended"].append(chat["choices"][0]["finish_reason"] == "stop")
with open(sys.argv[2], "w") as file:
    json.dump(found, file)
