"""lm-eval for our models: the requests of its tasks, answered through `model_api`.

Text is tokenized as in lm-eval's Hugging Face model (`lm_eval.models.huggingface`), so that results are comparable,
with two exceptions. BOS comes once before every text; that model has it twice for perplexity if the tokenizer adds it.
Only the markers of a chat template are control tokens; a user's text that spells a marker is text.
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

from gemma3_jax import console
from gemma3_jax.evals import continuations, model_api
from gemma3_jax.tokenizer import chat, vocabulary

DEFAULT_MAX_TOKENS = 256  # default of max_gen_toks, as in lm-eval's own models
BOOTSTRAPS = 1_000  # standard errors accurate to 2 %; lm-eval's 100,000 take minutes
# Settings that do not matter to greedy decoding at any value, and those that do not at one value.
_WITHOUT_EFFECT = {"temperature", "top_k", "top_p", "min_p", "typical_p", "seed"}
_NEUTRAL = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1}
_RESULT_KEYS = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")


class LmEvalModel(lm_eval.api.model.LM):
    """A model in lm-eval's interface.

    Requests longer than `max_tokens` lose the start of their contexts, which `say` reports. `prompts_per_call` prompts
    are continued together, and `bar` shows progress.
    """

    def __init__(
        self,
        api: model_api.ModelApi,
        load_params: Callable[[], dict],
        *,
        max_tokens: int,
        prompts_per_call: int = 64,
        say: Callable[[str], object] = lambda line: None,
        bar: console.Bar = console.silent_bar,
    ):
        """`load_params` is called for every batch of requests.

        Raises: ValueError if the tokenizer has no <bos>, or max_tokens leaves no room for a token and its context.
        """
        super().__init__()
        if api.tokenizer.bos is None:
            raise ValueError("the tokenizer has no <bos>, which every request starts with")
        if max_tokens < 2 or prompts_per_call < 1:
            raise ValueError(
                f"max_tokens is {max_tokens} and prompts_per_call {prompts_per_call}; they must be >= 2 and >= 1"
            )
        self.max_tokens = max_tokens
        self._api, self._load_params, self._prompts_per_call = api, load_params, prompts_per_call
        self._say, self._bar = say, bar
        # Text of a chat -> its turns, and the start of the model's open turn. The text alone does not tell which
        # markers in it are control tokens.
        self._chats: dict[str, tuple[list[Mapping[str, str]], str]] = {}

    def loglikelihood(self, requests: list[lm_eval.api.instance.Instance]) -> list[tuple[float, bool]]:
        """For each (context, continuation), the nats of the continuation and whether it is greedy.

        An empty context is BOS alone. Spaces at the context's end belong to the continuation.
        Raises: ValueError if a continuation adds no token, or more than fit.
        """
        parsed = [self._pair(request) for request in requests]
        pairs = [pair for pair, _ in parsed]
        self._warn_truncated(sum(is_truncated for _, is_truncated in parsed), len(pairs))
        params = self._load_params()
        nats = continuations.score(self._api, params, pairs, bar=self._bar)
        are_greedy = continuations.are_greedy(
            self._api, params, pairs, nats, prompts_per_call=self._prompts_per_call, bar=self._bar
        )
        answers = [(math.fsum(values), is_greedy) for values, is_greedy in zip(nats, are_greedy, strict=True)]
        return self._cache("loglikelihood", requests, answers)

    def loglikelihood_rolling(self, requests: list[lm_eval.api.instance.Instance]) -> list[float]:
        """Nats of each text after BOS. A text longer than `max_tokens` is scored in windows, each id once."""
        windows = [
            [
                continuations.Pair(tuple(context), tuple(continuation))
                for context, continuation in map(
                    lm_eval.utils.make_disjoint_window,
                    lm_eval.utils.get_rolling_token_windows(
                        token_list=self._api.tokenizer.encode(request.args[0]),
                        prefix_token=self._api.tokenizer.bos,
                        max_seq_len=self.max_tokens,
                        context_len=1,
                    ),
                )
            ]
            for request in requests
        ]
        pairs = [pair for text_pairs in windows for pair in text_pairs]
        nats = iter(continuations.score(self._api, self._load_params(), pairs, bar=self._bar))
        sums = [math.fsum(value for _ in text_pairs for value in next(nats)) for text_pairs in windows]
        return self._cache("loglikelihood_rolling", requests, sums)

    def generate_until(self, requests: list[lm_eval.api.instance.Instance]) -> list[str]:
        """Greedy text after each context, up to and without its stop strings.

        Raises: ValueError if a task wants samples, another kind of search, or more tokens than fit.
        """
        parsed = [self._generation_request(request) for request in requests]
        self._warn_truncated(sum(is_truncated for _, is_truncated in parsed), len(parsed))
        texts = continuations.generate_until(
            self._api,
            self._load_params(),
            [request for request, _ in parsed],
            prompts_per_call=self._prompts_per_call,
            bar=self._bar,
        )
        return self._cache("generate_until", requests, texts)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text, up to the model's next turn; without `add_generation_prompt`, its last turn is left open.

        Raises: ValueError if the tokenizer has no turns, or the roles do not alternate.
        """
        self._api.tokenizer.check_has_turns()
        turns, turn_start = list(chat_history), ""
        if not add_generation_prompt:
            if not turns or chat.ROLES.get(turns[-1]["role"]) != "model":
                raise ValueError("the last turn is not the model's, so there is nothing to continue")
            turn_start = turns.pop()["content"]
        folded = [*chat.fold_system(turns), ("model", turn_start)]
        start, end = vocabulary.START_OF_TURN, vocabulary.END_OF_TURN
        text = "<bos>" + f"{end}\n".join(f"{start}{role}\n{content}" for role, content in folded)
        self._chats[text] = turns, turn_start
        return text

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in lm-eval's cache of requests."""
        return f"gemma3_jax-{self._api.tokenizer.digest[:12]}"

    def _warn_truncated(self, num_truncated: int, num_requests: int) -> None:
        if num_truncated:
            self._say(
                f"warning: {num_truncated} of {num_requests} requests are longer than {self.max_tokens} tokens; the "
                "start of their contexts is truncated"
            )

    def _cache(self, kind: str, requests: Sequence, answers: list) -> list:
        """The answers, after adding them to lm-eval's cache, if there is one."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers

    def encode(self, context: str, continuation: str = "", *, is_stripped: bool = False) -> list[int]:
        """The ids of a context and its continuation, encoded as one text, after BOS."""
        tokenizer = self._api.tokenizer
        prefix_ids, text = [tokenizer.bos], context
        if context in self._chats:
            turns, text = self._chats[context]
            header = "model\n"
            prefix_ids = chat.prompt(tokenizer, turns)[: -len(tokenizer.encode(header))]
            text = header + text
        elif context.startswith("<bos>" + vocabulary.START_OF_TURN):
            raise ValueError(
                f"a request starts like a chat, {context!r:.60}, but was not made by this model; let lm-eval "
                "make its requests anew (without cache_requests)"
            )
        return prefix_ids + tokenizer.encode((text.rstrip() if is_stripped else text) + continuation)

    def _pair(self, request: lm_eval.api.instance.Instance) -> tuple[continuations.Pair, bool]:
        """A context and its continuation, and whether the context was truncated."""
        context, continuation = request.args
        before = self.encode(context, is_stripped=True)
        after = self.encode(context, continuation)[len(before) :]
        if not 0 < len(after) <= self.max_tokens:
            raise ValueError(
                f"task {request.task_name}: the continuation {continuation!r:.60} adds {len(after)} tokens to its "
                f"context; it must be between 1 and max_tokens, {self.max_tokens}"
            )
        truncated = tuple(before[-(self.max_tokens + 1 - len(after)) :])  # the model does not read the last id
        return continuations.Pair(truncated, tuple(after)), len(truncated) < len(before)

    def _generation_request(
        self, request: lm_eval.api.instance.Instance
    ) -> tuple[continuations.GenerationRequest, bool]:
        """The request in our terms, and whether its context was truncated."""
        context, options = request.args
        settings = dict(lm_eval.models.utils.normalize_gen_kwargs(options, DEFAULT_MAX_TOKENS))
        stops, num_tokens = settings.pop("until"), settings.pop("max_gen_toks")
        for name, value in settings.items():
            if name not in _WITHOUT_EFFECT and (name not in _NEUTRAL or value != _NEUTRAL[name]):
                name = name if options.get(name) is not None else "temperature"  # which implies do_sample
                raise ValueError(
                    f"task {request.task_name} has generation_kwargs.{name}: {options[name]!r}; decoding "
                    "is always greedy: leave it out there, with do_sample: false"
                )
        if not all(isinstance(stop, str) for stop in stops):
            raise ValueError(f"task {request.task_name} has generation_kwargs.until: {stops!r:.60}; it must be strings")
        if not 0 < num_tokens < self.max_tokens:
            raise ValueError(
                f"task {request.task_name} has generation_kwargs.max_gen_toks: {num_tokens}; it must be >= 1 and below "
                f"max_tokens, {self.max_tokens}"
            )
        prompt = self.encode(context)
        truncated = tuple(prompt[-(self.max_tokens - num_tokens) :])
        return (
            continuations.GenerationRequest(truncated, num_tokens, tuple(filter(None, stops))),
            len(truncated) < len(prompt),
        )


def evaluate(
    model: LmEvalModel,
    tasks: Sequence[str],
    *,
    include_path: pathlib.Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
) -> dict:
    """lm-eval's results of some of its tasks, groups and tags, in its own format: {"results": {task: ...}}.

    `include_path` is a directory with YAML files of further tasks; `limit` is the number of documents of each. Tasks
    whose data is not on this machine download it. It seeds the global random numbers of Python and numpy.
    Raises: ValueError if there is no such task, with the nearest; if its data is not available; as `LmEvalModel` does.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit} documents of each task; it must be >= 1")
    if num_fewshot is not None and num_fewshot < 0:
        raise ValueError(f"num_fewshot is {num_fewshot} examples; it must be >= 0")
    manager = _task_manager(tasks, include_path)
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval forks to bootstrap, which JAX's threads do not outlive
    try:
        with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints; stdout is for results
            output = lm_eval.simple_evaluate(
                model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=num_fewshot,
                apply_chat_template=apply_chat_template,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
            )
    except OSError as error:  # the errors of datasets and the hub without a file or a network
        raise ValueError(f"the data of {', '.join(tasks)} is not available: {error}") from error
    except ModuleNotFoundError as error:
        raise ValueError(f"one of {', '.join(tasks)} needs the package {error.name}; pip install it") from error
    results = {key: output[key] for key in _RESULT_KEYS if key in output}
    return json.loads(json.dumps(results, default=str)) | {"lm_eval": lm_eval.__version__}


def _task_manager(tasks: Sequence[str], include_path: pathlib.Path | None) -> lm_eval.tasks.TaskManager:
    """lm-eval's index of tasks, which has all of `tasks`. Raises: ValueError."""
    if include_path:
        if not include_path.is_dir():
            raise ValueError(f"{include_path} is not a directory; custom tasks are YAML files in one")
        custom = lm_eval.tasks.TaskManager(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(custom.all_subtasks):  # reading lm-eval's own 14,000 files takes 7 seconds or more
            return custom
    manager = lm_eval.tasks.TaskManager(include_path=include_path)
    for name in tasks:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists them"
            besides = f", nor has {include_path}" if include_path else ""
            raise ValueError(f"lm-eval has no task {name!r}{besides}; {hint}")
    return manager
