"""Signals: their numbers, the one signalfd, and what the children get back.

The daemon blocks what it reads through the signalfd; a mask is inherited across exec, so every
child must get the old one back. Knows nothing of jobs.
"""

from __future__ import annotations

import errno
import os

from jobmon.core.spec import SIGNALS, canonical_signal
from jobmon.lean.cpython import signal
from jobmon.linux.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FORBIDDEN = (errno.ENOSYS, errno.EPERM)
_NAMES = {int(getattr(signal, name)): name for name in SIGNALS if hasattr(signal, name)}
_READ_SIZE = 64 * syscalls.SIGINFO_SIZE
_SI_KERNEL = 0x80  # si_code of a signal that the kernel sent, sigaction(2)


def number_of(name: str) -> int:
    """The kernel's number of a canonical name ("SIGTERM", "SIGRTMIN+3").

    Raises:
        ValueError: there is no such signal here.
    """
    canonical = canonical_signal(name)
    if canonical is None:
        raise ValueError(f"unknown signal {name}")
    base, _, offset = canonical.partition("+")
    return int(getattr(signal, base)) + int(offset or "0")


def name_of(number: int) -> str:
    """The canonical name of a signal's number; "SIG<n>" for one that has none."""
    if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
        offset = number - signal.SIGRTMIN
        return f"SIGRTMIN+{offset}" if offset else "SIGRTMIN"
    return _NAMES.get(number, f"SIG{number}")


def parse(text: str | int) -> int:
    """A signal as people write it: HUP, SIGHUP, 1, "1", RTMIN+2, RTMAX-1, in any case.

    Raises:
        ValueError: it is none.
    """
    word = str(text).strip().upper()
    if word.isascii() and word.isdigit():
        # 32 and 33 are glibc's own, signal(7): they have no name that could be passed on
        if len(word) < 4 and int(word) in signal.valid_signals():
            return int(word)
        raise ValueError(f"{text} is not a signal number")
    return number_of(word if word.startswith("SIG") else f"SIG{word}")


class SignalSource:
    """The one signalfd: blocks `numbers` for this process and reads them from a descriptor."""

    def __init__(self, numbers: Iterable[int]) -> None:
        wanted = frozenset(numbers)
        self.inherited_mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, wanted))
        self._fd = syscalls.signalfd(wanted)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._fd

    def read(self) -> list[tuple[int, int, bool]]:
        """All that is pending: (number, pid of the sender, whether the kernel sent it), in its order."""
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return []
        # struct signalfd_siginfo: ssi_signo is the first u32, ssi_code the third, ssi_pid the fourth
        words = memoryview(data).cast("I")
        step = syscalls.SIGINFO_SIZE // words.itemsize
        return [(words[at], words[at + 3], words[at + 2] == _SI_KERNEL) for at in range(0, len(words), step)]

    def close(self) -> None:
        """Close the descriptor and give the process its old mask back."""
        os.close(self._fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.inherited_mask)


class Terminal:
    """The controlling terminal that we were started with, if any, and how a SIGHUP tells its end.

    At a hangup the kernel takes it from the session first, and then sends SIGHUP to the session's
    leader, and to the group in the foreground when the leader ends. A shell passes it on to its jobs.
    """

    __slots__ = ("_shells", "_was_there", "ignored")

    def __init__(self) -> None:
        self._was_there = _has_terminal()
        self._shells = {os.getsid(0), os.getppid()} - {0}  # 0: of another PID namespace
        self.ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup(1), say

    def is_over(self, sender: int, *, from_kernel: bool) -> bool:
        """Return whether a SIGHUP tells that the terminal was closed. That of another process never does."""
        if not self._was_there:
            return False
        return from_kernel or (sender in self._shells and not _has_terminal())


def _has_terminal() -> bool:
    """Return whether our session has a controlling terminal: tty(4)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def ignored() -> tuple[int, ...]:
    """The signals that this process ignores, and so would every child."""
    return tuple(number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN)


def send_checked(pid: int, number: int, still: Callable[[int], bool]) -> bool:
    """Signal a process by pidfd, if `still(pid)` holds once the pidfd is open; whether it was sent.

    So a number that has become somebody else's meanwhile is never signalled.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _FORBIDDEN:
            return _send_unsafely(pid, number, still)
        return False
    try:
        if not still(pid):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except OSError as error:
        return error.errno in _FORBIDDEN and _send_unsafely(pid, number, still)
    finally:
        os.close(pidfd)
    return True


def _send_unsafely(pid: int, number: int, still: Callable[[int], bool]) -> bool:
    """Where the kernel, or a container's filter, has no pidfds: as near to the check as can be."""
    try:
        if not still(pid):
            return False
        os.kill(pid, number)
    except OSError:
        return False
    return True
