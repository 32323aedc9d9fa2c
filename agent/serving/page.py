"""The status page of a serving process: one small page without scripts.

Invariant: every value is escaped; nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from agent.serving_protocol import LoadedBuild

HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}"
    "th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid #8884}"
    "th:first-child,td:first-child{text-align:left}td:nth-child(3){font-family:monospace}"
    ":root{color-scheme:light dark}"
)
_COLUMNS: Final = ("model", "version", "build", "state", "requests", "errors", "queued", "p50 ms", "p95 ms", "p99 ms")


def page(builds: Sequence[LoadedBuild], draining: bool) -> str:
    """Return the page as HTML."""
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = "".join(_row(build) for build in builds)
    table = f"<table><tr>{head}</tr>{rows}</table>" if builds else "<p>No model is loaded.</p>"
    state = "shutting down" if draining else "serving"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Muster serving</title><style>{_STYLE}</style>'
        f"<h1>Muster serving</h1><p>State: {state}. Percentiles are of the last one to two minutes.</p>{table}"
        '<p><a href="v2">protocol</a> · <a href="health">health</a> · <a href="stats">figures</a> · '
        '<a href="metrics">metrics</a></p></html>'
    )


def _row(build: LoadedBuild) -> str:
    values = (
        build.model,
        build.version,
        build.build,
        build.state,
        build.requests,
        build.errors,
        build.queued,
        *("–" if value is None else f"{value:.2f}" for value in (build.p50_ms, build.p95_ms, build.p99_ms)),
    )
    return f"<tr>{''.join(f'<td>{escape(str(value))}</td>' for value in values)}</tr>"
