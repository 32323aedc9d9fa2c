"""The list of the fleet: filters, orders, pages, and deeds over all that a filter matches."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from controller.audit.store import page as audit_page
from controller.database.tables import devices
from controller.devices import list_routes
from controller.tenants import tokens
from controller.tenants.store import add_tenant
from wire.enrolment import parse_token

NAMES = ("delta", "alpha", "charlie", "bravo", "echo")


@pytest.fixture
def fleet(api: Any) -> dict[str, str]:
    """Five devices by name."""
    return {name: api.enrolled(name=name, tags=["hall"] if name < "c" else []) for name in NAMES}


def listed(api: Any, **asked: Any) -> list[str]:
    answer = api.admin.get("/api/v1/devices", params=asked)
    assert answer.status_code == 200, answer.text
    return [row["name"] for row in answer.json()["devices"]]


def paged(api: Any, **asked: Any) -> list[str]:
    """Walk through all pages of two."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        answer = api.admin.get("/api/v1/devices", params={"limit": 2, "after": after, **asked}).json()
        found += [row["name"] for row in answer["devices"]]
        after = answer["next"]
    return found


def tell(api: Any, values: dict[str, float | None]) -> None:
    """Set the vitals of devices: p95 by id."""

    def read(ids: Any, now: float) -> dict[str, Any]:
        return {device: {"p95_ms": values[device]} for device in ids if device in values}

    api.app.state.read_vitals = read


def test_every_order_is_total_and_its_pages_join_without_a_gap(api: Any, fleet: dict[str, str]) -> None:
    for order in list_routes.ORDERS:
        whole = listed(api, sort=order)
        assert sorted(whole) == sorted(NAMES)
        assert paged(api, sort=order) == whole
        assert paged(api, sort=f"-{order}") == listed(api, sort=f"-{order}")
    assert listed(api, sort="name") == sorted(NAMES)
    assert listed(api, sort="-name") == sorted(NAMES, reverse=True)


def test_an_order_by_figures_puts_those_without_last_both_ways(api: Any, fleet: dict[str, str]) -> None:
    tell(api, {fleet["alpha"]: 3.0, fleet["bravo"]: 9.0, fleet["echo"]: 3.0, fleet["delta"]: None})
    same = sorted(("alpha", "echo"), key=lambda name: fleet[name])
    without = sorted(("charlie", "delta"), key=lambda name: fleet[name])
    assert listed(api, sort="p95_ms") == [*same, "bravo", *without]
    assert listed(api, sort="-p95_ms") == ["bravo", *same, *without]
    assert paged(api, sort="-p95_ms") == ["bravo", *same, *without]


def test_a_device_that_joins_between_two_pages_moves_nobody(api: Any, fleet: dict[str, str]) -> None:
    first = api.admin.get("/api/v1/devices", params={"sort": "name", "limit": 2}).json()
    api.enrolled(name="aardvark")
    second = api.admin.get("/api/v1/devices", params={"sort": "name", "limit": 2, "after": first["next"]}).json()
    assert [row["name"] for row in second["devices"]] == ["charlie", "delta"]


def test_filters_match_what_they_say(api: Any, fleet: dict[str, str]) -> None:
    with api.db.begin() as c:
        reported = {"items": [{"component": "model:m", "build": "b-1"}], "serving": "ready"}
        c.execute(update(devices).where(devices.c.id == fleet["echo"]).values(reported=reported, profile="pi"))
    assert listed(api, build="b-1") == ["echo"]
    assert listed(api, build="b-2") == []
    assert listed(api, profile="pi") == ["echo"]
    assert sorted(listed(api, tag="hall")) == ["alpha", "bravo"]
    assert listed(api, q="HARL") == ["charlie"]
    assert listed(api, q=fleet["delta"]) == ["delta"]
    assert listed(api, q="_") == []
    assert sorted(listed(api, ids=[fleet["delta"], fleet["echo"]])) == ["delta", "echo"]
    assert api.admin.get("/api/v1/devices", params={"tag": "hall", "limit": 1}).json()["total"] == 2


def test_who_joined_with_a_token_is_found_by_it(api: Any, fleet: dict[str, str]) -> None:
    token = api.join_token(uses=2)
    name = parse_token(token).id
    assert listed(api, join_token=name) == []
    api.enrol(token, name="foxtrot")
    api.enrol(api.join_token(), name="golf")
    assert listed(api, join_token=name) == ["foxtrot"]


def test_facets_count_profiles_and_tags(api: Any, fleet: dict[str, str]) -> None:
    with api.db.begin() as c:
        c.execute(update(devices).values(profile="pi"))
        c.execute(update(devices).where(devices.c.id == fleet["echo"]).values(profile="nano", tags=["hall", "line"]))
    assert api.admin.get("/api/v1/devices/facets").json() == {
        "profiles": {"pi": 4, "nano": 1},
        "tags": {"hall": 3, "line": 1},
    }


def test_mistakes_are_explained(api: Any, fleet: dict[str, str]) -> None:
    for asked, word in (
        ({"sort": "colour"}, "p95_ms"),
        ({"after": "nonsense"}, "cursor"),
        ({"sort": "p95_ms", "after": "WyJ4IiwiZC14Il0"}, "cursor"),
        ({"limit": 0}, "limit"),
        ({"colour": "red"}, "colour"),
        ({"ids": "x"}, "ids"),
    ):
        answer = api.admin.get("/api/v1/devices", params=asked)
        assert answer.status_code == 400, asked
        assert word in answer.json()["error"], answer.text


