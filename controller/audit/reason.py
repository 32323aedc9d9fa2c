"""Why: the words that come with a request in the header `Muster-Reason`, for every audit row that the request makes.

Invariant: the words hold for their own request alone. They are somebody's claim and decide nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import unquote

HEADER: Final = "Muster-Reason"  # in UTF-8, with what is not ASCII percent-encoded
MAX_LENGTH: Final = 1000
given: ContextVar[str] = ContextVar("reason", default="")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_NAME: Final = HEADER.lower().encode()


class ReasonHeader:
    """The application ``app`` with the reason of each request at hand."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        words = next((value for name, value in scope.get("headers", ()) if name == _NAME), b"")
        before = given.set(plain(words))
        try:
            await self._app(scope, receive, send)
        finally:
            given.reset(before)


def plain(words: bytes) -> str:
    """Return the words of a header, without what is no letter, digit, mark or space."""
    text = unquote(words.decode("latin-1"), errors="replace")[:MAX_LENGTH]
    return "".join(letter for letter in text if letter.isprintable()).strip()
