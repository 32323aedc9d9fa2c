"""How the controller's processes log: for people in a terminal, one JSON object a line elsewhere.

Invariant: logs go to standard error or to a file, never to standard output, which belongs to a command's data. A
traceback says where, never with which values: a secret must not end up in a log.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from controller.errors import InvalidError


def configure(level: str, output: TextIO = sys.stderr) -> None:
    """Log to ``output`` from ``level`` on ("debug", "info", "warning", "error").

    Raises InvalidError for another word.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise InvalidError(f"log_level {level!r}: use debug, info, warning or error", "bad_settings")
    # A traceback never shows what variables held: a request's headers, a token, a key.
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if output.isatty()
        else [
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(sort_keys=False),
        ]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(output),
    )
