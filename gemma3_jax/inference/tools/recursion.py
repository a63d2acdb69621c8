"""JSON Schemas that refer to themselves without an end, such as a list of one or more lists of that kind."""

from collections.abc import Collection, Iterable, Mapping


def is_endless(parts: Iterable[Mapping], targets: Mapping[str, object]) -> bool:
    """Whether one of a schema's parts only has values that would contain a value of that part.

    `targets`: the schema that each `$ref` refers to. Contradictions of other kinds are not looked for.
    """
    # Those whose values are known to end grow until they stay the same.
    unknown = set(targets)
    while ending := {reference for reference in unknown if _ends(targets[reference], unknown)}:
        unknown -= ending
    return not all(_ends(part, unknown) for part in parts)


def _ends(schema: object, unknown: Collection[str]) -> bool:
    """Whether a schema has a value without values of the references in `unknown`."""
    if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
        return True
    if schema.get("$ref") in unknown or not all(_ends(inner, unknown) for inner in schema.get("allOf", ())):
        return False
    for name in ("anyOf", "oneOf"):
        if name in schema and not any(_ends(inner, unknown) for inner in schema[name]):
            return False
    if schema.get("type") in ("object", ["object"]):
        properties = schema.get("properties", {})
        return all(_ends(properties.get(name), unknown) for name in schema.get("required", ()))
    if schema.get("type") in ("array", ["array"]):
        num_items, first = int(schema.get("minItems", 0)), schema.get("prefixItems", ())
        others = [schema.get("items")] if num_items > len(first) else []
        return all(_ends(inner, unknown) for inner in [*first[:num_items], *others])
    return True
