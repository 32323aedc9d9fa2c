"""Small, bounded reads below a root directory.

Invariant: nothing outside the root is ever opened: links are followed as if the root were the machine's "/". A file
that is missing, unreadable, not a plain file or a link to nowhere reads as None; no read raises, blocks on a pipe or
takes more than ``MAX_BYTES``. Does not know what the files mean.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 64 * 1024
MAX_NAMES: Final = 512
MAX_VALUE: Final = 128
_MAX_LINKS: Final = 40
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


class Root:
    """The machine itself ("/") or a folder with the files of another one. ``live``: this very machine."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100  Path.absolute keeps "..", resolve follows links
        self.live = self.path == Path("/")

    def read(self, path: str) -> bytes | None:
        """Return the first ``MAX_BYTES`` of ``path`` (absolute, as on the device), or None."""
        place = self.locate(path)
        if place is None:
            return None
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            chunks: list[bytes] = []
            left = MAX_BYTES
            while left and (chunk := os.read(descriptor, left)):
                chunks.append(chunk)
                left -= len(chunk)
            return b"".join(chunks)
        except OSError:  # sysfs answers EAGAIN, EIO or EINVAL where a sensor sleeps
            return None
        finally:
            os.close(descriptor)

    def text(self, path: str) -> str | None:
        """Return the content of ``path`` as text with undecodable bytes replaced, or None."""
        content = self.read(path)
        return None if content is None else content.decode("utf-8", "replace")

    def word(self, path: str) -> str | None:
        """Return the one value in ``path``, see ``clean``; None when there is none."""
        content = self.text(path)
        return None if content is None else clean(content)

    def names(self, path: str) -> tuple[str, ...]:
        """Return the sorted names in the directory ``path``, at most ``MAX_NAMES``; empty when there is none."""
        place = self.locate(path)
        names: list[str] = []
        try:
            if place is not None:
                with os.scandir(place) as entries:
                    for entry in entries:
                        names.append(entry.name)
                        if len(names) == MAX_NAMES:
                            break
        except OSError:
            return ()
        return tuple(sorted(names))

    def exists(self, path: str) -> bool:
        """Whether ``path`` is there, of any kind."""
        return self.locate(path) is not None

    def locate(self, path: str) -> Path | None:
        """Return where ``path`` really lies below the root, or None when it does not exist."""
        pending = path.split("/")[::-1]
        done: list[str] = []
        links = 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            here = self.path.joinpath(*done, part)
            try:
                if not stat.S_ISLNK(here.lstat().st_mode):
                    done.append(part)
                    continue
                target = str(here.readlink())
            except (OSError, ValueError):
                return None
            links += 1
            if links > _MAX_LINKS:
                return None
            if target.startswith("/"):
                done.clear()
            pending.extend(target.split("/")[::-1])
        return self.path.joinpath(*done)


def clean(text: str) -> str | None:
    """Return ``text`` without surrounding blanks and NULs; None when it is empty, too long or not printable ASCII."""
    value = text.strip(" \t\r\n\0")
    if not value or len(value) > MAX_VALUE or _UNPRINTABLE.search(value):
        return None
    return value


def whole_number(text: str | None) -> int | None:
    """Return the whole number that is all of ``text``, at most 20 digits, or None."""
    if text is None or not re.fullmatch(r"-?[0-9]{1,20}", text.strip()):
        return None
    return int(text)
