"""What is known of each engine: what it reads, on which Python it runs, and what it is compared in."""

import dataclasses
import pathlib

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Engine:
    """An engine that is too large for CI. Its folder has `requirements.txt` and `ask.py`, which runs with them.

    `ask.py QUESTION.json ANSWER.json` writes an object with `version` and what `compared` names:

    - `prompt_ids`: the ids of the prompts that it makes of the chats in `questions`, by its own template
    - `text_ids`: those that it makes of `text`, with the BOS that it adds
    - `answer_ids`: the greedy ids of its answers, without the one that ends them
    - `texts`: the answers as users see them
    - `ended`: whether its own stop ended each answer
    """

    name: str
    format: str  # of `convert`
    target: str  # what the exported file or directory is called
    python: str = "3.11"
    without: tuple[str, ...] = ()  # packages that are taken out again
    compared: tuple[str, ...] = ("prompt_ids", "text_ids", "answer_ids", "texts", "ended")

    @property
    def folder(self) -> pathlib.Path:
        return HERE / self.name

    @property
    def version(self) -> str:
        """Of the first requirement, which is the engine itself."""
        first = (self.folder / "requirements.txt").read_text().splitlines()[0]
        return first.replace("==", " ")


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("mlx_lm", "hf", "served"),
        Engine("llama_cpp_server", "gguf", "served.gguf"),
        Engine("gemma_library", "gemma", "served-gemma", python="3.12"),
        # Its own torch is one for CPUs; PyPI's builds of these are for another, and fail when they are imported.
        Engine("vllm", "hf", "served", without=("torchvision", "torchaudio", "torchcodec")),
    )
}
