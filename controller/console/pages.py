"""The status page: devices, builds, rollouts, as they stand now.

Invariant: everything that came from outside is escaped, the page runs no script and loads nothing from elsewhere (its
Content-Security-Policy says so), and it shows one tenant: the caller's. Changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response

from controller.builds import store as builds_store
from controller.database.connection import Database
from controller.database.http import database
from controller.devices import store as devices_store
from controller.devices.presence import presence
from controller.errors import UnauthenticatedError
from controller.rollouts import store as rollouts_store
from controller.tenants.access import Denied, Principal, allowed
from controller.tenants.guard import identify, public

SHOWN: Final = 200
POLICY: Final = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --dim: #888 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1.5rem }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem } p { margin: .3rem 0 }
div { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top }
th { color: var(--dim); font-weight: 600 } code { font-size: .9em }
.good { color: var(--good) } .bad { color: var(--bad) } .dim { color: var(--dim) }
"""
_GOOD: Final = frozenset({"online", "published", "SUCCEEDED", "SKIPPED", "RUNNING", "ready"})
_BAD: Final = frozenset({"lost", "FAILED", "INCONSISTENT", "REJECTED", "TIMED_OUT", "revoked"})

router = APIRouter(tags=["console"])
Db = Annotated[Database, Depends(database)]


@router.get(
    "/console.css",
    dependencies=[Depends(public("a style sheet that tells nothing"))],
    include_in_schema=False,
)
def style() -> Response:
    """Return the style sheet of the pages."""
    return Response(STYLE, media_type="text/css", headers={"Cache-Control": "max-age=3600"})


@router.get(
    "/",
    dependencies=[Depends(public("without a session it says how to get one, and nothing else"))],
    include_in_schema=False,
)
def status_page(request: Request, db: Db) -> HTMLResponse:
    """Return the status page, or how to log in."""
    try:
        principal = identify(request)
    except UnauthenticatedError as error:
        return _page("Log in", f"<p>{escape(str(error))}</p><p>Make a link with <code>muster login</code>.</p>", 401)
    verdict = allowed(principal, "fleet.read", principal.tenant)
    if isinstance(verdict, Denied):
        return _page("Not allowed", f"<p>{escape(verdict.rule)}</p>", 403)
    return _page("Muster", _body(db, principal, time.time()), 200)


def _body(db: Database, principal: Principal, now: float) -> str:
    with db.read() as connection:
        devices = devices_store.page(connection, principal.tenant, after="", limit=SHOWN, now=now)
        builds = builds_store.builds_of(connection, principal.tenant, limit=SHOWN)
        rollouts = rollouts_store.rollouts_of(connection, principal.tenant, SHOWN)
        counts = rollouts_store.execution_counts(connection, [row.id for row in rollouts])
    online = sum(presence(row.last_seen, row.online, now).state.value == "online" for row in devices)
    return "\n".join(
        (
            f"<p>{online} of {len(devices)} devices online · tenant {escape(principal.tenant)} · "
            f"<span class=dim>{escape(principal.name)} ({escape(principal.role)}), renewed every 5 s</span></p>",
            _table("Devices", ("name", "device", "state", "profile", "runs"), (_device(row, now) for row in devices)),
            _table("Builds", ("model", "precision", "verdict", "size", "p50", "because"), map(_build, builds)),
            _table(
                "Rollouts",
                ("rollout", "state", "stage", "executions", "because"),
                (_rollout(row, counts.get(row.id, {})) for row in rollouts),
            ),
        )
    )


def _device(row: Any, now: float) -> Sequence[str]:
    items = (row.reported or {}).get("items") or []
    runs = "<br>".join(
        f"{escape(item['component'])} <code>{escape(item['build'] or '-')}</code> {_word(item['state'])}"
        for item in items
    )
    state = "revoked" if row.revoked else presence(row.last_seen, row.online, now).state.value
    return escape(row.name), f"<code>{escape(row.id)}</code>", _word(state), escape(row.profile or "-"), runs or "-"


def _build(row: Any) -> Sequence[str]:
    size, p50 = row.figures.get("size_bytes"), row.figures.get("p50_ms")
    return (
        f"{escape(row.model)} {row.version}",
        escape(row.precision),
        _word(row.verdict),
        "-" if size is None else f"{size / 1024:.0f} KiB",
        "-" if p50 is None else f"{p50 * 1000:.0f} µs",
        _reasons(row.reasons),
    )


def _rollout(row: Any, counts: Mapping[str, int]) -> Sequence[str]:
    told = ", ".join(f"{escape(state)} {number}" for state, number in sorted(counts.items()))
    return f"<code>{escape(row.id)}</code>", _word(row.state), str(row.stage + 1), told or "-", _reasons(row.reasons)


def _reasons(reasons: Any) -> str:
    return "<br>".join(escape(str(reason)) for reason in reasons or []) or "-"


def _word(word: str) -> str:
    kind = "good" if word in _GOOD else "bad" if word in _BAD else "dim"
    return f"<span class={kind}>{escape(word)}</span>"


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    if not lines:
        return f"<h2>{title}</h2><p class=dim>none yet</p>"
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    return f"<h2>{title}</h2><div><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def _page(title: str, body: str, status: int) -> HTMLResponse:
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<meta http-equiv=refresh content=5><link rel=stylesheet href=/console.css><title>{escape(title)}</title>"
        f"<body><h1>{escape(title)}</h1>{body}</body></html>"
    )
    headers = {
        "Content-Security-Policy": POLICY,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse(text, status, headers)
