"""Work that may take its time, done by a child of the daemon while the loop goes on.

The child is a fork: it knows all that the daemon knows, and holds nothing of it but the standard streams.
The result goes back through a pipe, piece by piece, so that no turn of the loop has much to unpack. A piece
is plain data; records travel by their names.
"""

from __future__ import annotations

import gc
import marshal
import os

from jobmon.lean.cpython import signal
from jobmon.lean.enums import Enum
from jobmon.lean.records import Record
from jobmon.linux.kernel import procfs, syscalls
from jobmon.linux.kernel.execution import keep_only
from jobmon.linux.kernel.loop import COMMAND
from jobmon.linux.kernel.signals import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, BinaryIO

    from jobmon.linux.kernel.loop import Loop
    from jobmon.linux.processes.children import Children

    Kinds = Mapping[str, Callable[..., Any]]

MAX_BYTES = 64 << 20  # of a result
_CHUNK = 1 << 16  # bytes that one turn takes: some hundred specs
_LENGTH = 4  # bytes that say how long a piece is


class Result(Record):
    """How it went: the pieces that the work gave, or `trouble`, and `place`, where in the code a bug is."""

    pieces: tuple[Any, ...] = ()
    trouble: str = ""
    place: str = ""


class Errand:
    """Does `work` in a child, and tells `done` its result, once. `kinds` are the records and enums that
    it may give, by their names. Raises OSError when there can be no child."""

    def __init__(
        self,
        loop: Loop,
        children: Children,
        work: Callable[[], Iterable[object]],
        done: Callable[[Result], None],
        *,
        kinds: Kinds,
        seconds: float,
    ) -> None:
        self._loop = loop
        self._done = done
        self._kinds = {**kinds, Result.__name__: Result}
        self._seconds = seconds
        self._pieces: list[Any] = []
        self._rest = bytearray()  # of a piece that has not come as a whole
        self._size = 0
        self._end: os.waitid_result | None = None
        self._over = False
        self._fd, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(self._fd, False)
            loop.add_reader(self._fd, self._receive, COMMAND)
            daemon = os.getpid()
            self.pid = os.fork()
            if self.pid == 0:
                _be_the_child(work, writer, daemon)
        except OSError:
            self._close()
            raise
        finally:
            os.close(writer)
        children.add_guest(self.pid, self._ended)
        self._deadline = loop.call_later(seconds, self._late)

    def stop(self) -> None:
        """Kill the child; its end is told."""
        if self._end is None:  # not reaped: the number is its own
            os.kill(self.pid, signal.SIGKILL)

    def _receive(self, _events: int) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._close()
            self._settle()
        elif self._size + len(data) > MAX_BYTES:
            self._give_up(f"it comes to more than {MAX_BYTES >> 20} MiB")
        else:
            self._size += len(data)
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._rest += data
        at, end = 0, _LENGTH
        while len(self._rest) >= end:
            end += int.from_bytes(self._rest[at:end], "big")
            if len(self._rest) < end:
                break
            piece = marshal.loads(self._rest[at + _LENGTH : end])  # noqa: S302 - from our own fork
            self._pieces.append(unpack(piece, self._kinds))
            at, end = end, end + _LENGTH
        del self._rest[:at]

    def _ended(self, info: os.waitid_result) -> None:
        self._end = info
        self._settle()

    def _late(self) -> None:
        self._give_up(f"it takes longer than {self._seconds:g} seconds: does a file system not answer?")

    def _give_up(self, trouble: str) -> None:
        """It may be that not even SIGKILL ends the child, so nobody waits for that."""
        self.stop()
        self._close()
        self._tell(Result((), trouble))

    def _settle(self) -> None:
        """It is done when the child is reaped and all that it wrote is read."""
        if self._end is None or self._fd >= 0:
            return
        if self._pieces and isinstance(self._pieces[-1], Result):
            told = self._pieces.pop()
            self._tell(told.replace(pieces=tuple(self._pieces)))
        else:
            self._tell(Result((), f"the process that does it {_how(self._end)}"))

    def _tell(self, result: Result) -> None:
        self._deadline.cancel()
        self._pieces.clear()
        self._rest.clear()
        if not self._over:
            self._over = True
            self._done(result)

    def _close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _how(end: os.waitid_result) -> str:
    if end.si_code == os.CLD_EXITED:
        return f"exited with {end.si_status}"
    return f"was killed by {name_of(end.si_status)}"


def _be_the_child(work: Callable[[], Iterable[object]], writer: int, daemon: int) -> None:
    """The child's side: never returns."""
    try:
        syscalls.die_with(daemon)  # a file system that does not answer would keep it for ever
        # Before anything else: a lock or a connection that the daemon closes must not stay open here.
        keep_only(0, 1, 2, writer, listing=procfs.own_fds())
        gc.disable()
        with open(writer, "wb") as pipe:
            try:
                for piece in work():
                    _put(pipe, piece)
                _put(pipe, Result())
            except Exception as error:  # noqa: BLE001 - told in the daemon's log
                _put(pipe, Result((), repr(error), place_of(error)))
    finally:
        os._exit(0)


def _put(pipe: BinaryIO, piece: object) -> None:
    data = marshal.dumps(pack(piece))
    pipe.write(len(data).to_bytes(_LENGTH, "big") + data)


def place_of(error: BaseException) -> str:
    """Where in the code it was raised."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else ""


# ---- pieces -------------------------------------------------------------------------------


def pack(value: Any) -> Any:
    """Plain data for a value that may hold records and enums: each becomes a list that begins with its
    name, and nothing else does."""
    if isinstance(value, Record):
        return [type(value).__name__, *(pack(getattr(value, field)) for field in value._fields)]
    if isinstance(value, Enum):
        return [type(value).__name__, value.value]
    if isinstance(value, (tuple, list)):
        return tuple(map(pack, value))
    if isinstance(value, dict):
        return {key: pack(each) for key, each in value.items()}
    return value


def unpack(value: Any, kinds: Kinds) -> Any:
    """The value again."""
    if isinstance(value, list):
        name, *fields = value
        return kinds[name](*(unpack(v, kinds) if isinstance(v, _NESTED) else v for v in fields))
    if isinstance(value, tuple):
        return tuple(unpack(v, kinds) if isinstance(v, _NESTED) else v for v in value)
    if isinstance(value, dict):
        return {key: unpack(v, kinds) if isinstance(v, _NESTED) else v for key, v in value.items()}
    return value


_NESTED = (list, tuple, dict)
