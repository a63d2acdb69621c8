"""Text generation for one model: prompts in, completions out. `open_sampler` has the version with a checkpoint."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from gemma3_jax import console
from gemma3_jax.inference import constraint, detokenizer, engine, sampling
from gemma3_jax.model import config, execution
from gemma3_jax.tokenizer import chat, vocabulary

PREFILL_CHUNK = 256  # tokens of a prompt per call
MAX_BATCH_SIZE, MAX_BATCH_TOKENS = 16, 1 << 16  # generated together; a single sequence may be longer
SLOT_MULTIPLE = 128  # the cache's slots are a multiple of this, so that few shapes are compiled
STREAMING_STEPS = 4  # tokens per call where text is shown as it comes
Turns = Sequence[dict[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How completions are generated."""

    max_new_tokens: int = 256
    sampling_options: sampling.Sampling = sampling.Sampling()
    seed: int = 0
    stop: tuple[str, ...] = ()  # strings that end a text, and are not part of it
    ignore_ends: bool = False  # continue after ids that end a document or a turn

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1 (--max_new_tokens)")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**32 - 1 (--seed)")
        if "" in self.stop:
            raise ValueError("a stop string is empty, and would end every text before it begins (--stop)")


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated after one prompt."""

    ids: list[int]  # as drawn, with the one that ended it
    text: str | None  # without what ended it; None without a tokenizer
    ended_by: str  # the piece of the id that ended it, "stop" for a stop string, or "length"


class Sampler:
    """A tokenizer and a compiled engine. Every call that generates takes the model's parameters.

    Without a tokenizer it takes and returns ids alone, and nothing ends a sequence early.
    """

    def __init__(self, tokenizer: vocabulary.Tokenizer | None, compiled: engine.Engine):
        self.tokenizer, self.engine = tokenizer, compiled
        self.end_ids = [] if tokenizer is None else [i for i in (tokenizer.eos, tokenizer.end_of_turn) if i is not None]

    def sample(self, params: dict, prompts: Sequence[str], **options) -> list[Completion]:
        """Completions of texts. `options` are fields of GenerateOptions."""
        return self.continue_(params, [self.encode(prompt) for prompt in prompts], GenerateOptions(**options))

    def reply(self, params: dict, turns: Turns, *, show: Callable[[str], None] | None = None, **options) -> Completion:
        """The model's next turn of a chat.

        Raises: ValueError if the turns do not alternate, or do not end with one of the user.
        """
        return self.continue_(params, [self.encode_turns(turns)], GenerateOptions(**options), show=show)[0]

    def encode(self, text: str) -> list[int]:
        """BOS and the ids of a text."""
        tokenizer = self._require_tokenizer()
        return [*([] if tokenizer.bos is None else [tokenizer.bos]), *tokenizer.encode(text)]

    def encode_turns(self, turns: Turns) -> list[int]:
        """The ids of a chat, up to where the model writes its next turn."""
        return chat.prompt(self._require_tokenizer(), turns)

    def check(self, prompts: Sequence[Sequence[int]], options: GenerateOptions) -> None:
        """Raises: ValueError as `continue_`, without any parameters."""
        self.engine.check(prompts, options.max_new_tokens)
        if options.stop:
            self._require_tokenizer()

    def continue_(
        self,
        params: dict,
        prompts: Sequence[Sequence[int]],
        options: GenerateOptions,
        *,
        constraints: Sequence[constraint.Constraint] | None = None,
        show: Callable[[str], None] | None = None,
        progress: Callable[[int], None] = console.ignore,
        is_interrupted: Callable[[], bool] = console.never,
    ) -> list[Completion]:
        """Completions of prompts in ids, in order; prompts of similar length are batched.

        `constraints` has one for each prompt. `show` takes the text of the only prompt as it comes; `progress` takes
        counts of tokens, `num_tokens(prompts, options)` in all. `is_interrupted` returns whether to generate no more.
        Raises: ValueError naming the prompt that is empty, has an unknown id, or leaves no room in the context.
        """
        self.check(prompts, options)
        assert show is None or len(prompts) == 1, "one text is shown at a time"
        completions: list[Completion | None] = [None] * len(prompts)
        for row_ids in batches([len(prompt) + options.max_new_tokens for prompt in prompts]):
            batch = _Batch(
                self,
                row_ids,
                [prompts[row_id] for row_id in row_ids],
                options,
                constraints=[constraints[row_id] for row_id in row_ids] if constraints else None,
            )
            for row_id, completion in zip(row_ids, batch.generate(params, show, progress, is_interrupted), strict=True):
                completions[row_id] = completion
        return completions

    def _require_tokenizer(self) -> vocabulary.Tokenizer:
        if self.tokenizer is None:
            raise ValueError("the checkpoint has no tokenizer; name one with --tokenizer=FILE, or give --prompt_ids")
        return self.tokenizer


def build(
    model: config.Config,
    tokenizer: vocabulary.Tokenizer | None,
    *,
    mesh: jax.sharding.Mesh,
    execute: execution.Execution = execution.REFERENCE,
    context: int = engine.ANY_CONTEXT,
) -> Sampler:
    """A sampler that never draws ids that no text has: image markers, and ids without a piece."""
    suppressed = [] if tokenizer is None else _ids_without_text(tokenizer, model.vocab_size)
    compiled = engine.Engine(model, mesh=mesh, execute=execute, context=context, suppressed=suppressed)
    return Sampler(tokenizer, compiled)


def num_tokens(prompts: Sequence[Sequence[int]], options: GenerateOptions) -> int:
    """How many tokens `continue_` reads, plus how many it generates at most."""
    return sum(map(len, prompts)) + len(prompts) * options.max_new_tokens


def _ids_without_text(tokenizer: vocabulary.Tokenizer, vocab_size: int) -> list[int]:
    markers = (tokenizer.start_of_image, tokenizer.end_of_image)
    return [*(marker for marker in markers if marker is not None), *range(tokenizer.size, vocab_size)]


class _Batch:
    """Prompts that are continued together."""

    def __init__(
        self,
        sampler: Sampler,
        row_ids: Sequence[int],
        prompts: Sequence[Sequence[int]],
        options: GenerateOptions,
        *,
        constraints: Sequence[constraint.Constraint] | None,
    ):
        self._sampler, self._engine, self._options, self._prompts = sampler, sampler.engine, options, prompts
        batch_multiple = self._engine.mesh.shape["replica"] * self._engine.mesh.shape["data"]
        self._num_fillers = -len(prompts) % batch_multiple
        # The prompt's number among all, so that its text does not depend on the batch it is in.
        self._random = engine.RandomStream(options.seed, np.asarray([*row_ids, *[0] * self._num_fillers]))
        self._end_ids = np.asarray([] if options.ignore_ends else sampler.end_ids, np.int32)
        self._constraints = constraints
        self._without_end = "length"  # why a sequence ends that neither stops nor draws an end
        self._ids: list[list[int]] = [[] for _ in prompts]
        self._texts = [
            detokenizer.Detokenizer(sampler.tokenizer, options.stop) if sampler.tokenizer else None for _ in prompts
        ]

    def generate(
        self,
        params: dict,
        show: Callable[[str], None] | None,
        progress: Callable[[int], None],
        is_interrupted: Callable[[], bool],
    ) -> list[Completion]:
        state, num_left = self._prefill(params, progress), self._options.max_new_tokens
        while num_left:
            if is_interrupted():
                self._without_end = "interrupt"
                progress(num_left * len(self._prompts))
                break
            max_steps = 1 if self._constraints else min(num_left, STREAMING_STEPS if show else engine.MAX_STEPS)
            drawn, state = self._engine.decode(
                params,
                state,
                max_steps=max_steps,
                sampling_options=self._options.sampling_options,
                random=self._random,
                end_ids=self._end_ids,
                allowed=self._allowed(np.asarray(state.is_done)),
            )
            num_left -= max_steps
            progress(max_steps * len(self._prompts))
            is_done = np.array(state.is_done)
            for row in range(len(self._prompts)):
                new_ids = [int(token) for token in drawn[row] if token != engine.NO_TOKEN]
                is_done[row] |= self._append(row, new_ids, show)
            if is_done.all():
                progress(num_left * len(self._prompts))
                break
            state = state._replace(is_done=jax.device_put(is_done, state.is_done.sharding))
        return [self._completion(row, show) for row in range(len(self._prompts))]

    def _prefill(self, params: dict, progress: Callable[[int], None]) -> engine.DecodeState:
        """The state after all prompts, left-padded so that they end together."""
        longest = max(map(len, self._prompts))
        chunk = PREFILL_CHUNK if longest > PREFILL_CHUNK else max(16, 1 << (longest - 1).bit_length())
        num_tokens = -(-longest // chunk) * chunk
        tokens = np.zeros((len(self._prompts) + self._num_fillers, num_tokens), np.int32)
        num_padding = np.full(len(tokens), num_tokens)
        for row, prompt in enumerate(self._prompts):
            num_padding[row] = num_tokens - len(prompt)
            tokens[row, num_padding[row] :] = prompt
        num_slots = -(-(num_tokens + self._options.max_new_tokens) // SLOT_MULTIPLE) * SLOT_MULTIPLE
        is_done = np.arange(len(tokens)) >= len(self._prompts)
        state = self._engine.init_state(num_padding, num_slots, is_done)
        for start in range(0, num_tokens, chunk):
            state = self._engine.prefill(params, state, tokens[:, start : start + chunk])
            progress(int(np.clip(start + chunk - num_padding[: len(self._prompts)], 0, chunk).sum()))
        return state

    def _allowed(self, is_done: np.ndarray) -> np.ndarray | None:
        """bool[B, V]: what each sequence may draw next, anything if it is done; None without constraints."""
        if not self._constraints:
            return None
        allowed = np.ones((len(is_done), self._engine.model.vocab_size), bool)
        for row, row_constraint in enumerate(self._constraints):
            if not is_done[row]:
                allowed[row] = row_constraint.allowed()
        return allowed

    def _append(self, row: int, new_ids: list[int], show: Callable[[str], None] | None) -> bool:
        """Appends ids to a sequence; returns whether they contain a stop string."""
        if self._constraints:
            for token in new_ids:
                self._constraints[row].consume(token)
        if (text := self._texts[row]) is None:
            self._ids[row] += new_ids
            return False
        # With stop strings one by one: ids after the string are dropped.
        for part in [[token] for token in new_ids] if self._options.stop else [new_ids]:
            self._ids[row] += part
            new_text = text.add([token for token in part if token not in self._end_ids])
            if show and new_text:
                show(new_text)
            if text.is_stopped:
                return True
        return False

    def _completion(self, row: int, show: Callable[[str], None] | None) -> Completion:
        ids, text = self._ids[row], self._texts[row]
        if text is not None and (rest := text.flush()) and show:
            show(rest)
        ended_by = self._without_end
        if text is not None and text.is_stopped:
            ended_by = "stop"
        elif ids and ids[-1] in self._end_ids:
            ended_by = self._sampler.tokenizer.piece(ids[-1])
        return Completion(ids, text.text if text is not None else None, ended_by)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row ids that are generated together, short sequences first."""
    left = sorted(range(len(lengths)), key=lambda row_id: lengths[row_id])
    while left:
        size = 1
        while size < min(MAX_BATCH_SIZE, len(left)) and (size + 1) * lengths[left[size]] <= MAX_BATCH_TOKENS:
            size += 1
        yield left[:size]
        left = left[size:]
