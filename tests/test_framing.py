"""Frames: any split of the bytes gives the same ones, and nothing makes the reader keep much."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmon.errors import LocalProtocolError, RemoteProtocolError
from jobmon.protocol.framing import HEADER, FrameReader, frame

LIMIT = 64


def frames_of(reader: FrameReader, *pieces: bytes) -> list[bytes]:
    """All that comes out when the pieces go in, one after the other."""
    found = []
    for piece in pieces:
        reader.feed(piece)
        while (payload := reader.next()) is not None:
            found.append(payload)
    return found


def test_a_frame_is_its_length_and_its_bytes() -> None:
    """The length is four bytes, big-endian, and counts the payload only."""
    assert frame(b"abc") == b"\0\0\0\x03abc"
    assert frame(b"") == b"\0\0\0\0"
    assert frame(b"x" * 258)[:HEADER] == b"\0\0\x01\x02"


@given(st.lists(st.binary(max_size=LIMIT), max_size=6), st.lists(st.integers(0, 400), max_size=8))
def test_splits_do_not_matter(payloads: list[bytes], cuts: list[int]) -> None:
    """However the bytes are cut, the same frames come out, and nothing is left over."""
    data = b"".join(map(frame, payloads))
    marks = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    reader = FrameReader(LIMIT)

    found = frames_of(reader, *(data[a:b] for a, b in pairwise(marks)))

    assert found == payloads
    assert not reader.unfinished


def test_a_byte_at_a_time() -> None:
    """`unfinished` is true exactly from the first byte of a frame to the last but one."""
    reader = FrameReader(LIMIT)
    data = frame(b"ab")
    states = []
    for index in range(len(data)):
        reader.feed(data[index : index + 1])
        states.append(reader.unfinished)
        payload = reader.next()

    assert payload == b"ab"
    assert states == [True] * len(data)
    assert not reader.unfinished


@given(st.lists(st.binary(max_size=LIMIT), min_size=1, max_size=4))
def test_wanted_takes_exactly_one_frame(payloads: list[bytes]) -> None:
    """Who reads just `wanted` bytes at a time never takes a byte of the frame after."""
    data = b"".join(map(frame, payloads))
    reader = FrameReader(LIMIT)
    for payload in payloads:
        found = None
        while found is None:
            piece, data = data[: reader.wanted], data[reader.wanted :]
            reader.feed(piece)
            found = reader.next()
        assert found == payload
        assert not reader.unfinished
    assert data == b""


def test_the_limit_itself_is_allowed() -> None:
    """A frame of just the limit passes in both directions; one byte more does not."""
    payload = b"x" * LIMIT

    assert frames_of(FrameReader(LIMIT), frame(payload, LIMIT)) == [payload]
    with pytest.raises(LocalProtocolError):
        frame(payload + b"x", LIMIT)
    with pytest.raises(RemoteProtocolError, match="65 bytes was announced, the limit is 64"):
        frames_of(FrameReader(LIMIT), frame(payload + b"x"))


def test_four_gibibytes_are_refused_at_the_header() -> None:
    """A giant length is refused before any of its bytes are waited for, and what came is let go."""
    reader = FrameReader(LIMIT)
    reader.feed(b"\xff\xff\xff\xff" + b"x" * 1000)

    with pytest.raises(RemoteProtocolError):
        reader.next()
    assert not reader.unfinished


def test_frames_before_a_bad_one_are_not_lost() -> None:
    """What was whole before the bad length comes out first."""
    reader = FrameReader(LIMIT)
    reader.feed(frame(b"good") + b"\xff\xff\xff\xff")

    assert reader.next() == b"good"
    with pytest.raises(RemoteProtocolError):
        reader.next()


def test_an_unfinished_frame_is_all_that_is_kept() -> None:
    """After a thousand frames and half of one, the reader holds that half and no more."""
    reader = FrameReader(LIMIT)
    frames_of(reader, frame(b"x" * LIMIT) * 1000 + b"\0\0\0\x08half")
    reader.feed(b"")

    assert len(reader._buffer) == HEADER + 4
