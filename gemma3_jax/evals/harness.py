"""lm-eval on a model of ours: the requests of its tasks, answered by a `Subject`.

A text is read as lm-eval's own Hugging Face model reads it (`lm_eval.models.huggingface`), so that numbers can be
compared, but for two things. BOS stands once before every text: that model puts it twice where perplexity is asked for
and the tokenizer adds it. And only the markers of a chat template are control tokens: text that spells one is text.
Source: lm-eval 0.4.13, lm_eval.api.model.
"""

import contextlib
import difflib
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import lm_eval
import lm_eval.api.instance
import lm_eval.api.model
import lm_eval.models.utils
import lm_eval.tasks
import lm_eval.utils

from gemma3_jax.evals import continuations, task
from gemma3_jax.tokenizer import chat, vocabulary

GENERATED_TOKENS = 256  # where a task does not say max_gen_toks, as in lm-eval's own models
BOOTSTRAPS = 1_000  # a standard error to 2 %; lm-eval's 100,000 take minutes
# Settings of generation that change nothing where the likeliest token is taken; others, at the value that does not.
_WITHOUT_EFFECT = {"temperature", "top_k", "top_p", "min_p", "typical_p", "seed"}
_NEUTRAL = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1}
_SAID = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")


class Model(lm_eval.api.model.LM):
    """A model as lm-eval sees it.

    `max_tokens` are given to it at once: what is longer loses the start of its context, and `say` is told how many did.
    `prompts_at_once` are continued together. `bar` shows what is at work.
    """

    def __init__(
        self,
        subject: task.Subject,
        *,
        max_tokens: int,
        prompts_at_once: int = 64,
        say: Callable[[str], object] = lambda line: None,
        bar: continuations.Bar = continuations.silent,
    ):
        """Raises: ValueError if the tokenizer has no <bos>, or there is no room for a token and its context."""
        super().__init__()
        if subject.tokenizer.bos is None:
            raise ValueError("the tokenizer has no <bos>, which every text that lm-eval asks about starts with")
        if max_tokens < 2 or prompts_at_once < 1:
            raise ValueError(
                f"max_tokens is {max_tokens} and prompts_at_once {prompts_at_once}; they must be >= 2 and >= 1"
            )
        self.max_tokens = max_tokens
        self._subject, self._prompts_at_once, self._say, self._bar = subject, prompts_at_once, say, bar
        # Text of a chat -> its turns, and what the model's open turn begins with: only here is it known which markers
        # in it are markers.
        self._chats: dict[str, tuple[list[Mapping[str, str]], str]] = {}

    def loglikelihood(self, requests: list[lm_eval.api.instance.Instance]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): nats of the continuation, and whether greedy decoding writes it.

        An empty context is BOS alone. Spaces at the context's end count as the continuation's.
        Raises: ValueError if a continuation has no token of its own, or more than fit.
        """
        found = [self._pair(request) for request in requests]
        pairs = [pair for pair, _ in found]
        self._say_cut(sum(is_cut for _, is_cut in found), len(pairs))
        nats = continuations.score(self._subject, pairs, bar=self._bar)
        are_greedy = continuations.are_greedy(
            self._subject, pairs, nats, prompts_at_once=self._prompts_at_once, bar=self._bar
        )
        answers = [(math.fsum(values), is_greedy) for values, is_greedy in zip(nats, are_greedy, strict=True)]
        return self._keep("loglikelihood", requests, answers)

    def loglikelihood_rolling(self, requests: list[lm_eval.api.instance.Instance]) -> list[float]:
        """Nats of each text after BOS; of one longer than `max_tokens` in windows, each id once."""
        windows = [
            [
                continuations.Pair(tuple(context), tuple(continuation))
                for context, continuation in map(
                    lm_eval.utils.make_disjoint_window,
                    lm_eval.utils.get_rolling_token_windows(
                        token_list=self._subject.tokenizer.encode(request.args[0]),
                        prefix_token=self._subject.tokenizer.bos,
                        max_seq_len=self.max_tokens,
                        context_len=1,
                    ),
                )
            ]
            for request in requests
        ]
        nats = iter(continuations.score(self._subject, [pair for pairs in windows for pair in pairs], bar=self._bar))
        found = [math.fsum(value for _ in pairs for value in next(nats)) for pairs in windows]
        return self._keep("loglikelihood_rolling", requests, found)

    def generate_until(self, requests: list[lm_eval.api.instance.Instance]) -> list[str]:
        """The likeliest text after each context, up to its stop strings, which it does not have.

        Raises: ValueError if a task wants samples, or a search of another kind, or more tokens than there is room for.
        """
        wishes = [self._wish(request) for request in requests]
        self._say_cut(sum(is_cut for _, is_cut in wishes), len(wishes))
        found = continuations.until(
            self._subject, [wish for wish, _ in wishes], prompts_at_once=self._prompts_at_once, bar=self._bar
        )
        return self._keep("generate_until", requests, found)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text, up to where the model writes; without the prompt for it, a last turn of the model is open.

        Raises: ValueError if the tokenizer has no turns, or the roles do not alternate.
        """
        self._subject.tokenizer.check_has_turns()
        turns, begun = list(chat_history), ""
        if not add_generation_prompt:
            if not turns or chat.ROLES.get(turns[-1]["role"]) != "model":
                raise ValueError("the last turn is not the model's, so there is nothing in it to go on from")
            begun = turns.pop()["content"]
        folded = [*chat.fold_system(turns), ("model", begun)]
        start, end = vocabulary.START_OF_TURN, vocabulary.END_OF_TURN
        text = "<bos>" + f"{end}\n".join(f"{start}{role}\n{content}" for role, content in folded)
        self._chats[text] = turns, begun
        return text

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells kept requests of one tokenizer from those of another by."""
        return f"gemma3_jax-{self._subject.tokenizer.digest[:12]}"

    def _say_cut(self, num_cut: int, num_requests: int) -> None:
        if num_cut:
            self._say(
                f"warning: {num_cut} of {num_requests} requests are longer than {self.max_tokens} tokens; the start of "
                "their contexts is cut off"
            )

    def _keep(self, kind: str, requests: Sequence, found: list) -> list:
        """What was found, once lm-eval's cache of answers has it, if there is one."""
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return found

    def _encode(self, context: str, more: str = "", *, is_stripped: bool = False) -> list[int]:
        """Ids of a context, BOS among them, and of what follows it in the same text."""
        tokenizer = self._subject.tokenizer
        begun, text = [tokenizer.bos], context
        if context in self._chats:
            turns, text = self._chats[context]
            header = "model\n"
            begun = chat.prompt(tokenizer, turns)[: -len(tokenizer.encode(header))]
            text = header + text
        elif context.startswith("<bos>" + vocabulary.START_OF_TURN):
            raise ValueError(
                f"a request begins as a chat does, {context!r:.60}, but was not made here; let lm-eval make its "
                "requests anew (without cache_requests)"
            )
        return begun + tokenizer.encode((text.rstrip() if is_stripped else text) + more)

    def _pair(self, request: lm_eval.api.instance.Instance) -> tuple[continuations.Pair, bool]:
        """A context and its continuation, and whether the context had to be cut."""
        context, continuation = request.args
        before = self._encode(context, is_stripped=True)
        after = self._encode(context, continuation)[len(before) :]
        if not 0 < len(after) <= self.max_tokens:
            raise ValueError(
                f"task {request.task_name}: the continuation {continuation!r:.60} adds {len(after)} tokens to its "
                f"context; it must be between 1 and max_tokens, {self.max_tokens}"
            )
        kept = tuple(before[-(self.max_tokens + 1 - len(after)) :])  # the last id is scored, and not read
        return continuations.Pair(kept, tuple(after)), len(kept) < len(before)

    def _wish(self, request: lm_eval.api.instance.Instance) -> tuple[continuations.Wish, bool]:
        """What a request wants, and whether its context had to be cut."""
        context, asked = request.args
        settings = dict(lm_eval.models.utils.normalize_gen_kwargs(asked, GENERATED_TOKENS))
        stops, num_tokens = settings.pop("until"), settings.pop("max_gen_toks")
        for name, value in settings.items():
            if name not in _WITHOUT_EFFECT and (name not in _NEUTRAL or value != _NEUTRAL[name]):
                name = name if asked.get(name) is not None else "temperature"  # which alone asks for samples, too
                raise ValueError(
                    f"task {request.task_name} has generation_kwargs.{name}: {asked[name]!r}; only the "
                    "likeliest token is ever taken: leave it out there, with do_sample: false"
                )
        if not all(isinstance(stop, str) for stop in stops):
            raise ValueError(f"task {request.task_name} has generation_kwargs.until: {stops!r:.60}; it must be strings")
        if not 0 < num_tokens < self.max_tokens:
            raise ValueError(
                f"task {request.task_name} has generation_kwargs.max_gen_toks: {num_tokens}; it must be >= 1 and below "
                f"max_tokens, {self.max_tokens}"
            )
        prompt = self._encode(context)
        kept = tuple(prompt[-(self.max_tokens - num_tokens) :])
        return continuations.Wish(kept, num_tokens, tuple(filter(None, stops))), len(kept) < len(prompt)


