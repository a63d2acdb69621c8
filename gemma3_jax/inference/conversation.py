"""A conversation in which the model may call tools before it answers."""

from collections.abc import Callable, Mapping, Sequence

from gemma3_jax.inference.tools import calls, schemas
from gemma3_jax.tokenizer import chat


class TooManyCalls(ValueError):
    """The model went on calling; `turns` is the conversation up to and with the calls that were not made."""

    def __init__(self, message: str, turns: list[dict]):
        super().__init__(message)
        self.turns = turns


def converse(
    ask: Callable[[list[dict]], str],
    turns: Sequence[Mapping[str, str]],
    known: Sequence[schemas.Tool],
    *,
    run: Callable[[calls.Call], object],
    format: str,
    max_calls: int = 8,
) -> list[dict]:
    """The turns with those that follow, up to the model's answer in words: its calls, and what they gave, among them.

    `ask` gets turns that end with the user's, with what tells of the tools before the first; the turns that are
    returned are without that, so they can be gone on with. A call that cannot be made is answered with what is wrong
    with it, and counts as one. What `run` raises goes through.
    Raises: ValueError if the turns do not end with the user's, or if there are no tools; TooManyCalls.
    """
    if max_calls < 0:
        raise ValueError(f"max_calls is {max_calls}; it must be >= 0")
    if chat.fold_system(turns)[-1][0] != "user":
        raise ValueError("the last turn is of role 'model'; a conversation goes on from a turn of the user")
    introduction, turns, num_calls = calls.instructions(known, format), [dict(turn) for turn in turns], 0
    while True:
        text = ask(_introduced(turns, introduction))
        turns.append({"role": "model", "content": text})
        try:
            asked, problem = calls.parse(text, known, format), ""
        except ValueError as error:
            asked, problem = [], str(error)
        if asked is None:
            return turns
        num_calls += len(asked) or 1
        if num_calls > max_calls:
            raise TooManyCalls(f"the model asked for call {num_calls} of a tool; at most {max_calls} are made", turns)
        given = [calls.result_turn(call, run(call), format) for call in asked]
        turns.append({"role": "user", "content": "\n".join(given) or calls.error_turn(problem, format)})


def _introduced(turns: list[dict], introduction: str) -> list[dict]:
    """The turns with a text before all others, which stays a system turn of its own or the head of the one there is."""
    if turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{introduction}\n\n{turns[0]['content']}"}, *turns[1:]]
    return [{"role": "system", "content": introduction}, *turns]
