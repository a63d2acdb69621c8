"""HTML from the templates of this package. Every value is escaped: a run's names and texts may hold any characters."""

import jinja2


def _finalize(value: object) -> object:
    """Applied to a value before it is escaped: None is empty, and NUL, which HTML cannot hold, is replaced."""
    if value is None:
        return ""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("gemma3_jax.report", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_finalize,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(name: str, **values: object) -> str:
    """Renders the template `name`.jinja."""
    return ENVIRONMENT.get_template(f"{name}.jinja").render(values)
