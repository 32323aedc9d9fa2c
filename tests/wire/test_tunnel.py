from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import MalformedError
from wire.tunnel import CHUNK, MAX_FRAME, MAX_HEAD, Frame, Kind, decode_frame, encode_frame

frames = st.builds(
    Frame,
    kind=st.sampled_from(Kind),
    stream=st.integers(0, 2**32 - 1),
    head=st.binary(max_size=200),
    body=st.binary(max_size=200),
    end=st.booleans(),
)


@given(frames)
def test_a_frame_is_read_as_it_was_written(frame: Frame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


def test_the_largest_frame_fits_and_a_larger_one_is_refused() -> None:
    largest = Frame(Kind.BODY, 1, b"h" * MAX_HEAD, b"b" * CHUNK)
    assert decode_frame(encode_frame(largest)) == largest
    for wrong in (Frame(Kind.BODY, 1, b"h" * (MAX_HEAD + 1)), Frame(Kind.BODY, 1, b"", b"b" * (CHUNK + 1))):
        with pytest.raises(MalformedError):
            encode_frame(wrong)
    with pytest.raises(MalformedError):
        decode_frame(b"\x03\x00" + b"\x00" * MAX_FRAME)


@given(st.binary(max_size=64))
def test_random_bytes_are_a_frame_or_refused(data: bytes) -> None:
    try:
        assert encode_frame(decode_frame(data)) == data
    except MalformedError:
        assert len(data) < 8 or data[0] not in list(Kind) or data[1] > 1 or int.from_bytes(data[6:8]) > len(data) - 8


def test_a_head_longer_than_the_frame_is_refused() -> None:
    with pytest.raises(MalformedError, match="lengths"):
        decode_frame(b"\x01\x01\x00\x00\x00\x01\x00\xffshort")
