from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from controller.commands.client import Login
from controller.database.connection import Database
from controller.errors import ConflictError, InvalidError, UnavailableError
from controller.installation import Installation, only_one, prepare, settle_ports, trust_bundle
from controller.settings import Settings
from controller.tenants import tokens
from controller.trust import store as trust_store
from wire.envelope import encode_public_key

NOW = 1_800_000_000.0
ANY_PORTS = Settings(api_port=0, gateway_port=0, console_port=0, mqtt_port=0)


def installed(path: Path, now: float = NOW) -> Installation:
    return prepare(msgspec.structs.replace(ANY_PORTS, data=str(path)), now)


def newest(made: Installation, role: str) -> bytes:
    database = Database(made.database_path)
    with database.read() as connection:
        found = trust_store.newest(connection, tokens.DEFAULT_TENANT, role)
    database.close()
    assert found is not None
    return found


def test_a_second_start_finds_what_the_first_made(tmp_path: Path) -> None:
    first, second = installed(tmp_path / "data"), installed(tmp_path / "data", NOW + 60)
    assert first.admin_token is not None
    assert second.admin_token == first.admin_token, "a first start that failed half way must not lose it"
    second.admin_token_shown()
    assert installed(tmp_path / "data", NOW + 120).admin_token is None
    assert (first.ports, first.session_key) == (second.ports, second.session_key)
    assert trust_bundle(first, newest(first, "root")) == trust_bundle(second, newest(second, "root"))
    assert first.builder_token_file.read_text() == second.builder_token_file.read_text()


def test_secrets_are_not_shown_by_accident(tmp_path: Path) -> None:
    made = installed(tmp_path / "data")
    assert made.admin_token is not None
    login = Login(api_url="https://x", gateway_url="", console_url="", ca_file="", token=made.admin_token)
    for shown in (repr(made), str(login), f"{login!r}"):
        assert made.admin_token.split(".")[2] not in shown
        assert repr(made.session_key) not in shown


def test_secrets_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    data = installed(tmp_path / "data").data
    secret = [file for file in data.rglob("*") if file.suffix in (".key", ".db") or file.name in ("token", "key.pem")]
    assert len(secret) >= 5
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in secret)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_the_first_tokens_are_an_admin_and_a_builder(tmp_path: Path) -> None:
    made = installed(tmp_path / "data")
    database = Database(made.database_path)
    with database.read() as connection:
        assert made.admin_token is not None
        assert tokens.verify(connection, made.admin_token, NOW + 1).role == "admin"
        assert tokens.verify(connection, made.builder_token_file.read_text().strip(), NOW + 1).role == "builder"
    database.close()


def test_another_builders_key_is_vouched_for_once_an_operator_adds_it(tmp_path: Path) -> None:
    before = installed(tmp_path / "data")
    text = encode_public_key(ed25519.Ed25519PrivateKey.generate().public_key())
    (before.data / "keys" / "builders" / "rack.pub").write_text(text + "\n")
    after = installed(tmp_path / "data")
    targets = msgspec.json.decode(newest(after, "targets"))
    for role in targets["signed"]["delegations"]["roles"]:
        assert len(role["keyids"]) == (3 if role["name"] == "software" else 2), role["name"]
    assert len(after.builder_keys) == len(before.builder_keys) + 1
    (before.data / "keys" / "builders" / "rack.pub").write_text("nonsense")
    with pytest.raises(InvalidError, match=r"rack\.pub"):
        installed(tmp_path / "data")


def test_chosen_ports_are_kept_and_set_ports_win(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    chosen = settle_ports(ANY_PORTS, file)
    assert len({chosen.api_port, chosen.gateway_port, chosen.console_port, chosen.mqtt_port}) == 4
    assert settle_ports(ANY_PORTS, file) == chosen
    assert settle_ports(msgspec.structs.replace(ANY_PORTS, api_port=4321), file).api_port == 4321
    file.write_text("{")
    with pytest.raises(InvalidError, match=r"ports\.json"):
        settle_ports(ANY_PORTS, file)


def test_one_controller_at_a_time(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(ConflictError, match="already runs"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="--data"):
        installed(tmp_path / "file" / "data")


def test_addresses_of_ipv6_are_bracketed(tmp_path: Path) -> None:
    made = prepare(msgspec.structs.replace(ANY_PORTS, data=str(tmp_path / "d"), host="::1"), NOW)
    assert made.api_url == f"https://[::1]:{made.ports.api_port}"
    assert made.tunnel_url.startswith("wss://[::1]:")


@pytest.mark.parametrize(
    "url", ["http://x", "ftp://x", "x", "https://", "https://x:99999", "https://x:y", "https://x?a=b"]
)
def test_an_address_that_devices_could_not_use_is_refused(tmp_path: Path, url: str) -> None:
    made = prepare(msgspec.structs.replace(ANY_PORTS, data=str(tmp_path), api_url=url), NOW)
    with pytest.raises(InvalidError, match="api_url"):
        assert made.api_url
    broker = prepare(msgspec.structs.replace(ANY_PORTS, data=str(tmp_path), broker_url="mqtts://x:99999"), NOW)
    with pytest.raises(InvalidError, match="broker_url"):
        assert broker.mqtt_port


def test_the_address_for_devices_has_no_slash_at_its_end(tmp_path: Path) -> None:
    made = prepare(msgspec.structs.replace(ANY_PORTS, data=str(tmp_path), api_url="https://fleet.example:8443/"), NOW)
    assert made.api_url == "https://fleet.example:8443"
