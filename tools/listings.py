"""Code and options as pages show them, taken from the source so that a page cannot fall behind: see quotes.py."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal, get_args, get_origin

import tyro


def source(path: Path, name: str) -> str:
    """A fenced block of one definition, without its docstring.

    Raises:
        LookupError: the file has no such definition.
    """
    text = path.read_text()
    node: Any = ast.parse(text)
    for part in name.split("."):
        found = [child for child in node.body if getattr(child, "name", None) == part]
        if not found:
            raise LookupError(f"{path} has no {name}")
        node = found[0]
    lines: list[str | None] = list(text.splitlines())
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
            said = inner.body[0]
            after = said.end_lineno or said.lineno
            blank = after < len(lines) and not (lines[after] or "").strip()
            lines[said.lineno - 1 : after + blank] = [None] * (after + blank - said.lineno + 1)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    kept = [line for line in lines[first - 1 : node.end_lineno] if line is not None]
    return "```python\n" + dedent("\n".join(kept)) + "\n```\n"


def options(place: str) -> str:
    """A table of the options that a section of the configuration, or of the command line, stands for.

    Raises:
        LookupError: there is no such class.
    """
    module, _, name = place.partition(":")
    try:
        section: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"no {place}: {error}") from None
    rows = [row for field in section.model_fields.items() if (row := _row(section.prefix, *field)) is not None]
    return "\n".join(["| option | meaning | default |", "|---|---|---|", *rows, ""])


def _row(prefix: str, name: str, field: Any) -> str | None:
    """One option; None for what cannot be given, or is a section of its own."""
    from ditlab.config.section import Section

    parts = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type)]
    if tyro.conf.Suppress in field.metadata or any(issubclass(part, Section) for part in parts):
        return None
    marks = [mark for mark in field.metadata if hasattr(mark, "metavar")]
    flag = next((mark.name for mark in marks if mark.name), name.replace("_", "-"))
    meaning = next((mark.help for mark in marks if mark.help), field.description or "")
    listed = [mark.metavar for mark in marks if (mark.metavar or "").startswith("{")]
    choices = listed[0].strip("{}").split(",") if listed else _choices(field.annotation)
    if tyro.conf.Positional in field.metadata:
        shown = next((mark.metavar for mark in marks if mark.metavar), flag.upper())
    else:
        shown = f"--{prefix}{flag}"
    if choices:
        meaning += ": " + ", ".join(f"`{choice}`" for choice in choices)
    default = "" if field.is_required() else f"`{_written(field.default)}`"
    return f"| `{shown}` | {meaning} | {default} |".replace("||", "| |")


def _choices(annotation: Any) -> list[Any]:
    """The words that a Literal allows, also within a union."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _written(default: Any) -> str:
    """A default as one types it."""
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
