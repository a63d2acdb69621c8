"""Real text that every machine with this program has: the Python standard library, as code and as its documentation.

Tests are left out (they repeat themselves), and so are tables that are data rather than text.
"""

import ast
import functools
import pathlib
import sysconfig

CODE, DOCUMENTATION = "python", "en"  # their languages
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "encodings"}


@functools.cache
def files() -> tuple[pathlib.Path, ...]:
    """The library's modules, in alphabetical order."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    return tuple(root / path for path in sorted(found) if not _LEFT_OUT & set(path.parts))


def rows(file: pathlib.Path) -> list[dict[str, str]]:
    """A module's code, and the text of its documentation strings where it has any, each with its language."""
    code = file.read_text(encoding="utf-8", errors="replace")
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        found = [ast.get_docstring(node) for node in ast.walk(ast.parse(code)) if isinstance(node, nodes)]
    except (SyntaxError, ValueError):  # a template or a sample of bad code
        found = []
    documentation = "\n\n".join(text for text in found if text)
    documentation = documentation.encode(errors="replace").decode()  # escapes may spell half a surrogate pair
    documents = [{"text": code, "language": CODE}, {"text": documentation, "language": DOCUMENTATION}]
    return [document for document in documents if document["text"]]
