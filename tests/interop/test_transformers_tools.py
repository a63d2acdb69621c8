"""The tools that transformers describes are taken as they are."""

import pytest

from gemma3_jax.inference.tools import calls, schemas

pytestmark = pytest.mark.interop
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def weather(city: str, days: int = 1) -> str:
    """Get the weather.

    Args:
        city: where
        days: how many

    Returns:
        What it will be like.
    """
    return f"{days} dry days in {city}"


def test_a_function_that_returns_something_is_a_tool():
    described = transformers.utils.get_json_schema(weather)
    assert described["function"]["return"] == {"type": "string", "description": "What it will be like."}
    tools = schemas.read([described])
    assert tools[0].parameters == described["function"]["parameters"]
    [call] = calls.parse("[weather(city='Paris', days=2)]", tools, "python")
    assert weather(**call.arguments) == "2 dry days in Paris"
