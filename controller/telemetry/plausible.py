"""Can a window be true? What a device sends is its own claim, and is judged before anything is made of it.

Invariant: sums, means and rates over windows that pass are finite, and what one window takes in memory is bounded. Says
nothing about clocks (`series.py`) and nothing about whether a figure is right.
"""

from __future__ import annotations

from typing import Final

from wire.messages import Window

LARGEST: Final = 1e18  # of any figure: bytes, milliseconds, requests; a million devices' sum is far from the end
LARGEST_COUNT: Final = 2**53
SHORTEST: Final = 1e-3  # seconds
LONGEST: Final = 86_400.0
MAX_LABEL: Final = 128  # characters, of a label's name and of its value


def plausible(window: Window) -> bool:
    """Whether ``window`` may be stored and reckoned with."""
    figures = (window.total, window.minimum, window.maximum, window.p50, window.p95, window.p99)
    return (
        SHORTEST <= window.seconds <= LONGEST
        and window.count <= LARGEST_COUNT
        and all(-LARGEST <= figure <= LARGEST for figure in figures if figure is not None)
        and all(len(name) <= MAX_LABEL and len(value) <= MAX_LABEL for name, value in window.labels.items())
    )
