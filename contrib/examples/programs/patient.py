"""A job that has something to lose: it holds a lock file and gives it back when it is told to stop."""

from __future__ import annotations

import os
import signal
import time

LOCK = os.path.join(os.environ.get("DEMO", "."), "patient.lock")


def main() -> None:
    """Hold the lock until the stop signal of jobs/patient.json comes."""
    told_to_stop = {signal.SIGINT}
    # Blocked and waited for: the signal cannot come between two steps of the work.
    signal.pthread_sigmask(signal.SIG_BLOCK, told_to_stop)
    with open(LOCK, "w", encoding="utf-8") as lock:
        lock.write(f"{os.getpid()}\n")
    print("holding the lock", flush=True)
    signal.sigwait(told_to_stop)
    print("told to stop: putting my things away", flush=True)
    time.sleep(1)
    os.remove(LOCK)
    print("all clean", flush=True)


if __name__ == "__main__":
    main()
