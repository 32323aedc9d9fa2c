"""Lines per package, the median file and the largest: `python -m benchmarks.code_size`."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.table import Figure, json_option, show

ROOT = Path(__file__).parents[1]
PACKAGES = ("wire", "device_profiles", "agent", "controller", "tests", "benchmarks")


def main() -> None:
    """Count non-empty files by their lines."""
    arguments = json_option(__doc__).parse_args()
    figures = []
    for package in PACKAGES:
        sizes = {
            path: path.read_text().count("\n")
            for path in (ROOT / package).rglob("*.py")
            if path.name != "__init__.py" or path.stat().st_size > 0
        }
        largest = max(sizes, key=lambda path: sizes[path])
        value = (
            f"{sum(sizes.values())} lines in {len(sizes)} files, median {statistics.median(sizes.values()):.0f}, "
            f"largest {largest.relative_to(ROOT)} ({sizes[largest]})"
        )
        figures.append(Figure(package, value))
    show("Size of the code", figures, arguments.json)


if __name__ == "__main__":
    main()
