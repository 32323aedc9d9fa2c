"""The console's files: one page, its script, its style, for every address that is not the API's.

Invariant: nothing but what was built into `static/` is ever served, under the strictest policy that it works with: no
inline script or style, nothing from elsewhere, in no frame. The page itself tells nothing; all that it shows it asks
the public API for, with the reader's own session. Files whose name carries their hash may be kept for ever, the page
never.
"""

from __future__ import annotations

import gzip
import mimetypes
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response

from controller.errors import NotFoundError
from controller.tenants.guard import public

STATIC: Final = Path(str(resources.files(__package__ or "controller.console"))) / "static"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_MISSING: Final = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>Muster</title><h1>The console is not built</h1>"
    "<p>This installation was made without it (MUSTER_SKIP_CONSOLE). The API is at /api/docs; in a source tree "
    "<code>python packaging/console_hook.py</code> builds it.</html>"
)
_WHY_OPEN: Final = "the console's own files, the same for everybody; what they show they ask the API for"

router = APIRouter(tags=["console"])


class File(NamedTuple):
    """One built file: as it is, packed by gzip, and its media type."""

    content: bytes
    packed: bytes
    kind: str


@cache
def files(static: Path = STATIC) -> dict[str, File]:
    """Return every file of the console by its path below the root; read and packed once."""
    found = {}
    for path in sorted(static.rglob("*")):
        name = PurePosixPath(path.relative_to(static)).as_posix()
        if path.is_file() and not name.startswith("."):
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            content = path.read_bytes()
            packed = gzip.compress(content, 9, mtime=0)
            found[name] = File(content, packed, "text/javascript" if name.endswith(".js") else kind)
    return found


@router.get("/{path:path}", dependencies=[Depends(public(_WHY_OPEN))], include_in_schema=False)
def page(path: str, request: Request) -> Response:
    """Return a file of the console, or the page itself for the addresses that it knows how to show."""
    held = files()
    if path.startswith(("api/", "metrics", "healthz", "readyz")) or (path.startswith("assets/") and path not in held):
        raise NotFoundError("there is nothing at this address", "http_404")
    if not held:
        return HTMLResponse(_MISSING, 503, HEADERS)
    file = held.get(path) or held["index.html"]
    keep = _FOR_EVER if path.startswith("assets/") else "no-store" if file.kind == "text/html" else "max-age=3600"
    headers = HEADERS | {"Cache-Control": keep, "Vary": "Accept-Encoding"}
    # nothing secret is in these files, so packing them tells nobody anything
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.packed, media_type=file.kind, headers=headers | {"Content-Encoding": "gzip"})
    return Response(file.content, media_type=file.kind, headers=headers)
