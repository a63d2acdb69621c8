"""Texts that go on: the public face of inference.

gemma = loaded.open_sampler(pathlib.Path("run"))
for answer in gemma.sample(["def main():", "import "], max_new_tokens=32):
    print(answer.text)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from gemma3_jax.inference import constraint, detokenizer, generate, sampling
from gemma3_jax.model import config, execution
from gemma3_jax.tokenizer import chat, vocabulary

CHUNK = 256  # tokens of a prompt that are read at once
ROWS_AT_ONCE, TOKENS_AT_ONCE = 16, 1 << 16  # that are written together at most; one row may be longer
SLOTS_IN = 128  # the cache has a multiple of so many slots, so that few shapes are compiled
ANY_CONTEXT = 1 << 30
Turns = Sequence[dict[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """How rows are written on."""

    max_new_tokens: int = 256
    how: sampling.Sampling = sampling.Sampling()
    seed: int = 0
    stop: tuple[str, ...] = ()  # strings that end a text, and are no part of it
    ignore_ends: bool = False  # write on behind ids that end a document or a turn

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1 (--max_new_tokens)")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**32 - 1 (--seed)")
        if "" in self.stop:
            raise ValueError("a stop string is empty, and would end every text where it begins (--stop)")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was written after a prompt."""

    ids: list[int]  # as drawn, the one that ended it among them
    text: str | None  # without what ended it; None without a tokenizer
    ended_by: str  # the piece of the id that did, the stop string's name "stop", or "length"


class Sampler:
    """A model ready to write. Without a tokenizer it goes on from ids alone, and nothing ends a row early."""

    def __init__(
        self,
        model: config.Config,
        load: Callable[[], dict],
        tokenizer: vocabulary.Tokenizer | None,
        *,
        mesh: jax.sharding.Mesh,
        execute: execution.Execution = execution.REFERENCE,
        context: int,
    ):
        """`load` gives the parameters, and is asked when they are needed; `context`: tokens a row may have in all."""
        self.model, self.tokenizer, self.mesh, self.execute, self.context = model, tokenizer, mesh, execute, context
        self._load = load
        self.programs = generate.Programs(model, mesh=mesh, execute=execute, never=_never(model, tokenizer))
        self.ends = [] if tokenizer is None else [i for i in (tokenizer.eos, tokenizer.end_of_turn) if i is not None]

    @functools.cached_property
    def params(self) -> dict:
        """Others may be set: the programs are the same."""
        return self._load()

    def sample(self, prompts: Sequence[str], **asked) -> list[Answer]:
        """How each text goes on. `asked`: fields of `Asked`."""
        return self.go_on([self.encode(prompt) for prompt in prompts], Asked(**asked))

    def reply(self, turns: Turns, show: Callable[[str], None] | None = None, **asked) -> Answer:
        """The model's next turn of a chat.

        Raises: ValueError if the turns do not alternate, or do not end with one of the user.
        """
        return self.go_on([self.encode_turns(turns)], Asked(**asked), show=show)[0]

    def encode(self, text: str) -> list[int]:
        """BOS and the ids of a text that is to go on."""
        tokenizer = self._needed()
        return [*([] if tokenizer.bos is None else [tokenizer.bos]), *tokenizer.encode(text)]

    def encode_turns(self, turns: Turns) -> list[int]:
        """A chat up to where the model writes its next turn."""
        return chat.prompt(self._needed(), turns)

    def go_on(
        self,
        prompts: Sequence[Sequence[int]],
        asked: Asked,
        *,
        constraints: Sequence[constraint.Constraint] | None = None,
        show: Callable[[str], None] | None = None,
        progress: Callable[[int], None] = lambda num_tokens: None,
    ) -> list[Answer]:
        """An answer for each prompt, in order.

        `constraints`: what each may say. `show` is given the text of the only prompt as it comes; `progress` how many
        tokens more were read and written, of `num_tokens(prompts, asked)`. Rows of like length go together.
        Raises: ValueError naming the prompt that is empty, has an unknown id, or leaves no room in the context.
        """
        self._check(prompts, asked)
        assert show is None or len(prompts) == 1, "one text is shown at a time"
        answers: list[Answer | None] = [None] * len(prompts)
        for numbers in _batches([len(prompt) + asked.max_new_tokens for prompt in prompts]):
            held_to = [constraints[number] for number in numbers] if constraints else None
            rows = _Rows(self, numbers, [prompts[number] for number in numbers], asked, constraints=held_to)
            for number, answer in zip(numbers, rows.write(show, progress), strict=True):
                answers[number] = answer
        return answers

    def _needed(self) -> vocabulary.Tokenizer:
        if self.tokenizer is None:
            raise ValueError("the checkpoint has no tokenizer; name one with --tokenizer=FILE, or give --prompt_ids")
        return self.tokenizer

    def _check(self, prompts: Sequence[Sequence[int]], asked: Asked) -> None:
        for number, prompt in enumerate(prompts):
            where = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            if not len(prompt):
                raise ValueError(f"{where} is empty; it must have at least one token")
            unknown = [token for token in prompt if not 0 <= token < self.model.vocab_size]
            if unknown:
                raise ValueError(f"{where} has id {unknown[0]}; ids are from 0 to {self.model.vocab_size - 1}")
            if len(prompt) + asked.max_new_tokens > self.context:
                raise ValueError(
                    f"{where} has {len(prompt)} tokens, and {asked.max_new_tokens} more are asked for; the context is "
                    f"{self.context} tokens: shorten it, lower --max_new_tokens, or raise --context"
                )
        if asked.stop:
            self._needed()


