"""Documentation strings of Python packages, read from their sources with ``ast``.

Nothing is imported or executed.  Every docstring of a module, class or function is one
raw document, named by its qualified name.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from pathlib import Path
from typing import Any

from pipeline.stages.step import InputError

# Test suites, demos and vendored copies are not documentation.
SKIPPED_FOLDERS = {
    "tests", "test", "testing", "idlelib", "turtledemo", "site-packages", "_vendor", "lib2to3", "ensurepip", "__pycache__",
}  # fmt: skip
KINDS = {
    ast.Module: "module",
    ast.ClassDef: "class",
    ast.FunctionDef: "function",
    ast.AsyncFunctionDef: "function",
}


def package_sources(package: str) -> list[tuple[str, Path]]:
    """The (module name, file) pairs of a package, or of the standard library, in a fixed order.

    Raises :class:`InputError` for a package that the toolchain does not hold.
    """
    if package == "stdlib":
        root, prefix = Path(sysconfig.get_path("stdlib")), ""
    else:
        root, prefix = Path(sysconfig.get_path("purelib")) / package, package
    if not root.is_dir():
        raise InputError(f"curate.sources: package {package!r} is not installed in the core toolchain")
    found = []
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]):
            parts = [part for part in (prefix, *relative.with_suffix("").parts) if part]
            if parts[-1] == "__init__":
                parts.pop()
            if parts:
                found.append((".".join(parts), file))
    return found


def read_docstrings(module: str, file: Path, source: str) -> list[dict[str, Any]]:
    """The docstrings of one source file as raw documents; none where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []  # deliberately broken sources (encodings, bad syntax) that some packages ship
    documents: list[dict[str, Any]] = []
    _visit(tree, module, "module", source, documents)
    return documents


def _visit(node: ast.AST, name: str, kind: str, source: str, documents: list[dict[str, Any]]) -> None:
    body = getattr(node, "body", [])
    text = _docstring(body)
    if text:
        documents.append(
            {"name": name, "kind": kind, "source": source, "text": text, "arguments": _arguments(node)}
        )
    for child in body:
        child_kind = KINDS.get(type(child))
        if child_kind:
            if kind == "class" and child_kind == "function":
                child_kind = "method"
            _visit(child, f"{name}.{child.name}", child_kind, source, documents)
        elif isinstance(child, ast.If | ast.Try | ast.With):
            _visit(child, name, kind, source, documents)


def _docstring(body: list[ast.stmt]) -> str | None:
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        value = body[0].value.value
        if isinstance(value, str):
            # A lone surrogate in a string literal cannot be written as UTF-8.
            return inspect.cleandoc(value).strip().encode("utf-8", "replace").decode("utf-8")
    return None


def _arguments(node: ast.AST) -> list[str]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]
