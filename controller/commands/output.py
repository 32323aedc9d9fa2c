"""How the command line shows things: tables for people, JSON for programs.

Invariant: data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

data = Console(highlight=False, soft_wrap=True)
messages = Console(stderr=True, highlight=False, soft_wrap=True)

Column = tuple[str, str | Callable[[Mapping[str, Any]], str]]


def show_json(value: Any) -> None:
    """Print ``value`` as JSON."""
    data.print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode(), markup=False)


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], as_json: bool, nothing: str) -> None:
    """Print ``rows``; a column is a title and a key or a function of the row. ``nothing``: said when there are none."""
    if as_json:
        show_json(list(rows))
        return
    if not rows:
        messages.print(nothing)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, _ in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, source) for _, source in columns))
    data.print(table)


def show_fields(value: Mapping[str, Any], as_json: bool) -> None:
    """Print one thing, a field a line."""
    if as_json:
        show_json(value)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, field in value.items():
        table.add_row(name, _text(field))
    data.print(table)


def show_done(value: Any, as_json: bool, text: str) -> None:
    """Tell that something was done: the answer for programs, a sentence for people."""
    if as_json:
        show_json(value)
    else:
        messages.print(text)


def when(seconds: float | None) -> str:
    """Return a time as local wall-clock text, "-" for none."""
    if seconds is None:
        return "-"
    return dt.datetime.fromtimestamp(seconds, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _cell(row: Mapping[str, Any], source: str | Callable[[Mapping[str, Any]], str]) -> str:
    return source(row) if callable(source) else _text(row.get(source))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return "\n".join(value) if value else "-"
    return msgspec.json.encode(value).decode()
