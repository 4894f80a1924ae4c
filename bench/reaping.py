"""What it costs to reap one death among N living children: by its pidfd, and by waitid(P_ALL).

    python3 bench/reaping.py [N...]

The kernel goes through the list of children for P_ALL (do_wait in kernel/exit.c), so that grows with their
number; a pidfd leads to its process at once. JobMon reaps its jobs by pidfd, and uses P_ALL for orphans,
which it cannot know before.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import statistics
import sys
import time

ROUNDS = 200
NUMBERS = (0, 10, 100, 1000, 4000)


def child() -> int:
    """A child that waits for a signal."""
    pid = os.fork()
    if pid == 0:
        # Nobody else has to end it if we are killed.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        while True:
            signal.pause()
    return pid


def dead() -> tuple[int, int]:
    """A zombie, younger than all others: its pid and a pidfd of it."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    select.select([pidfd], [], [])
    return pid, pidfd


def microseconds(kind: int) -> float:
    """The median cost of one waitid call that reaps."""
    spent = []
    for _ in range(ROUNDS):
        pid, pidfd = dead()
        which = pidfd if kind == os.P_PIDFD else 0
        begin = time.perf_counter()
        found = os.waitid(kind, which, os.WEXITED | os.WNOHANG)
        spent.append(time.perf_counter() - begin)
        assert found is not None
        assert found.si_pid == pid
        os.close(pidfd)
    return statistics.median(spent) * 1e6


def main(numbers: list[int]) -> None:
    """Print a line for each number of living children."""
    print("living children   by pidfd   by P_ALL   (microseconds for one death)")
    alive: list[int] = []
    for number in numbers:
        alive += [child() for _ in range(number - len(alive))]
        print(f"{number:15}   {microseconds(os.P_PIDFD):8.1f}   {microseconds(os.P_ALL):8.1f}")
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sorted(map(int, sys.argv[1:])) or list(NUMBERS))
