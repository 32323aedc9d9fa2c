from __future__ import annotations

import msgspec
import pytest

from wire.codec import decode, encode
from wire.errors import MalformedError, VersionError
from wire.messages import Ack, Heartbeat, State

STATE = State(online=True, boot="b", session=1, agent_version="0.1.0")


def test_unknown_fields_survive_a_round_trip() -> None:
    raw = msgspec.json.encode({"v": 1, "at": 1.0, "session": 2, "mood": {"deep": [1]}})
    message = decode(Heartbeat, raw)
    assert message.extra == {"mood": {"deep": [1]}}
    assert msgspec.json.decode(encode(message)) == msgspec.json.decode(raw)


def test_an_unknown_field_named_extra_is_kept_too_and_cannot_pose_as_a_known_one() -> None:
    message = decode(Heartbeat, b'{"v":1,"at":1.0,"session":2,"extra":{"at":99}}')
    assert message.at == 1.0
    assert msgspec.json.decode(encode(message))["extra"] == {"at": 99}


@pytest.mark.parametrize("version", [None, 0, 2, "1", 1.5])
def test_another_version_is_refused_before_the_fields_are_read(version: object) -> None:
    with pytest.raises(VersionError):
        decode(State, msgspec.json.encode({"v": version, "online": "nonsense"}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\xff\xfe",
        b'{"v":1}',
        b'{"v":1,"online":1,"boot":"b","session":1,"agent_version":"1"}',
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(State, data)


def test_deep_nesting_is_refused_and_does_not_end_the_process() -> None:
    with pytest.raises(MalformedError):
        decode(Ack, b'{"v":1,"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_a_message_over_its_limit_is_refused() -> None:
    data = encode(STATE)
    assert decode(State, data, limit=len(data)) == STATE
    with pytest.raises(MalformedError, match="at most"):
        decode(State, data, limit=len(data) - 1)


def test_bounds_of_fields_hold() -> None:
    with pytest.raises(MalformedError, match="session"):
        decode(State, encode(State(online=True, boot="b", session=-1, agent_version="1")))
