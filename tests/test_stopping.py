"""Stopped means gone: whatever a job has started, `stop` answers when nothing of it is left."""

from __future__ import annotations

import os
import tempfile

import kit
import nasty
import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kit import Daemon

    from jobmon.protocol import JobStatus

    Make = Callable[..., Daemon]

PATIENCE = 0.2  # a kill-timeout for those who ignore the stop signal
LONG = 1000.0  # one that never runs out
ALONE = {
    "group": ("group",),
    "setsid": ("setsid",),
    "daemon": ("daemon",),
    "deaf leader": ("DEAF",),
    "deaf all": ("DEAF", "group", "setsid", "daemon"),
    "deaf child": ("deaf",),
    "hop": ("hop",),
    "hop-setsid": ("hop-setsid",),
    "deaf hop": ("DEAF", "hop-setsid"),
    "bomb": ("bomb",),
    "bare": ("bare",),
    "bare-setsid": ("bare-setsid",),
    "headless": ("headless",),
    "deaf headless": ("DEAF", "headless"),
    "stopped": ("stopped",),
    "stopped leader": ("STOPPED",),
    "all": ("DEAF", *nasty.ATTRIBUTABLE, "bomb"),
}


class Job:
    """A daemon with one nasty job, "it", which is up with all of its processes."""

    def __init__(self, make: Make, way: str, modes: tuple[str, ...], **spec: Any) -> None:
        self.modes = modes
        self.folder = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        self.line = nasty.Lifeline(os.path.join(self.folder, "lifeline"))
        jobs = {"it": {"command": self.line.command(*modes), "kill-timeout": PATIENCE, **spec}}
        self.daemon = make({"jobs": jobs}, directory=self.folder, **nasty.options(way))
        self.daemon._clients.append(self.line)
        self.watch = self.daemon.watch()
        self.pipe = self.daemon.pipe()
        self.pipe.start("it")
        if "STOPPED" in modes:
            self.line.until("STOPPED ")
        else:
            self.line.wait_for(*modes)

    def status(self) -> JobStatus:
        return self.pipe.status("it")[0]

    def assert_gone(self) -> None:
        assert self.line.survivors() == {}, self.daemon.report()


# ---- stopped means gone -----------------------------------------------------------------------


@pytest.mark.parametrize("way", nasty.WAYS)
@pytest.mark.parametrize("modes", ALONE.values(), ids=ALONE)
def test_stopped_means_gone(daemon: Make, way: str, modes: tuple[str, ...]) -> None:
    """When `stop` returns, and when `wait` and an event say so, no process of the job is left."""
    it = Job(daemon, way, modes)
    waiter = it.daemon.pipe()
    waiting = waiter.submit("wait", ("it",))
    waiter.info()  # answered in order: by now the daemon waits
    with it.daemon.start_cli("stop", "it") as stop:
        it.watch.until("it", "stopped")
        it.assert_gone()
        waiter.collect(waiting)
        assert stop.wait(kit.DEADLINE) == 0
    assert it.daemon.run_cli("status", "it").code == 1
    assert it.watch.words().count("it died stopped") == 1