def test_a_tag_goes_to_exactly_what_the_filter_matches(api: Any, fleet: dict[str, str]) -> None:
    def change(**body: Any) -> Any:
        return api.admin.post("/api/v1/devices/tags", json=body)

    assert change(action="tag", tag="new", filter={"tag": "hall"}).json() == {"devices": 2, "changed": 2}
    assert sorted(listed(api, tag="new")) == ["alpha", "bravo"]
    assert change(action="tag", tag="new", devices=[fleet["alpha"], fleet["echo"]]).json() == {
        "devices": 2,
        "changed": 1,
    }
    assert change(action="untag", tag="new", filter={}).json() == {"devices": 5, "changed": 3}
    assert listed(api, tag="new") == []
    assert sorted(listed(api, tag="hall")) == ["alpha", "bravo"]
    assert change(action="tag", tag="bad tag", filter={}).status_code == 400
    assert change(action="tag", tag="new").status_code == 400
    with api.db.read() as c:
        rows = audit_page(c, "default", None, 3)
    assert [row.action for row in rows] == ["devices.untag", "devices.tag", "devices.tag"]


def test_the_ids_that_match_are_told_and_too_many_are_refused(
    api: Any, fleet: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = api.admin.get("/api/v1/devices/ids", params={"tag": "hall"}).json()["ids"]
    assert found == sorted((fleet["alpha"], fleet["bravo"]))
    monkeypatch.setattr(list_routes, "MAX_IDS", 4)
    answer = api.admin.get("/api/v1/devices/ids")
    assert answer.status_code == 400
    assert "narrow the filter" in answer.json()["error"]


def test_a_name_and_tags_change_and_the_audit_keeps_what_was(api: Any, fleet: dict[str, str]) -> None:
    address = f"/api/v1/devices/{fleet['alpha']}"
    assert api.admin.patch(address, json={"name": "omega"}).json()["name"] == "omega"
    assert api.admin.patch(address, json={"tags": ["x", "x", "y"]}).json()["tags"] == ["x", "y"]
    assert api.admin.get(address).json()["name"] == "omega"
    with api.db.read() as c:
        newest = audit_page(c, "default", None, 2)
    assert newest[1].body["before"] == {"name": "alpha", "tags": ["hall"]}
    for wrong in ({"name": ""}, {"name": "a\nb"}, {"tags": ["no spaces"]}, {"colour": "red"}):
        assert api.admin.patch(address, json=wrong).status_code == 400
    assert api.admin.patch(f"/api/v1/devices/d-{'z' * 26}", json={"name": "x"}).status_code == 404


def test_another_tenant_finds_and_changes_nothing(api: Any, fleet: dict[str, str]) -> None:
    with api.db.begin() as c:
        add_tenant(c, "other", 1.0)
        token = tokens.make(c, tenant="other", name="n", role="admin", now=1.0)
    other = TestClient(api.app, headers={"Authorization": f"Bearer {token.text}"})
    assert other.get("/api/v1/devices", params={"ids": [fleet["alpha"]]}).json()["total"] == 0
    assert other.get("/api/v1/devices/facets").json() == {"profiles": {}, "tags": {}}
    assert other.get("/api/v1/devices/ids").json() == {"ids": []}
    body = {"action": "tag", "tag": "theirs", "devices": [fleet["alpha"]]}
    assert other.post("/api/v1/devices/tags", json=body).json() == {"devices": 0, "changed": 0}
    assert other.patch(f"/api/v1/devices/{fleet['alpha']}", json={"name": "theirs"}).status_code == 404
    assert listed(api, q="theirs") == []


def test_a_viewer_reads_and_changes_nothing(api: Any, fleet: dict[str, str]) -> None:
    viewer = api.client("viewer")
    assert viewer.get("/api/v1/devices").status_code == 200
    assert viewer.patch(f"/api/v1/devices/{fleet['alpha']}", json={"name": "x"}).status_code == 403
    assert viewer.post("/api/v1/devices/tags", json={"action": "tag", "tag": "x", "filter": {}}).status_code == 403


def test_a_device_has_a_bounded_number_of_tags_however_they_come(api: Any, fleet: dict[str, str]) -> None:
    for number in range(list_routes.MAX_TAGS):
        given = api.admin.post(
            "/api/v1/devices/tags", json={"action": "tag", "tag": f"t{number}", "filter": {"q": "echo"}}
        )
        assert given.json() == {"devices": 1, "changed": 1}
    body = {"action": "tag", "tag": "one-more", "filter": {}}
    refused = api.admin.post("/api/v1/devices/tags", json=body)
    assert (refused.status_code, refused.json()["code"]) == (400, "too_many_tags")
    assert "echo" in refused.json()["error"]
    assert listed(api, tag="one-more") == [], "all or none"
    again = api.admin.post("/api/v1/devices/tags", json=body | {"tag": "t0"})
    assert again.json() == {"devices": 5, "changed": 4}, "those that have it already are no obstacle"
