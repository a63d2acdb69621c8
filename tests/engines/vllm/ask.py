"""Asks vLLM, with its own template and stops: see ../engines.py."""

import importlib.metadata
import json
import os
import sys

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; half of the memory otherwise
os.environ["HF_HUB_OFFLINE"] = os.environ["VLLM_NO_USAGE_STATS"] = "1"


def main() -> None:
    import vllm  # here, as the processes that it starts import this file

    with open(sys.argv[1]) as file:
        question = json.load(file)
    engine = vllm.LLM(question["model"], dtype="float32", enforce_eager=True, max_model_len=512)
    greedy = vllm.SamplingParams(temperature=0, max_tokens=question["num_tokens"])
    [continued] = engine.generate([question["text"]], greedy)
    answers = engine.chat(question["questions"], greedy)
    found = {"version": f"vllm-cpu {importlib.metadata.version('vllm-cpu')}", "text_ids": continued.prompt_token_ids}
    found["prompt_ids"] = [answer.prompt_token_ids for answer in answers]
    outputs = [answer.outputs[0] for answer in answers]
    found["ended"] = [output.finish_reason == "stop" for output in outputs]
    found["answer_ids"] = [
        list(output.token_ids)[: -1 if ended else None] for output, ended in zip(outputs, found["ended"], strict=True)
    ]
    found["texts"] = [output.text for output in outputs]
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