class _Rows:
    """Prompts that are written on together."""

    def __init__(
        self,
        sampler: Sampler,
        numbers: Sequence[int],
        prompts: Sequence[Sequence[int]],
        asked: Asked,
        *,
        constraints: Sequence[constraint.Constraint] | None,
    ):
        self._sampler, self._asked, self._prompts = sampler, asked, prompts
        row_multiple = sampler.mesh.shape["replica"] * sampler.mesh.shape["data"]
        self._num_filling = -len(prompts) % row_multiple
        # One's own number, not one's place among those that happen to be as long.
        self._draws = generate.Draws(asked.seed, np.asarray([*numbers, *[0] * self._num_filling]))
        self._ends = np.asarray([] if asked.ignore_ends else sampler.ends, np.int32)
        self._constraints = constraints
        self._ids: list[list[int]] = [[] for _ in prompts]
        self._texts = [
            detokenizer.Writing(sampler.tokenizer, asked.stop) if sampler.tokenizer else None for _ in prompts
        ]

    def write(self, show: Callable[[str], None] | None, progress: Callable[[int], None]) -> list[Answer]:
        state, left = self._read(progress), self._asked.max_new_tokens
        while left:
            at_most = 1 if self._constraints else min(left, 4 if show else generate.STRETCH)
            drawn, state = self._sampler.programs.write(
                self._sampler.params,
                state,
                at_most=at_most,
                how=self._asked.how,
                draws=self._draws,
                ends=self._ends,
                allowed=self._allowed(np.asarray(state.is_done)),
            )
            left -= at_most
            progress(at_most * len(self._prompts))
            is_done = np.array(state.is_done)
            for row in range(len(self._prompts)):
                new = [int(token) for token in drawn[row] if token != generate.NOT_DRAWN]
                is_done[row] |= self._take(row, new, show)
            if is_done.all():
                progress(left * len(self._prompts))
                break
            state = state._replace(is_done=jax.device_put(is_done, state.is_done.sharding))
        return [self._answer(row, show) for row in range(len(self._prompts))]

    def _read(self, progress: Callable[[int], None]) -> generate.State:
        """All prompts but nothing drawn: padding first, so that all end together."""
        sampler, longest = self._sampler, max(map(len, self._prompts))
        chunk = CHUNK if longest > CHUNK else max(16, 1 << (longest - 1).bit_length())
        num_tokens = -(-longest // chunk) * chunk
        tokens = np.zeros((len(self._prompts) + self._num_filling, num_tokens), np.int32)
        num_padding = np.full(len(tokens), num_tokens)
        for row, prompt in enumerate(self._prompts):
            num_padding[row] = num_tokens - len(prompt)
            tokens[row, num_padding[row] :] = prompt
        num_slots = -(-(num_tokens + self._asked.max_new_tokens) // SLOTS_IN) * SLOTS_IN
        is_done = np.arange(len(tokens)) >= len(self._prompts)
        state = sampler.programs.begin(num_padding, num_slots, is_done)
        for start in range(0, num_tokens, chunk):
            state = sampler.programs.read(sampler.params, state, tokens[:, start : start + chunk])
            progress(int(np.clip(start + chunk - num_padding[: len(self._prompts)], 0, chunk).sum()))
        return state

    def _allowed(self, is_done: np.ndarray) -> np.ndarray | None:
        """What each row may be next; of one that is done nobody looks at that."""
        if not self._constraints:
            return None
        found = np.ones((len(is_done), self._sampler.model.vocab_size), bool)
        for row, held_to in enumerate(self._constraints):
            if not is_done[row]:
                found[row] = held_to.allowed()
        return found

    def _take(self, row: int, new: list[int], show: Callable[[str], None] | None) -> bool:
        """Adds ids to a row; whether they end its text."""
        if self._constraints:
            for token in new:
                self._constraints[row].take(token)
        if (text := self._texts[row]) is None:
            self._ids[row] += new
            return False
        # One by one where a string may end it: ids behind that are not kept.
        for part in [[token] for token in new] if self._asked.stop else [new]:
            self._ids[row] += part
            said = text.take([token for token in part if token not in self._ends])
            if show and said:
                show(said)
            if text.is_stopped:
                return True
        return False

    def _answer(self, row: int, show: Callable[[str], None] | None) -> Answer:
        ids, text = self._ids[row], self._texts[row]
        if text is not None and show and (rest := text.finish()):
            show(rest)
        ended_by = "length"
        if text is not None and text.is_stopped:
            ended_by = "stop"
        elif ids and ids[-1] in self._ends:
            ended_by = self._sampler.tokenizer.piece(ids[-1])
        return Answer(ids, text.text if text is not None else None, ended_by)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows that are written together, short ones first."""
    left = sorted(range(len(lengths)), key=lambda number: lengths[number])
    while left:
        size = 1
        while size < min(ROWS_AT_ONCE, len(left)) and (size + 1) * lengths[left[size]] <= TOKENS_AT_ONCE:
            size += 1
        yield left[:size]
        left = left[size:]


def num_tokens(prompts: Sequence[Sequence[int]], asked: Asked) -> int:
    """How many tokens `go_on` reads, and writes at most."""
    return sum(map(len, prompts)) + len(prompts) * asked.max_new_tokens


def _never(model: config.Config, tokenizer: vocabulary.Tokenizer | None) -> np.ndarray:
    """bool[V]: markers of images, which text has no use for, and ids that have no piece."""
    never = np.zeros(model.vocab_size, bool)
    if tokenizer is not None:
        never[tokenizer.size :] = True
        markers = (tokenizer.start_of_image, tokenizer.end_of_image)
        never[[marker for marker in markers if marker is not None]] = True
    return never
