from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import MalformedError
from wire.topics import (
    CHANNELS,
    DESIRED,
    STATE,
    Channel,
    Direction,
    device_subscription,
    parse,
    shard_of,
    subscription,
    topic_for,
)

DEVICE = "d-" + "abcdefghijklmnopqrstuvwxyz"
device_ids = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=26, max_size=26).map("d-".__add__)


@given(device=device_ids, channel=st.sampled_from(CHANNELS))
def test_a_topic_is_read_as_it_was_made(device: str, channel: Channel) -> None:
    address = parse(topic_for(channel, device))
    assert (address.device, address.channel, address.shard) == (device, channel, shard_of(device))


@given(st.text(max_size=80))
def test_any_other_text_is_refused_or_is_a_topic_of_the_table(text: str) -> None:
    try:
        address = parse(text)
    except MalformedError:
        return
    assert address.channel in CHANNELS


@pytest.mark.parametrize(
    "topic",
    [
        f"muster/2/00/{DEVICE}/up/state",
        f"muster/1/00/{DEVICE}/up/desired",
        f"muster/1/00/{DEVICE}/up/state/more",
        "muster/1/00/d-short/up/state",
        "muster/1/00/+/up/state",
        f"muster/1/00/{DEVICE}\n/up/state",
    ],
)
def test_topics_outside_the_table_are_refused(topic: str) -> None:
    with pytest.raises(MalformedError):
        parse(topic)


@pytest.mark.parametrize("device", ["", "d-", "admin", "d-" + "A" * 26, "d-" + "a" * 26 + "/x", "+", "#"])
def test_no_topic_is_made_for_what_is_no_device_id(device: str) -> None:
    with pytest.raises(MalformedError):
        topic_for(STATE, device)


def test_each_channel_stands_once_and_desired_is_what_devices_hear() -> None:
    assert len({(c.direction, c.name) for c in CHANNELS}) == len(CHANNELS)
    assert device_subscription(DEVICE) == f"muster/1/{shard_of(DEVICE)}/{DEVICE}/down/#"
    assert topic_for(DESIRED, DEVICE).startswith(device_subscription(DEVICE)[:-1])
    assert subscription(Direction.UP) == "muster/1/+/+/up/#"
