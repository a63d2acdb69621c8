"""Settings that cannot be are refused before anything is read, by the name of the field."""

import dataclasses

import pytest

from gemma3_jax.data import settings as data_settings
from gemma3_jax.data.prepare import settings

SOURCE = settings.SourceConfig(paths=("a.jsonl",))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sources": {}}, r"config\.sources is empty"),
        ({"sources": {"a": settings.SourceConfig()}}, r"config\.sources\.a\.paths is empty"),
        ({"sources": {"a": settings.SourceConfig(kind="tfds")}}, r"config\.sources\.a\.dataset is empty"),
        (
            {"sources": {"a": settings.SourceConfig(kind="csv")}},
            r"config\.sources\.a\.kind is 'csv'; it must be one of",
        ),
        ({"sources": {"a": dataclasses.replace(SOURCE, fraction=0.0)}}, r"a\.fraction is 0.0; it must be over 0"),
        ({"sources": {"a": dataclasses.replace(SOURCE, fields=())}}, r"a\.fields is empty"),
        ({"sources": {"a": dataclasses.replace(SOURCE, bucket="../x")}}, r"a\.bucket is '../x'; use letters"),
        ({"sources": {"a": dataclasses.replace(SOURCE, language="")}}, r"a\.language is ''; use letters"),
        ({"personal_data": settings.PersonalDataConfig(action="hide")}, r"personal_data\.action is 'hide'"),
        ({"personal_data": settings.PersonalDataConfig(kinds=("name",))}, r"personal_data\.kinds is 'name'"),
        ({"decontamination": settings.DecontaminationConfig(action="cut")}, r"decontamination\.action is 'cut'"),
        (
            {"duplicates": settings.DuplicatesConfig(min_similarity=1.2)},
            r"min_similarity is 1.2; it must be from 0.7 to 1",
        ),
        ({"seq_lens": ()}, r"config\.seq_lens is empty and config\.documents is false"),
        ({"seq_lens": (1,)}, r"config\.seq_lens holds 1; a row has at least 2 tokens"),
        ({"seq_lens": (8, 8)}, r"config\.seq_lens is \(8, 8\); name every length once"),
        ({"duplicates": settings.DuplicatesConfig(min_similarity=0.5)}, r"min_similarity is 0.5; it must be from 0.7"),
        ({"quality": settings.QualityConfig(power=float("nan"))}, r"config\.quality has power nan"),
        ({"quality": settings.QualityConfig(floor=1.5)}, r"config\.quality has power 1.0 and floor 1.5"),
        ({"safety": settings.SafetyConfig(max_hits=-1)}, r"config\.safety\.max_hits is -1"),
        ({"sources": {"a": dataclasses.replace(SOURCE, max_broken=-1)}}, r"a\.max_broken is -1"),
        ({"examples_per_reason": 0}, r"config\.examples_per_reason is 0; it must be >= 1"),
        ({"seed": -1}, r"config\.seed is -1; it must be from 0"),
        ({"tokens_per_shard": 0}, r"config\.tokens_per_shard is 0"),
        ({"mixture": {"web": data_settings.Bucket()}}, r"config\.mixture names bucket web; the sources have: text"),
        ({"mixture": {"text": data_settings.Bucket(weight=0.0)}}, r"config\.mixture\.text has weight 0.0"),
        ({"mixture": {"text": data_settings.Bucket(max_epochs=-1.0)}}, r"config\.mixture\.text has .* max_epochs -1.0"),
    ],
)
def test_each_is_refused_by_its_name(changes, problem):
    with pytest.raises(ValueError, match=problem):
        settings.check(settings.PrepareConfig(**({"sources": {"a": SOURCE}} | changes)))


def test_the_defaults_with_a_source_are_fine():
    settings.check(settings.PrepareConfig(sources={"a": SOURCE, "b": settings.SourceConfig(kind="python")}))
    settings.check(settings.PrepareConfig(sources={"a": SOURCE}, seq_lens=(), documents=True))
