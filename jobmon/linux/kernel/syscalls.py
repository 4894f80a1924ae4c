"""The only ctypes of JobMon: system calls that Python does not offer (or not before 3.13).

Each raises OSError with the call's name. Constants are those of the kernel's headers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from jobmon.lean.cpython import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)
# keeps the interpreter's lock during the call: the child of a clone must find it as it was
_libc_locked = ctypes.PyDLL(None, use_errno=True)

SFD_NONBLOCK = os.O_NONBLOCK
SFD_CLOEXEC = os.O_CLOEXEC
TFD_NONBLOCK = os.O_NONBLOCK
TFD_CLOEXEC = os.O_CLOEXEC
TFD_TIMER_ABSTIME = 1
CLOCK_MONOTONIC = 1
SIGINFO_SIZE = 128  # struct signalfd_siginfo, signalfd(2)
PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2  # pidfd_send_signal(2), Linux 6.9

_PR_SET_PDEATHSIG = 1  # prctl(2)
_SYS_CLONE3 = 435  # the same on all architectures, clone(2); Linux 5.3
_CLONE_INTO_CGROUP = 0x200000000  # Linux 5.7
_FILTERED = (errno.ENOSYS, errno.EPERM)  # what a seccomp filter answers, commonly

_END_OF_TIME = 9e9  # seconds, 285 years
_SIGSET_BYTES = 128  # sigset_t of glibc and musl


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def trim() -> None:
    """Give the kernel back what was freed, where the C library knows how. malloc_trim(3)."""
    try:
        _libc.malloc_trim(ctypes.c_size_t(0))
    except AttributeError:
        pass  # musl, which keeps less


def signalfd(signals: Iterable[int]) -> int:
    """A nonblocking, close-on-exec descriptor that reads the given (blocked) signals. signalfd(2)."""
    bits = sum(1 << (number - 1) for number in set(signals))
    mask = ctypes.create_string_buffer(bits.to_bytes(_SIGSET_BYTES, sys.byteorder), _SIGSET_BYTES)
    return _check(_libc.signalfd(-1, mask, SFD_NONBLOCK | SFD_CLOEXEC), "signalfd")


def timerfd_create() -> int:
    """A nonblocking, close-on-exec timer on CLOCK_MONOTONIC. timerfd_create(2)."""
    if sys.version_info >= (3, 13):
        return os.timerfd_create(CLOCK_MONOTONIC, flags=TFD_NONBLOCK | TFD_CLOEXEC)
    return _check(_libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC), "timerfd_create")


def timerfd_settime(fd: int, at: float | None) -> None:
    """Let the timer expire once at `at` (CLOCK_MONOTONIC seconds), or never. timerfd_settime(2)."""
    # 0 would disarm; a time that is past expires at once; one beyond 64 bits of nanoseconds is no time
    nanoseconds = 0 if at is None else max(int(min(at, _END_OF_TIME) * 1e9), 1)
    if sys.version_info >= (3, 13):
        os.timerfd_settime_ns(fd, flags=os.TFD_TIMER_ABSTIME, initial=nanoseconds)
        return
    value = _Timespec(nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
    spec = _Itimerspec(_Timespec(0, 0), value)
    _check(_libc.timerfd_settime(fd, TFD_TIMER_ABSTIME, ctypes.byref(spec), None), "timerfd_settime")


class _CloneArgs(ctypes.Structure):
    """struct clone_args, clone(2)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


def die_with(parent: int) -> None:
    """Let SIGKILL end this process when `parent`, which has forked it, ends; now if it has. prctl(2)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)), "prctl")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def fork_into(cgroup: int) -> tuple[int, bool]:
    """fork(2), but the child is born in the cgroup whose directory is open as `cgroup`. Returns what fork
    does, and whether the child is there already: else it must call `enter` before anything else.

    For a process with one thread, and a child that soon executes or exits: what os.fork does
    around the call for the sake of other threads is not done.

    A filter that is to forbid namespaces must forbid all of clone3, whose flags it cannot see
    (RestrictNamespaces=, many containers).
    """
    args = _CloneArgs(flags=_CLONE_INTO_CGROUP, exit_signal=signal.SIGCHLD, cgroup=cgroup)
    pid = int(_libc_locked.syscall(_SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args)))
    if pid < 0 and ctypes.get_errno() in _FILTERED:
        return os.fork(), False
    return _check(pid, "clone3"), True


def enter(cgroup: int) -> None:
    """Move this process into the cgroup whose directory is open as `cgroup`. Raises OSError."""
    fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)
