"""Every route of the real application, every role, things of another tenant: nobody sees, learns or changes anything.

A route that has no case here fails: whoever adds one says what it is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from controller.audit.sealer import seal
from controller.tenants.access import DEVICE
from controller.tenants.access import ROLES as ACTIONS
from controller.tenants.guard import Permit, Public
from tests.controller.application.fleet import ROLES, Things, everything_of, make_things

MINE, THEIRS = "other", "default"
REFUSED: Final = frozenset({403, 404})


@dataclass(frozen=True)
class Case:
    """What a route is about.

    body: with {word} for ids of the other tenant. query: the same. expected: statuses when it is asked about another
    tenant's things; a route that addresses none answers its caller's own, and tells nothing of the other tenant.
    same_as_unknown: the answer is that for something that does not exist, so that not even this is told.
    """

    body: Any = None
    query: str = ""
    expected: frozenset[int] = frozenset({200, 201, 204})
    same_as_unknown: bool = False
    headers: dict[str, str] = field(default_factory=dict)


OWN = Case()
OBJECT = Case(expected=REFUSED, same_as_unknown=True)
OPEN = Case()


def about(body: Any = None, *expected: int, query: str = "", same: bool = True) -> Case:
    return Case(body, query, frozenset(expected or REFUSED), same)


CASES: Final[dict[str, Case]] = {
    # nobody needs a token; what they open is judged elsewhere
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /login/{code}": OPEN,
    "POST /logout": OPEN,
    "POST /api/v1/sessions": OPEN,
    "GET /api/v1/enrolment/trust": OPEN,
    "POST /api/v1/enrolment": OPEN,
    "POST /api/v1/device-sessions/challenge": OPEN,
    "POST /api/v1/device-sessions": OPEN,
    "GET /api/v1/schemas/rollout-policy": OPEN,
    "GET /{path:path}": OPEN,
    # the caller's own
    "GET /api/v1/audit": OWN,
    "GET /api/v1/audit/verify": OWN,
    "GET /api/v1/audit/head": OWN,
    "GET /api/v1/audit/export": OWN,
    "GET /api/v1/tokens": OWN,
    "POST /api/v1/tokens": Case({"name": "n", "role": "viewer"}),
    "GET /api/v1/whoami": OWN,
    "POST /api/v1/login-links": OWN,
    "POST /api/v1/access-tokens": OWN,
    "POST /api/v1/join-tokens": Case({}),
    "GET /api/v1/join-tokens": OWN,
    "POST /api/v1/device-certificates": OWN,
    "GET /api/v1/devices": OWN,
    "GET /api/v1/devices/facets": OWN,
    "GET /api/v1/devices/ids": OWN,
    "POST /api/v1/artifacts": Case("content"),
    "GET /api/v1/models": OWN,
    "GET /api/v1/builds": OWN,
    "GET /api/v1/build-jobs": OWN,
    "GET /api/v1/profiles": OWN,
    "GET /api/v1/releases": OWN,
    "GET /api/v1/rollouts": OWN,
    "GET /api/v1/overview": OWN,
    "GET /api/v1/fleet/series": Case(query="name=reporting"),
    "GET /metrics": OWN,
    "POST /api/v1/build-jobs/lease": OWN,
    "GET /api/v1/trust": about(None, 200, 404, same=False),
    "POST /api/v1/trust/online-keys": about({"role": "timestamp"}, 201, 404, same=False),
    "POST /api/v1/trust/root": about({"roots": []}, 200, 404, same=False),
    "POST /api/v1/trust/roles": about({"roles": {"x": "e30="}}, 400, 404, 409, same=False),
    # one thing
    "DELETE /api/v1/tokens/{token}": OBJECT,
    "DELETE /api/v1/join-tokens/{token}": OBJECT,
    "GET /api/v1/devices/{device}": OBJECT,
    "PATCH /api/v1/devices/{device}": about({"name": "stolen"}),
    "DELETE /api/v1/devices/{device}": OBJECT,
    "POST /api/v1/devices/{device}/commands": about({"kind": "restart"}),
    "GET /api/v1/devices/{device}/commands": OBJECT,
    "GET /api/v1/devices/{device}/series": OBJECT,
    "GET /api/v1/devices/{device}/executions": about(None, 404, 200),  # an empty list, as for one that is unknown
    "GET /api/v1/commands/{command}": OBJECT,
    "GET /api/v1/artifacts/{sha256}": OBJECT,
    "HEAD /api/v1/artifacts/{sha256}": OBJECT,
    "PUT /api/v1/artifacts/{sha256}": about("something else", 400, same=False),  # the hash does not fit
    "GET /api/v1/models/{name}": OBJECT,
    "GET /api/v1/models/{name}/metadata": about(None, 404, 503),  # the gateway's to answer, which is not here
    "POST /api/v1/models/{name}/infer": about({}, 404, 503),
    "GET /api/v1/builds/{build}": OBJECT,
    "GET /api/v1/build-jobs/{job}": OBJECT,
    "POST /api/v1/build-jobs/{job}/progress": about({"attempt": 1, "progress": "x"}, 404, 409),
    "POST /api/v1/build-jobs/{job}/result": about({"attempt": 1, "error": "x"}),
    "GET /api/v1/rollouts/{rollout}": OBJECT,
    "POST /api/v1/rollouts/{rollout}/pause": OBJECT,
    "POST /api/v1/rollouts/{rollout}/resume": OBJECT,
    "POST /api/v1/rollouts/{rollout}/abort": OBJECT,
    "POST /api/v1/rollouts/{rollout}/rollback": OBJECT,
    "GET /api/v1/rollouts/{rollout}/executions": OBJECT,
    "GET /api/v1/executions/{execution}": OBJECT,
    "GET /tuf/{tenant}/metadata/{name}": OBJECT,
    # things named in the request
    "POST /api/v1/devices/commands": about({"kind": "restart", "devices": ["{device}"]}, 201, same=False),
    "POST /api/v1/devices/tags": about({"action": "tag", "tag": "t", "devices": ["{device}"]}, 200, same=False),
    "POST /api/v1/models/{name}/versions": about(
        {"source_sha256": "{sha256}", "data_sha256": "{sha256}", "targets": [{"profile": "generic-x86_64"}]}, 404, 409
    ),
    "POST /api/v1/releases": about({"name": "mine", "models": {"{name}": 1}}, 404, same=False),
    "POST /api/v1/rollouts": about({"release": "{release}"}, 404, same=False),
}
UNKNOWN: Final = {
    "device": "d-" + "z" * 26,
    "sha256": "0" * 64,
    "name": "nothing",
    "job": "0" * 32,
    "release": "rel-none",
    "rollout": "r-none",
    "command": "c-none",
    "token": "z" * 16,
    "join_token": "y" * 16,
    "build": "b-" + "0" * 32,
    "execution": "e-none",
    "tenant": "nobody",
}


def routes(app: Any) -> Iterator[tuple[str, str, Permit | None]]:
    """Yield method, path and permission of each HTTP route of ours."""
    described = {app.openapi_url, app.docs_url, app.swagger_ui_oauth2_redirect_url}
    for context in iter_route_contexts(app.routes):
        dependant = getattr(context, "dependant", None)
        if context.path in described or dependant is None or not getattr(context, "methods", None):
            continue
        found = [one.call for one in dependant.dependencies if isinstance(one.call, Permit | Public)]
        assert len(found) == 1, f"{context.path} has {len(found)} declarations"
        for method in sorted(context.methods):
            yield method, context.path, found[0] if isinstance(found[0], Permit) else None


def filled(words: Any, ids: dict[str, str]) -> Any:
    """Put ``ids`` in the place of {word}, in keys and values."""
    if isinstance(words, dict):
        return {filled(key, ids): filled(value, ids) for key, value in words.items()}
    if isinstance(words, list):
        return [filled(value, ids) for value in words]
    if isinstance(words, str):
        return re.sub(r"\{(\w+)\}", lambda match: ids.get(match[1], "none"), words)
    return words


def ask(client: TestClient, method: str, path: str, case: Case, ids: dict[str, str]) -> Any:
    other = {"/tuf/": {"name": "timestamp.json"}, "/api/v1/join-tokens/": {"token": ids["join_token"]}}
    names = ids | next((words for beginning, words in other.items() if path.startswith(beginning)), {})
    address = filled(path.replace(":path", ""), names) + (f"?{filled(case.query, ids)}" if case.query else "")
    body = filled(case.body, ids)
    if isinstance(body, str):
        return client.request(method, address, content=body.encode(), headers=case.headers)
    return client.request(method, address, json=body, headers=case.headers)


@pytest.fixture
def theirs(application: Any) -> Things:
    return make_things(application, THEIRS)


@pytest.fixture
def mine(application: Any, theirs: Things) -> Things:
    return make_things(application, MINE)


def test_every_route_has_a_case(application: Any) -> None:
    assert {f"{method} {path}" for method, path, _ in routes(application.control.api)} <= CASES.keys()


def test_a_route_without_a_case_is_found(application: Any) -> None:
    application.control.api.get("/api/v1/new", dependencies=[])(lambda: "x")
    with pytest.raises(AssertionError, match="/api/v1/new"):
        list(routes(application.control.api))


def test_nobody_reaches_over_the_border(application: Any, theirs: Things, mine: Things) -> None:
    wrong: list[str] = []
    told = set(theirs.ids.values()) - {THEIRS}
    seal(application.database)  # not an effect of what is asked below
    with application.database.read() as c:
        before = everything_of(c, THEIRS)
    for method, path, permit in routes(application.control.api):
        case = CASES[f"{method} {path}"]
        if permit is None:
            continue
        for role in ROLES:
            client = mine.clients[role]
            may = permit.action in ACTIONS[role]
            where = f"{role}: {method} {path}"
            answer = ask(client, method, path, case, theirs.ids)
            if not may:
                code = "denied" if method == "HEAD" else answer.json()["code"]
                if (answer.status_code, code) != (403, "denied"):
                    wrong.append(f"{where}: {answer.status_code} without permission")
            elif answer.status_code not in case.expected:
                wrong.append(f"{where}: {answer.status_code} {answer.text[:200]}")
            if leaked := told_unasked(answer, case, theirs) & told:
                wrong.append(f"{where}: tells {leaked}")
            if may and case.same_as_unknown:
                unknown = ask(client, method, path, case, UNKNOWN)
                if outline(answer, theirs.ids) != outline(unknown, UNKNOWN):
                    wrong.append(f"{where}: {outline(answer, theirs.ids)} is not {outline(unknown, UNKNOWN)}")
            with application.database.read() as c:
                after = everything_of(c, THEIRS)
            changed = [name for name in before if before[name] != after[name]]
            if changed:
                wrong.append(f"{where}: changed {changed}")
                before = after
    assert not wrong, "\n".join(wrong)


def told_unasked(answer: Any, case: Case, theirs: Things) -> set[str]:
    """The ids in an answer, apart from those that the question itself had."""
    question = f"{answer.request.url} {filled(str(case.body), theirs.ids)}"
    return {one for one in theirs.ids.values() if one in answer.text and one not in question}


def outline(answer: Any, ids: dict[str, str]) -> tuple[int, str]:
    """Status and text, with the words of the question taken out."""
    text = answer.text
    for word, value in sorted(ids.items(), key=lambda item: -len(item[1])):
        text = text.replace(value, f"<{word}>")
    return answer.status_code, text


def test_nobody_gets_in_without_a_token(application: Any, theirs: Things) -> None:
    stranger = application.stranger()
    for method, path, permit in routes(application.control.api):
        answer = ask(stranger, method, path, CASES[f"{method} {path}"], theirs.ids)
        assert permit is None or answer.status_code == 401, f"{method} {path}: {answer.status_code}"
        assert answer.status_code != 500, f"{method} {path}: {answer.text}"


def test_the_live_stream_has_the_same_borders(application: Any, theirs: Things, mine: Things) -> None:
    with mine.clients["viewer"].websocket_connect("/api/v1/live") as socket:
        socket.receive_json()
        for number, path in enumerate((f"/api/v1/devices/{theirs.ids['device']}", "/api/v1/devices"), 1):
            socket.send_json({"watch": number, "path": path})
            told = socket.receive_json()
            assert told["id"] == number
            assert theirs.ids["device"] not in str(told.get("value"))
            assert (told.get("status"), "value" in told) == ((404, False) if number == 1 else (None, True))
    for client in (mine.clients[DEVICE], application.stranger()):
        with pytest.raises(WebSocketDenialResponse), client.websocket_connect("/api/v1/live"):
            pass
