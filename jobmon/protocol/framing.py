"""Bytes <-> frames: 4 bytes of length, big-endian, then that many bytes.

Incremental and bounded: what is kept is at most one unfinished frame. Does no I/O and knows
nothing of what the frames hold.
"""

from __future__ import annotations

from jobmon.errors import LocalProtocolError, RemoteProtocolError

HEADER = 4
# What a daemon takes from anybody; a request that long is not one.
MAX_REQUEST = 1 << 20
# What a client takes from the daemon it has chosen to ask: a status of 10,000 jobs fits.
MAX_REPLY = 1 << 26


def frame(payload: bytes, limit: int = MAX_REPLY) -> bytes:
    """`payload` with its length before it.

    Raises:
        LocalProtocolError: it is longer than `limit` bytes.
    """
    if len(payload) > limit:
        raise LocalProtocolError(f"a message of {len(payload)} bytes is too long, the limit is {limit}")
    return len(payload).to_bytes(HEADER, "big") + payload


class FrameReader:
    """Collects bytes as they come and hands out whole frames.

    `feed` some bytes, then call `next` until it returns None.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._start = 0

    @property
    def unfinished(self) -> bool:
        """Whether a frame has begun and its end has not come."""
        return len(self._buffer) > self._start

    @property
    def wanted(self) -> int:
        """How many bytes are missing to the end of the header, or of the frame."""
        have = len(self._buffer) - self._start
        if have < HEADER:
            return HEADER - have
        return HEADER + self._length() - have

    @property
    def held(self) -> int:
        """How many bytes wait in here."""
        return len(self._buffer) - self._start

    def feed(self, data: bytes) -> None:
        """Take bytes as they came from the peer."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole frame's payload; None when more bytes are needed.

        Raises:
            RemoteProtocolError: the frame announces more bytes than the limit.
        """
        begin = self._start + HEADER
        if len(self._buffer) < begin:
            return None
        length = self._length()
        if length > self._limit:
            self.clear()
            raise RemoteProtocolError(
                f"a frame of {length} bytes was announced, the limit is {self._limit}; "
                "is the other end speaking JobMon's protocol?"
            )
        end = begin + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[begin:end])
        self._start = end
        if end == len(self._buffer):
            self.clear()
        return payload

    def _length(self) -> int:
        return int.from_bytes(self._buffer[self._start : self._start + HEADER], "big")

    def clear(self) -> None:
        """Forget everything, and give the memory back."""
        self._buffer = bytearray()
        self._start = 0
