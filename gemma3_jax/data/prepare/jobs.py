"""A job of `prepare`: the config with what it names, opened and checked before anything large is read."""

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Sequence

from gemma3_jax.data import dataset
from gemma3_jax.data.prepare import filters, settings, sources
from gemma3_jax.tokenizer import directory as tokenizer_directory
from gemma3_jax.tokenizer import training, vocabulary


@dataclasses.dataclass(frozen=True)
class Job:
    """The work that a config describes."""

    config: settings.PrepareConfig
    inputs: filters.Inputs
    units: Sequence[sources.Unit]
    named_tokenizer: vocabulary.Tokenizer | None  # None: one is trained

    @property
    def made_of(self) -> dict[str, str]:
        """What the records of the data set follow from, by name: only the same work may resume it.

        Of a score function only the name is known, of libraries nothing. The mixture and the number of records that
        may be broken are not part of it: both can be changed on the way.
        """
        fields = {f"config.{name}": repr(value) for name, value in vars(self.config).items() if name != "mixture"}
        named = {name: dataclasses.replace(source, max_broken=0) for name, source in self.config.sources.items()}
        return {
            "version of gemma3_jax": importlib.metadata.version("gemma3_jax"),
            **fields,
            "config.sources": repr(named),
            "set of source files": dataset.digest([dataclasses.astuple(unit) for unit in self.units]),
            "evaluation set": dataset.digest(self.inputs.evaluation),
            "word list": dataset.digest(self.inputs.unsafe_words),
            "tokenizer": self.named_tokenizer.digest if self.named_tokenizer else "",
        }


def open_job(config: settings.PrepareConfig) -> Job:
    """Checks a config, reads the lists and the tokenizer that it names, and cuts its sources into units.

    Raises: ValueError if the config is wrong, or if a source, a list or the tokenizer does not exist.
    """
    settings.check(config)
    if not config.tokenizer.path:
        training.check_size(config.tokenizer.size)
    inputs = filters.read_inputs(config)
    filters.build(config, inputs)
    tokenizer = None
    if config.tokenizer.path:
        tokenizer = tokenizer_directory.load(pathlib.Path(config.tokenizer.path))
        tokenizer.document("")
        if any(source.turns_field for source in config.sources.values()):
            tokenizer.check_has_turns()
    return Job(config, inputs, sources.units(config.sources), tokenizer)
