"""Several clients at once, who know nothing of each other, on jobs that end as they like."""

from __future__ import annotations

import contextlib
import random
import threading

import kit
import pytest

import jobmon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Make = Callable[..., kit.Daemon]

CLIENTS = 5
COMMANDS = 120  # of each client
# Jobs that live, end, fail, leave others behind, do not heed: each with a policy of its own.
JOBS: dict[str, dict[str, Any]] = {
    "lives": {"command": kit.FOR_EVER, "restart": True},
    "ends": {"command": "exit 0", "restart": True, "restart-window": 0.01, "restart-penalty": 0.01},
    "fails": {"command": "exit 1", "restart": "on-failure", "restart-penalty": 0.01, "max-restarts": 2},
    "leaves": {"command": "(setsid sleep 1000000 &); exit 1", "restart": True, "restart-window": 0},
    "family": {"command": "sleep 1000000 & setsid sleep 1000000 & wait", "restart": True},
    "deaf": {"command": "trap '' TERM HUP; while :; do sleep 1000000; done", "kill-timeout": 0.02},
    "never": {"command": ["/no/such/program"], "restart": True, "restart-penalty": 0.01},
}

pytestmark = pytest.mark.slow


class Client(threading.Thread):
    """Does what comes to its mind. `refused` are the codes of what was refused, "" for what was done."""

    def __init__(self, control: int | str, seed: int) -> None:
        super().__init__()
        self.chance = random.Random(seed)
        self.pipe = jobmon.CommandPipe(control)
        self.refused: list[str] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """All of its commands. Anything but a refusal is an error."""
        try:
            with self.pipe:
                for _ in range(COMMANDS):
                    self.refused.append(self.command())
        except Exception as error:
            self.error = error

    def command(self) -> str:
        """One command, on one job or several."""
        jobs = self.chance.sample(list(JOBS), self.chance.randint(1, 3))
        try:
            self.chance.choice(
                (
                    lambda: self.pipe.start(*jobs, timeout=0.05),
                    lambda: self.pipe.start(*jobs, wait=False),
                    lambda: self.pipe.restart(*jobs, timeout=0.05),
                    lambda: self.pipe.stop(*jobs, timeout=0.05),
                    lambda: self.pipe.stop(*jobs, now=True, timeout=kit.DEADLINE),
                    lambda: self.pipe.signal(self.chance.choice(("KILL", "TERM", "STOP", "CONT")), *jobs),
                    lambda: self.pipe.wait(*jobs, timeout=0.01),
                    lambda: self.leave(*jobs),
                )
            )()
        except jobmon.JobError as error:
            return error.code
        return ""

    def leave(self, *jobs: str) -> None:
        """Give a command, and go before the answer is there."""
        self.pipe.submit("restart", jobs)
        self.pipe.reconnect()


@pytest.mark.parametrize("seed", [1, 2])
def test_the_promises_hold_for_all(daemon: Make, seed: int) -> None:
    """Every command is answered, no job ever has two runs, and what was stopped is gone and stays so."""
    one = daemon({"supervisor": {"log-file": "log"}, "jobs": JOBS})
    watch = one.watch()
    clients = [Client(one.control, seed * CLIENTS + number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()

    assert [client.error for client in clients] == [None] * CLIENTS
    assert [len(client.refused) for client in clients] == [COMMANDS] * CLIENTS
    pipe = one.pipe()
    for job in JOBS:
        with contextlib.suppress(jobmon.JobError):  # it is stopped already
            pipe.stop(job, now=True, timeout=kit.DEADLINE)
    assert [job.state for job in pipe.status()] == ["stopped"] * len(JOBS)
    assert kit.descendants_of(one.pid) == set()
    latest = pipe.request("status")["token"]
    watch.find(lambda event: event.seq == latest)
    pipe.terminate(wait=True)
    watch.find(lambda event: event.event == "terminated")
    check_story(watch.seen)
    assert "CRITICAL" not in one.log


def check_story(seen: list[Any]) -> None:
    """No event is missing, and of each job a run begins only when the one before has ended."""
    first = seen[0].seq
    assert [event.seq for event in seen] == list(range(first, first + len(seen)))
    living: dict[str, int] = {}
    for event in seen:
        if event.event == "launched":
            assert event.job not in living, f"two at once: {event}"
            living[event.job] = event.run
        elif event.event == "died":
            living.pop(event.job)
    assert living == {}
