"""How the command line shows things: tables for people, JSON for programs.

Invariant: data goes to standard output, everything else to standard error. JSON goes out as it is; in text for people
no character of a name or message, which may come from a device, is a command to the terminal or to the printer here.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

messages = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
UNBOUND: Final = 10_000  # columns where no terminal is: a program or a file reads whole lines
_COMMANDS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

Column = tuple[str, str | Callable[[Mapping[str, Any]], str]]


def show_json(value: Any) -> None:
    """Print ``value`` as JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def show_text(text: str) -> None:
    """Print ``text`` that is data."""
    sys.stdout.write(visible(text).removesuffix("\n") + "\n")
    sys.stdout.flush()  # what runs on must not keep it


def say(text: str) -> None:
    """Tell ``text`` on standard error."""
    messages.print(visible(text), markup=False)


def visible(text: str) -> str:
    """Return ``text`` with a mark in place of each character that would be a command to a terminal."""
    return _COMMANDS.sub("\N{REPLACEMENT CHARACTER}", text)


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], as_json: bool, nothing: str) -> None:
    """Print ``rows``; a column is a title and a key or a function of the row. ``nothing``: said when there are none."""
    if as_json:
        show_json(list(rows))
        return
    if not rows:
        say(nothing)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, _ in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(visible(_cell(row, source)) for _, source in columns))
    _print(table)


def show_fields(value: Mapping[str, Any], as_json: bool) -> None:
    """Print one thing, a field a line."""
    if as_json:
        show_json(value)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, field in value.items():
        table.add_row(name, visible(_text(field)))
    _print(table)


def show_done(value: Any, as_json: bool, text: str) -> None:
    """Tell that something was done: the answer for programs, a sentence for people."""
    if as_json:
        show_json(value)
    else:
        say(text)


def when(seconds: float | None) -> str:
    """Return a time as local wall-clock text, "-" for none."""
    if seconds is None:
        return "-"
    return dt.datetime.fromtimestamp(seconds, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print(table: Table) -> None:
    width = None if sys.stdout.isatty() else UNBOUND
    Console(highlight=False, soft_wrap=True, markup=False, emoji=False, width=width).print(table)


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
