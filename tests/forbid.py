"""Run a program where the kernel refuses some system calls, as old container runtimes make it do.

    forbid.py pidfd_open=ENOSYS COMMAND...          it is not there
    forbid.py pidfd_open=EPERM COMMAND...           it is forbidden
    forbid.py pidfd_send_signal+3=EINVAL COMMAND... it is refused if its argument 3 (of 0 to 5) is not 0
    forbid.py epoll_ctl+1:1=ENOSPC COMMAND...       it is refused if its argument 1 is 1

By seccomp(2), for the program and all that it starts. As a module: `forbidding("pidfd_open=EPERM")` is the
wrapper= of kit.Daemon, and "" forbids nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

# The same on all architectures, being newer than 2019; but for the first.
NUMBERS = {
    "epoll_ctl": {"x86_64": 233, "aarch64": 21}.get(os.uname().machine, -1),
    "pidfd_send_signal": 424,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, linux/audit.h

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data


def forbidding(rule: str) -> list[str]:
    """The words before a command that is to run under `rule`; none for an empty one."""
    return [sys.executable, os.path.abspath(__file__), rule] if rule else []


def program(rule: str) -> bytes:
    """The filter for a rule, as an array of struct sock_filter."""
    call, _, reason = rule.partition("=")
    name, _, argument = call.partition("+")
    refuse = [(_RETURN, 0, 0, _RET_ERRNO | getattr(errno, reason))]
    if argument:  # the low half of a 64-bit word, on little-endian machines
        place, _, value = argument.partition(":")
        load = (_LOAD_WORD, 0, 0, _ARGUMENTS_AT + 8 * int(place))
        judge = (_JUMP_EQUAL, 0, 1, int(value)) if value else (_JUMP_EQUAL, 1, 0, 0)
        refuse = [load, judge, *refuse]
    lines = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 0, 2 + len(refuse), ARCHITECTURES[os.uname().machine]),
        (_LOAD_WORD, 0, 0, _NUMBER_AT),
        (_JUMP_EQUAL, 0, len(refuse), NUMBERS[name]),
        *refuse,
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def install(rule: str) -> None:
    """Put this process under `rule`, for good."""
    lines = program(rule)
    array = ctypes.create_string_buffer(lines, len(lines))
    header = struct.pack("@HP", len(lines) // 8, ctypes.addressof(array))  # struct sock_fprog
    libc = ctypes.CDLL(None, use_errno=True)
    long = ctypes.c_ulong
    for option, *arguments in (
        (_PR_SET_NO_NEW_PRIVS, long(1), long(0)),
        (_PR_SET_SECCOMP, long(_SECCOMP_MODE_FILTER), ctypes.c_char_p(header)),
    ):
        if libc.prctl(option, *arguments, long(0), long(0)) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option})")


if __name__ == "__main__":
    install(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
