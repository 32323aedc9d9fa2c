"""The status page of a device, for whoever stands before it: one small page without scripts.

Invariant: every value is escaped, nothing is loaded from elsewhere, no script runs. What the agent leaves beside
serving (`status.json`) is read anew for each page, with a bound; where it is not there or cannot be read, the page does
without. Changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.serving_protocol import LoadedBuild

MAX_STATUS: Final = 128 * 1024
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1.5rem 1rem}"
    "h1{font-size:1.3rem;margin:0 0 .5rem}h2{font-size:1rem;margin:1.5rem 0 .3rem}"
    "div{overflow-x:auto}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8884;vertical-align:top}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:0}dd{margin:0;overflow-wrap:anywhere}"
    ".good{color:#1a7f37}.bad{color:#cf222e}code{font-size:.9em}:root{color-scheme:light dark}"
    "@media(prefers-color-scheme:dark){.good{color:#63cf86}.bad{color:#ff8b93}}"
)
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
    ),
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_COLUMNS: Final = ("model", "version", "build", "state", "requests", "errors", "queued", "p50 ms", "p95 ms", "p99 ms")


def read_status(file: Path | None) -> Mapping[str, Any]:
    """Return what the agent says of itself in ``file``; empty when it says nothing that can be read."""
    if file is None:
        return {}
    try:
        with file.open("rb") as stream:
            found = msgspec.json.decode(stream.read(MAX_STATUS))
            found["at"] = file.stat().st_mtime
    except (OSError, TypeError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def page(builds: Sequence[LoadedBuild], draining: bool, status: Mapping[str, Any] | None = None) -> str:
    """Return the page as HTML. ``status``: what ``read_status`` returned."""
    head = "".join(f"<th scope=col>{name}</th>" for name in _COLUMNS)
    rows = "".join(_row(build) for build in builds)
    table = f"<div><table><tr>{head}</tr>{rows}</table></div>" if builds else "<p class=bad>No model is loaded.</p>"
    state = "<b class=bad>shutting down</b>" if draining else "<b class=good>serving</b>"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Muster device</title><style>{_STYLE}</style><h1>Muster device</h1><p>Now {state}.</p>"
        f"{_agent(status or {})}<h2>Models</h2>{table}"
        "<p>Percentiles are of the last one to two minutes.</p>"
        '<p><a href="v2">protocol</a> · <a href="health">health</a> · <a href="stats">figures</a> · '
        '<a href="metrics">metrics</a></p></html>'
    )


def _agent(status: Mapping[str, Any]) -> str:
    if not status:
        return ""
    up = status.get("link") == "up"
    link = "<b class=good>connected</b>" if up else f"<b class=bad>not connected</b>: {_text(status.get('link'))}"
    rows = [
        ("device", f"<code>{_text(status.get('device'))}</code>"),
        ("controller", f"{_text(status.get('controller'))}: {link}"),
    ]
    if "at" in status:
        rows.append(("told", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(status["at"]))))
    reported = status.get("reported")
    items = reported.get("items") if isinstance(reported, dict) else None
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict):
            build = _text(item.get("build") or "none")
            rows.append((_text(item.get("component")), f"<code>{build}</code> {_text(item.get('state'))}"))
    told = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return f"<h2>Agent</h2><dl>{told}</dl>"


def _text(value: object) -> str:
    return escape(str(value)[:300])


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
