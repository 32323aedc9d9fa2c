"""How the benchmarks show and keep their figures: a table on the screen, the same as JSON in a file.

Every benchmark takes ``--json FILE``. Figures are medians with their spread unless the row says otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One row: what was measured, what came out, what is promised ("" for nothing), and whether that was kept."""

    what: str
    value: str
    promise: str = ""
    kept: bool | None = None


def spread(values: Sequence[float], unit: str, digits: int = 1) -> str:
    """Return the median of ``values`` with their range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f}, n={len(values)})"


def json_option(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def show(title: str, figures: Sequence[Figure], file: Path | None) -> None:
    """Print the table, and write the JSON when a file is named."""
    table = Table(title=title, title_justify="left")
    for column in ("what", "measured", "promised", ""):
        table.add_column(column)
    for figure in figures:
        mark = {True: "kept", False: "[red]missed[/red]", None: ""}[figure.kept]
        table.add_row(figure.what, figure.value, figure.promise, mark)
    Console().print(table)
    if file is not None:
        document = {"title": title, "machine": platform.platform(), "figures": [asdict(figure) for figure in figures]}
        file.write_text(json.dumps(document, indent=2) + "\n")
