"""What can be configured of distillation: every field with its default and its unit."""

import dataclasses

# Estimators of the teacher's probabilities from few weights: distill/estimators.py documents each.
UNBIASED = ("stratified", "systematic", "sampled_counts", "gumbel_ht")
BIASED = ("gumbel_ht_normalized", "top_k", "sampled")
ESTIMATORS = UNBIASED + BIASED
WHOLE = "whole"  # no estimator: the probabilities of all ids, from a teacher that runs with the student


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """How a teacher's distribution over the next token is sampled."""

    estimator: str = "stratified"  # or whole, which samples nothing
    num_samples: int = 256  # M, per token (report, section 2.2)
    temperature: float = 1.0  # of the teacher's softmax, and of the student's against it

    def __post_init__(self):
        if self.estimator not in (*ESTIMATORS, WHOLE):
            raise ValueError(f"estimator is {self.estimator!r}; it must be one of {', '.join((*ESTIMATORS, WHOLE))}")
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; it must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    def knows_kl(self, vocab_size: int) -> bool:
        """Whether the divergence from the teacher follows from the samples: exactly, or without bias."""
        return self.estimator in (WHOLE, *UNBIASED) or self.num_samples >= vocab_size
