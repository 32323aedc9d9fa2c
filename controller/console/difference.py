"""What changed between two JSON values, as operations that a page applies to what it holds.

Invariant: pure; applying ``difference(old, new)`` to ``old`` gives ``new``. An operation is ``[keys, value]``, which
sets the value at the end of a path of keys, or ``[keys]``, which removes what is there; they hold in order. Lists of
one length are compared place by place, others are set whole: pages keep their rows in place, so that is rare.
"""

from __future__ import annotations

from typing import Any

Operation = list[Any]
Keys = list[str | int]


def difference(old: Any, new: Any) -> list[Operation]:
    """Return the operations that turn ``old`` into ``new``; none when they are equal."""
    found: list[Operation] = []
    _compare(old, new, [], found)
    return found


def _compare(old: Any, new: Any, keys: Keys, found: list[Operation]) -> None:
    if old is new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        found.extend([[*keys, key]] for key in old.keys() - new.keys())
        for key, value in new.items():
            if key in old:
                _compare(old[key], value, [*keys, key], found)
            else:
                found.append([[*keys, key], value])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (before, after) in enumerate(zip(old, new, strict=True)):
            _compare(before, after, [*keys, place], found)
    elif type(old) is not type(new) or old != new:  # True is not 1 here
        found.append([keys, new])
