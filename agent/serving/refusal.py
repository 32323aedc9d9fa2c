"""A request that gets no result: the status and the plain reason that its sender is told.

Invariant: what a client reads is a sentence, never a traceback. Does not decide anything.
"""

from __future__ import annotations

from agent.errors import ServingError


class RefusedError(ServingError):
    """``status``: of HTTP; ``retry_after``: seconds, or None; ``code``: the outcome that metrics count."""

    def __init__(self, status: int, message: str, code: str, retry_after: float | None = None) -> None:
        super().__init__(message, code)
        self.status = status
        self.retry_after = retry_after