def evaluate(
    model: Model,
    tasks: Sequence[str],
    *,
    include_path: pathlib.Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
) -> dict:
    """What lm-eval finds of a model by some of its tasks, groups and tags, in its own words: {"results": {task: ...}}.

    `include_path` is a directory with YAML files of further tasks; `limit`, how many documents of each are asked about.
    Tasks whose data is not on this machine fetch it. It seeds the global random numbers of Python and numpy.
    Raises: ValueError if there is no such task, with the nearest; if its data cannot be had; as `Model` does.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit} documents of each task; it must be >= 1")
    if num_fewshot is not None and num_fewshot < 0:
        raise ValueError(f"num_fewshot is {num_fewshot} examples; it must be >= 0")
    manager = _task_manager(tasks, include_path)
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval forks to bootstrap, which JAX's threads do not outlive
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints; stdout is for results
            found = lm_eval.simple_evaluate(
                model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=num_fewshot,
                apply_chat_template=apply_chat_template,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
            )
    except OSError as error:  # which all errors of datasets and the hub are, when they find no file or no network
        raise ValueError(f"what lm-eval needs for {', '.join(tasks)} cannot be had: {error}") from error
    except ModuleNotFoundError as error:
        raise ValueError(f"one of {', '.join(tasks)} needs the package {error.name}; pip install it") from error
    said = {key: found[key] for key in _SAID if key in found}
    return json.loads(json.dumps(said, default=str)) | {"lm_eval": lm_eval.__version__}


def _task_manager(tasks: Sequence[str], include_path: pathlib.Path | None) -> lm_eval.tasks.TaskManager:
    """lm-eval's index of tasks, with all that are asked for."""
    if include_path:
        if not include_path.is_dir():
            raise ValueError(f"{include_path} is no directory; tasks of one's own are YAML files in one")
        own = lm_eval.tasks.TaskManager(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):  # lm-eval's own 14,000 files take from 7 seconds on to read
            return own
    manager = lm_eval.tasks.TaskManager(include_path=include_path)
    for name in tasks:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists what there is"
            besides = f", nor has {include_path}" if include_path else ""
            raise ValueError(f"lm-eval has no task {name!r}{besides}; {hint}")
    return manager
