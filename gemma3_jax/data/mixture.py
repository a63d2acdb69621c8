"""How often each language of each bucket is drawn: UniMax inside a bucket, weights between buckets.

Source: Chung et al. 2023, "UniMax" (arXiv 2304.09151); Gemma 3 report, section 2.2 ("inspired by").
"""

from collections.abc import Mapping

from gemma3_jax.data import settings


def unimax(characters: Mapping[str, int], budget: float, max_epochs: float) -> dict[str, float]:
    """Returns the characters to draw of each language: equally many, but at most `max_epochs` times what it has.

    The budget is spent evenly, smallest language first; what a capped language leaves goes to the larger ones. The sum
    is min(budget, max_epochs * all characters).
    Raises: ValueError if a language has no characters.
    """
    if empty := [language for language, count in characters.items() if count <= 0]:
        raise ValueError(f"language {empty[0]} has no characters; leave it out of the mixture")
    drawn: dict[str, float] = {}
    left = budget
    ascending = sorted(characters, key=lambda language: (characters[language], language))
    for number, language in enumerate(ascending):
        drawn[language] = min(max_epochs * characters[language], left / (len(ascending) - number))
        left -= drawn[language]
    return {language: drawn[language] for language in characters}


def weights(
    characters: Mapping[str, int], num_rows: Mapping[str, int], buckets: Mapping[str, settings.Bucket]
) -> dict[str, float]:
    """Returns the fraction of rows to draw from each part "bucket/language"; they sum to 1.

    UniMax counts characters, the stream counts rows: a part drawn for so many epochs of its characters is drawn for
    as many of its rows. Without buckets every part is drawn in proportion to its rows.
    Raises: ValueError if a bucket or language is not among the parts, or a part has no rows.
    """
    present = sorted(num_rows)
    if not buckets:
        buckets = {"": settings.Bucket()}
        languages = {"": present}
    else:
        languages = {name: _parts_of(name, bucket, present) for name, bucket in buckets.items()}
    for name, bucket in buckets.items():
        settings.check_bucket(bucket, f"bucket {name} of the mixture")
    fractions: dict[str, float] = {}
    total_weight = sum(bucket.weight for bucket in buckets.values())
    for name, bucket in buckets.items():
        parts = {part: characters[part] for part in languages[name]}
        if empty := [part for part in parts if not num_rows[part]]:
            raise ValueError(
                f"{empty[0]} has no sequences; leave it out of the mixture (config.mixture.{name}.languages)"
            )
        budget = float(bucket.budget_characters or bucket.max_epochs * sum(parts.values()))
        drawn = unimax(parts, budget, bucket.max_epochs)
        rows = {part: num_rows[part] * drawn[part] / characters[part] for part in parts}
        for part, count in rows.items():
            fractions[part] = bucket.weight / total_weight * count / sum(rows.values())
    return dict(sorted(fractions.items()))  # their order decides the interleaving


def _parts_of(name: str, bucket: settings.Bucket, present: list[str]) -> list[str]:
    known = [part for part in present if part.startswith(f"{name}/")]
    if not known:
        buckets = sorted({part.split("/")[0] for part in present})
        raise ValueError(f"config.mixture names bucket {name}; the data has: {', '.join(buckets)}")
    for language in bucket.languages:
        if f"{name}/{language}" not in known:
            languages = ", ".join(part.split("/")[1] for part in known)
            raise ValueError(
                f"config.mixture.{name}.languages names {language}; this bucket of the data has: {languages}"
            )
    return [f"{name}/{language}" for language in bucket.languages] or known
