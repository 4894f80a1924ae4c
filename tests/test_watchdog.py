"""A job that is to say that it lives, and what its silence means. The watchdog is real time: 0.3 s."""

from __future__ import annotations

import sys

import kit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., kit.Daemon]

# Says READY, then WATCHDOG=1 for each line that comes in the FIFO `alive`; writes what it was promised.
TALK = """
import os, socket
one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
one.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
open("promised", "w").write(os.environ["WATCHDOG_USEC"] + "\\n")
one.send(b"READY=1")
while True:
    for line in open("alive"):
        one.send(line.strip().encode())
"""


def test_silence_is_a_failure_and_policy_decides(daemon: Make) -> None:
    """It is told its period; when it is silent for so long it is stopped, and started again by its policy."""
    job = {
        "command": [sys.executable, "-S", "-c", TALK],
        "ready": {"notify": True},
        "watchdog": 0.3,
        "restart": "on-failure",
    }
    one = daemon({"jobs": {"a": job}})
    promised = one.fifo("promised")
    one.fifo("alive")
    watch = one.watch()
    one.pipe().start("a", wait=False)
    assert promised.line() == "300000"
    watch.until("a", "running")
    assert watch.until("a", "stopping").cause == "watchdog"
    assert watch.until("a", "died").state == "backoff"
    assert watch.until("a", "launched").run == 2


def test_a_trigger_is_a_failure_at_once(daemon: Make) -> None:
    """WATCHDOG=trigger does not wait for the time to run out."""
    job = {"command": [sys.executable, "-S", "-c", TALK], "ready": {"notify": True}, "watchdog": 1000}
    one = daemon({"jobs": {"a": job}})
    promised = one.fifo("promised")
    os_path = one.path("alive")
    one.fifo("alive")
    watch = one.watch()
    one.pipe().start("a", wait=False)
    assert promised.line() == "1000000000"
    watch.until("a", "running")
    with open(os_path, "w", encoding="utf-8") as fifo:
        fifo.write("WATCHDOG=trigger\n")
    assert watch.until("a", "stopping").cause == "watchdog"
    assert watch.until("a", "died").state == "failed"
