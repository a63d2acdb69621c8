"""Real text that every machine with this program has: the code and documentation of the Python standard library.

Tests are left out, because they repeat themselves, and so are tables, which are data rather than text.
"""

import ast
import functools
import pathlib
import sysconfig

CODE, DOCUMENTATION = "python", "en"  # languages of the two kinds of text
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "encodings"}


@functools.cache
def files() -> tuple[pathlib.Path, ...]:
    """Returns the modules of the library, in alphabetical order."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    return tuple(root / path for path in sorted(paths) if not _LEFT_OUT & set(path.parts))


def rows(file: pathlib.Path) -> list[dict[str, str]]:
    """Returns the code of a module and the text of its docstrings, if it has any, each with its language."""
    code = file.read_text(encoding="utf-8", errors="replace")
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        docstrings = [ast.get_docstring(node) for node in ast.walk(ast.parse(code)) if isinstance(node, nodes)]
    except (SyntaxError, ValueError):  # a template or a sample of bad code
        docstrings = []
    documentation = "\n\n".join(text for text in docstrings if text)
    documentation = documentation.encode(errors="replace").decode()  # escapes may spell half a surrogate pair
    documents = [{"text": code, "language": CODE}, {"text": documentation, "language": DOCUMENTATION}]
    return [document for document in documents if document["text"]]
