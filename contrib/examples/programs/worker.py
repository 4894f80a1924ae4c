"""A worker with a bug: it works through items and crashes on one of them, again and again."""

from __future__ import annotations

import os
import time

PACE = float(os.environ.get("WORKER_PACE", "0.3"))
CRASHES_ON = int(os.environ.get("WORKER_CRASHES_ON", "4"))


def work(item: int) -> None:
    """Pretend to work, or show the bug."""
    time.sleep(PACE)
    if item == CRASHES_ON:
        raise RuntimeError(f"item {item} is more than I can take")
    print(f"item {item}: done", flush=True)


def main() -> None:
    """Work for ever, or rather until the bug."""
    item = 0
    while True:
        item += 1
        work(item)


if __name__ == "__main__":
    main()
