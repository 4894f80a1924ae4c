"""What the harness asks the kernel: processes, their memory, their context switches, their ends.

Everything is done by pid, and the harness is a child subreaper: what a dead daemon leaves behind becomes its
own child, and can be ended and reaped without guessing.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import time
from pathlib import Path

SIGKILL = signal.SIGKILL
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
PATIENCE_S = 60.0


class BenchError(Exception):
    """The benchmark cannot go on, and why."""


def prepare_harness() -> None:
    """Become a subreaper and raise the limit of open files, which all daemons then inherit."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise BenchError(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_files(number: int) -> None:
    """Raise BenchError unless `number` files may be open at once."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < number:
        raise BenchError(f"only {limit} open files are allowed, {number} are needed: ulimit -n {number}")


def parents() -> dict[int, int]:
    """Every process and its parent."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_bytes()
            except OSError:
                continue
            found[int(entry)] = int(stat.rpartition(b")")[2].split()[1])
    return found


def family(roots: list[int]) -> list[int]:
    """`roots` and all their descendants, parents first."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found = dict.fromkeys(roots)
    pending = list(found)
    for pid in pending:
        new = [child for child in children.get(pid, ()) if child not in found]
        found.update(dict.fromkeys(new))
        pending.extend(new)
    return pending


def runs(pid: int, program: Path) -> bool:
    """Whether the process executes that program."""
    try:
        return os.readlink(f"/proc/{pid}/exe") == str(program)
    except OSError:
        return False


def memory_kib(pid: int, kind: str) -> int:
    """`kind` (Pss, Rss) of a process in KiB, from proc_pid_smaps_rollup(5)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1])
    raise BenchError(f"/proc/{pid}/smaps_rollup names no {kind}")


def context_switches(pid: int) -> int:
    """Voluntary and other context switches of all threads of a process, proc_pid_status(5)."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if "_ctxt_switches:" in line
    )


def is_dead(pid: int) -> bool:
    """Whether a child of ours has ended; it is not reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_end(pid: int, patience_s: float = PATIENCE_S) -> int | None:
    """Wait for a child's end and reap it: its exit code, or None when it is no child (any more).

    Raises BenchError when it is still alive after `patience_s` seconds.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(patience_s * 1000):
            raise BenchError(f"process {pid} is still there after {patience_s:g} s")
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None
    finally:
        os.close(pidfd)


def end(pid: int, with_signal: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process that may be gone already."""
    try:
        os.kill(pid, with_signal)
    except ProcessLookupError:
        return


def end_families(roots: list[int], spared: set[int]) -> None:
    """Kill processes with all their descendants and every other child of ours but the spared, and reap them.

    A family can grow while it is looked at: what a killed parent leaves behind becomes our own child.
    """
    deadline = time.monotonic() + PATIENCE_S
    while roots:
        pids = family(roots)
        for pid in pids:
            end(pid)
        for pid in pids:
            wait_end(pid)
        roots = [pid for pid, parent in parents().items() if parent == os.getpid() and pid not in spared]
        if time.monotonic() > deadline:
            raise BenchError(f"cannot end the processes {roots}")
