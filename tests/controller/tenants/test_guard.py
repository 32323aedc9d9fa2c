"""The guard over a real application: who gets in, who does not, and that nothing is undeclared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import WebSocketDenialResponse

from controller.database.connection import Database
from controller.errors import UnauthenticatedError
from controller.tenants import tokens
from controller.tenants.access import DEVICE, Principal
from controller.tenants.guard import SESSION_COOKIE, install_errors, permit, public, require_declared

router = APIRouter(prefix="/api")


@router.get("/read")
def read(principal: Annotated[Principal, Depends(permit("devices.read"))]) -> str:
    return principal.name


@router.post("/write")
def write(principal: Annotated[Principal, Depends(permit("rollouts.write"))]) -> str:
    return principal.name


@router.get("/artifact")
def artifact(principal: Annotated[Principal, Depends(permit("artifacts.read"))]) -> str:
    return principal.role


@router.get("/open", dependencies=[Depends(public("a test"))])
def open_route(count: int = 0) -> int:
    return count


@router.get("/broken", dependencies=[Depends(public("a test"))])
def broken() -> None:
    raise ZeroDivisionError("secret detail")


@router.websocket("/live")
async def live(websocket: WebSocket, principal: Annotated[Principal, Depends(permit("devices.read"))]) -> None:
    await websocket.accept()
    await websocket.send_text(principal.name)
    await websocket.close()


class DeviceSessions:
    def verify(self, text: str) -> Principal:
        if text != "mud.good":
            raise UnauthenticatedError("no", "bad_session")
        return Principal("default", DEVICE, "d-x", "d-x")


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    app = FastAPI()
    app.state.database = Database(tmp_path / "state.db")
    app.state.database.migrate()
    app.state.admin = tokens.first_start(app.state.database, time.time())
    app.state.device_sessions = DeviceSessions()
    app.include_router(router)
    install_errors(app)
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def bearer(app: FastAPI, role: str) -> dict[str, str]:
    with app.state.database.begin() as c:
        token = tokens.make(c, tenant="default", name=f"a-{role}", role=role, now=time.time())
    return {"Authorization": f"Bearer {token.text}"}


def session_cookie(app: FastAPI, role: str = "admin") -> dict[str, str]:
    with app.state.database.begin() as c:
        token = tokens.make(c, tenant="default", name=f"a-{role}", role=role, now=time.time())
        text = tokens.open_session(c, tokens.make_login_code(c, token.id, time.time()), time.time())
    return {"Cookie": f"{SESSION_COOKIE}={text}"}


def test_all_declared_routes_start(app: FastAPI) -> None:
    require_declared(app)


async def _bare() -> None: ...


@pytest.mark.parametrize("place", ["app", "router", "websocket", "mount", "starlette", "starlette_websocket"])
def test_an_undeclared_route_fails_the_start(app: FastAPI, place: str) -> None:
    inner = APIRouter(prefix="/inner")
    if place == "app":
        app.get("/inner/bare")(_bare)
    elif place == "router":
        inner.get("/bare")(_bare)
    elif place == "websocket":
        inner.websocket("/bare")(_bare)
    elif place == "mount":
        app.router.routes.append(Mount("/inner/bare", app=FastAPI()))
    elif place == "starlette":
        app.router.routes.append(Route("/inner/bare", _bare))
    else:
        app.router.routes.append(WebSocketRoute("/inner/bare", _bare))
    outer = APIRouter()
    outer.include_router(inner)
    app.include_router(outer)
    with pytest.raises(RuntimeError, match="/inner/bare"):
        require_declared(app)
    require_declared(app, {"/inner/bare": "a test opens it"})


def test_a_dependency_given_at_inclusion_declares(app: FastAPI) -> None:
    inner = APIRouter()
    inner.get("/inner/bare")(_bare)
    app.include_router(inner, dependencies=[Depends(permit("devices.read"))])
    require_declared(app)


def test_an_unknown_action_or_an_empty_reason_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="not in the table"):
        permit("devices.explode")
    with pytest.raises(ValueError, match="reason"):
        public("")


@pytest.mark.parametrize(
    ("role", "read_status", "write_status"),
    [("admin", 200, 200), ("operator", 200, 200), ("viewer", 200, 403), ("builder", 403, 403)],
)
def test_roles(app: FastAPI, client: TestClient, role: str, read_status: int, write_status: int) -> None:
    headers = bearer(app, role)
    assert client.get("/api/read", headers=headers).status_code == read_status
    answer = client.post("/api/write", headers=headers)
    assert answer.status_code == write_status
    if write_status == 403:
        assert answer.json()["code"] == "denied"
        assert role in answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "no_credential"),
        ({"Authorization": "Basic abc"}, "bad_scheme"),
        ({"Authorization": "Bearer nonsense"}, "bad_token"),
        ({"Authorization": "Bearer mud.bad"}, "bad_session"),
        ({"Cookie": f"{SESSION_COOKIE}=nonsense"}, "bad_session"),
    ],
)
def test_without_a_good_credential(client: TestClient, headers: dict[str, str], code: str) -> None:
    answer = client.get("/api/read", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_wrong_secret_with_a_known_id(app: FastAPI, client: TestClient) -> None:
    text = app.state.admin
    forged = text[:-2] + ("AA" if text[-2:] != "AA" else "BB")
    assert client.get("/api/read", headers={"Authorization": f"Bearer {forged}"}).status_code == 401
    assert client.get("/api/read", headers={"Authorization": f"Bearer {text}"}).status_code == 200


def test_a_device_may_fetch_artifacts_only(client: TestClient) -> None:
    headers = {"Authorization": "Bearer mud.good"}
    assert client.get("/api/artifact", headers=headers).json() == "device"
    assert client.get("/api/read", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ({}, 401),
        ({"Origin": "http://evil.example"}, 401),
        ({"Origin": "null"}, 401),
        ({"Sec-Fetch-Site": "cross-site"}, 401),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 401),
        ({"Origin": "http://testserver"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_a_cookie_changes_things_from_our_own_page_only(
    app: FastAPI, client: TestClient, extra: dict[str, str], status: int
) -> None:
    cookie = session_cookie(app)
    assert client.get("/api/read", headers=cookie).status_code == 200
    assert client.post("/api/write", headers=cookie | extra).status_code == status


def test_websockets_are_guarded_too(app: FastAPI, client: TestClient) -> None:
    with client.websocket_connect("/api/live", headers=bearer(app, "viewer")) as socket:
        assert socket.receive_text() == "a-viewer"
    cookie = session_cookie(app)
    with client.websocket_connect("/api/live", headers=cookie | {"Origin": "http://testserver"}) as socket:
        assert socket.receive_text() == "a-admin"
    for headers in ({}, cookie, cookie | {"Origin": "http://evil.example"}):
        with (
            pytest.raises(WebSocketDenialResponse) as refused,
            client.websocket_connect("/api/live", headers=headers),
        ):
            pass
        assert refused.value.status_code == 401


def test_errors_are_json_with_plain_words(client: TestClient) -> None:
    answer = client.get("/api/open", params={"count": "many"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "bad_request"
    assert "query.count" in answer.json()["error"]
    assert client.get("/nowhere").json()["code"] == "http_404"
    assert client.post("/api/open").json()["code"] == "http_405"
    broken = client.get("/api/broken")
    assert broken.status_code == 500
    assert "secret" not in broken.text
