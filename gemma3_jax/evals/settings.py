"""Settings of the evaluation tasks, for `evaluate` and for evaluations during training."""

import dataclasses

TASKS = ("perplexity", "context", "needle", "memorization", "bytes", "samples")
READ_DOCUMENTS = ("perplexity", "context", "memorization")
NEEDLE_KINDS = ("single", "multikey", "multivalue", "tracking", "common_words")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Perplexity of documents, by source."""

    window: int = 4_096  # tokens scored together; longer documents are split, and each part repeats BOS and one token

    def __post_init__(self):
        if self.window < 3:  # BOS, the repeated token, and one target
            raise ValueError(f"window is {self.window}; it must be at least 3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """Loss by position, and loss of documents' last tokens by the length of their context."""

    # Tokens. Documents shorter than the last length are left out.
    lengths: tuple[int, ...] = (128, 256, 512, 1_024, 2_048, 4_096)
    last_tokens: int = 64  # scored at every length; 1,024 in the report's figure 7
    num_documents: int = 64  # at most; the result has the number that were long enough

    def __post_init__(self):
        for name in ("last_tokens", "num_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths is {self.lengths}; name at least one, each once, in ascending order")
        if self.lengths[0] <= self.last_tokens:  # BOS comes before them
            raise ValueError(
                f"lengths begins with {self.lengths[0]} and last_tokens is {self.last_tokens}; every length must be "
                "over last_tokens"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needle:
    """Retrieval from generated text, after RULER (Hsieh et al. 2024)."""

    kinds: tuple[str, ...] = NEEDLE_KINDS  # of what is hidden and asked for
    lengths: tuple[int, ...] = (512, 1_024)  # tokens of the prompt, to within 1 %
    num_depths: int = 5  # positions of the needle, evenly from start to end
    num_samples: int = 2  # at each length and depth
    seed: int = 0  # of the texts

    def __post_init__(self):
        for name in ("kinds", "lengths"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; name at least one, and each once")
        if unknown := [kind for kind in self.kinds if kind not in NEEDLE_KINDS]:
            raise ValueError(f"kinds has {unknown[0]!r}; each must be one of {', '.join(NEEDLE_KINDS)}")
        if min(self.lengths) < 1:
            raise ValueError(f"lengths has {min(self.lengths)}; each must be at least 1 token")
        for name in ("num_depths", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memorization:
    """How much of its training text a model has memorized."""

    num_samples: int = 1_000  # documents, evenly over sources
    prefix_tokens: int = 50  # of the prompt, after BOS
    suffix_tokens: int = 50  # to be generated
    seed: int = 0  # of the choice of documents

    def __post_init__(self):
        for name in ("num_samples", "prefix_tokens", "suffix_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """The tasks to run, and the settings of each. Perplexity, context and memorization read `documents`."""

    tasks: tuple[str, ...] = ()  # names of tasks, as `evaluate --task` has them
    # A file that `prepare --input` reads, or a directory of these; chats are for perplexity alone. In training ""
    # means config.documents.
    documents: str = ""
    perplexity: Perplexity = Perplexity()
    context: Context = Context()
    needle: Needle = Needle()
    memorization: Memorization = Memorization()
    cache_lengths: tuple[int, ...] = (32_768,)  # for bytes: tokens in the cache
    prompts: tuple[str, ...] = ()  # for samples: texts to continue
    sample_tokens: int = 64  # for samples: tokens to generate of each

    def __post_init__(self):
        for name in self.tasks:
            if name not in TASKS:
                raise ValueError(f"tasks has {name!r}; each must be one of {', '.join(TASKS)}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks is {self.tasks}; name every task once")
        if "samples" in self.tasks and not self.prompts:
            raise ValueError("tasks has samples, but prompts is empty; name the texts to continue")
        if self.sample_tokens < 1:
            raise ValueError(f"sample_tokens is {self.sample_tokens}; it must be at least 1")
