"""Which device sends so much that it must be silenced: counted in messages that had to be dropped.

Invariant: a device that keeps the contract is never named. It has at most 64 messages without an acknowledgement on
their way (agent's window) besides a few values, as many as wait here for it, so that nothing of its is dropped; the
limit is far above what a hiccup could drop. Memory is bounded. Drops nothing (`inbox.py`) and silences nobody.
"""

from __future__ import annotations

from typing import Final

LIMIT: Final = 2_000  # dropped messages of one device ...
WINDOW: Final = 10.0  # ... within so many seconds
_MAX_DEVICES: Final = 10_000


class Floods:
    """Counts by device; ``now`` in seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}

    def dropped(self, device: str, now: float) -> bool:
        """Count one dropped message; return True when this one makes ``device`` a flooding one, once a window."""
        began, count = self._windows.get(device, (now, 0))
        if now - began >= WINDOW:
            began, count = now, 0
        if device not in self._windows and len(self._windows) >= _MAX_DEVICES:
            self._windows = {one: kept for one, kept in self._windows.items() if now - kept[0] < WINDOW}
            if len(self._windows) >= _MAX_DEVICES:
                self._windows.clear()
        self._windows[device] = (began, count + 1)
        return count + 1 == LIMIT
