"""A conversation in which the model may call tools before it answers."""

from collections.abc import Callable, Mapping, Sequence

from gemma3_jax.inference.tools import calls, schemas
from gemma3_jax.tokenizer import chat


class TooManyCalls(ValueError):
    """The model kept calling tools. `turns` is the conversation, which ends with the calls that were not made."""

    def __init__(self, message: str, turns: list[dict]):
        super().__init__(message)
        self.turns = turns


def converse(
    reply: Callable[[list[dict]], str],
    turns: Sequence[Mapping[str, str]],
    tools: Sequence[schemas.Tool],
    *,
    run: Callable[[calls.Call], object],
    format: str,
    max_calls: int = 8,
) -> list[dict]:
    """The turns, followed by the model's calls, their results, and its answer in words.

    `reply` takes turns that end with the user's and start with the instructions about tools; the turns that are
    returned are without the instructions, so that the conversation can be continued. The model gets the error of a call
    that cannot be made as its result, and the call counts. Exceptions from `run` are not caught.
    Raises: ValueError if the turns do not end with the user's, or there are no tools; TooManyCalls.
    """
    if max_calls < 0:
        raise ValueError(f"max_calls is {max_calls}; it must be >= 0")
    if chat.fold_system(turns)[-1][0] != "user":
        raise ValueError("the last turn is of role 'model'; a conversation continues from a turn of the user")
    instructions, turns, num_calls = calls.instructions(tools, format), [dict(turn) for turn in turns], 0
    while True:
        text = reply(_with_instructions(turns, instructions))
        turns.append({"role": "model", "content": text})
        try:
            new_calls, error_message = calls.parse(text, tools, format), ""
        except ValueError as error:
            new_calls, error_message = [], str(error)
        if new_calls is None:
            return turns
        num_calls += len(new_calls) or 1
        if num_calls > max_calls:
            raise TooManyCalls(f"the model requested call {num_calls} of a tool; at most {max_calls} are made", turns)
        results = [calls.result_turn(call, run(call), format) for call in new_calls]
        turns.append({"role": "user", "content": "\n".join(results) or calls.error_turn(error_message, format)})


def _with_instructions(turns: list[dict], instructions: str) -> list[dict]:
    """The turns after a system turn with the instructions; the text of a system turn that is there follows them."""
    if turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{instructions}\n\n{turns[0]['content']}"}, *turns[1:]]
    return [{"role": "system", "content": instructions}, *turns]
