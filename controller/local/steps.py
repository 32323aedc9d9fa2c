"""Shows the steps of a long piece of work as they happen, each with its time.

Invariant: a step that fails is shown as failed, and its error goes on upwards. In a terminal the running step turns; in
a pipe each step is one line. Everything goes to standard error: standard output belongs to the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

Say = Callable[[str], None]


class Steps:
    """One numbered list of steps. ``seconds`` holds what each took, by title."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str) -> Iterator[Say]:
        """Run one step; the block gets a function that shows what it is doing."""
        began = time.monotonic()
        with self._console.status(escape(title)) as status:

            def say(text: str) -> None:
                status.update(f"{escape(title)} [dim]{escape(text)}[/dim]")

            try:
                yield say
            except BaseException:
                self._console.print(f"[red]✗[/red] {escape(title)}")
                raise
        self.seconds[title] = time.monotonic() - began
        self._console.print(f"[green]✓[/green] {escape(title)} [dim]{self.seconds[title]:.1f} s[/dim]")

    def note(self, text: str) -> None:
        """Show one line below the last step."""
        self._console.print(f"  {escape(text)}", soft_wrap=True)
