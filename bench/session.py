"""One daemon of one peer with its jobs: launched, measured, stopped, and nothing left of it."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import socket
import struct
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import system
from peers import Peer, Place
from system import PATIENCE_S, BenchError

RECORD = struct.Struct("=qq")  # probe.c's
PIPE_BYTES = 1 << 20  # all reports fit in, so that no job ever waits for the harness
LOOK_S = 0.02  # how often the harness looks for reports: seldom, it must not take the jobs' processor time


class Reports:
    """The FIFO in which each job says when it began."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def read(self, timeout_s: float) -> list[tuple[int, int]]:
        """The reports there are, as (nanoseconds, pid): waits for the first one for so long."""
        if not self._poll.poll(timeout_s * 1000):
            return []
        return list(RECORD.iter_unpack(os.read(self.fd, PIPE_BYTES)))


class Session:
    """A context: within it the daemon runs and all of its jobs have begun."""

    daemons: ClassVar[set[int]] = set()  # of all sessions there are

    def __init__(self, peer: Peer, jobs: int, base: Path) -> None:
        system.require_files(jobs * peer.files_per_job + 256)
        self.peer = peer
        directory = Path(tempfile.mkdtemp(prefix=peer.name + "-", dir=base))
        self.place = Place(directory, jobs, base / "probe")
        self.began: dict[int, int] = {}  # the live jobs: pid -> CLOCK_MONOTONIC ns of the first instruction
        self.pid = 0
        self.launched_ns = 0

    def __enter__(self) -> Self:
        self.reports = Reports(self.place.directory / "reports")
        try:
            self._launch()
            self._wait_begun()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        try:
            if self.pid and error is None and self.peer.ends_quickly:
                self.stop()
        finally:
            self.close()

    def _launch(self) -> None:
        command = self.peer.prepare(self.place)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.place.directory),
            "LANG": "C.UTF-8",
            "BENCH_FIFO": str(self.place.directory / "reports"),
            **self.peer.environment(self.place),
        }
        log = str(self.place.directory / "daemon.log")
        streams = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        self.launched_ns = time.monotonic_ns()
        self.pid = os.posix_spawnp(command[0], command, environment, file_actions=streams, setsid=True)
        Session.daemons.add(self.pid)

    def _wait_begun(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(self.began) < self.place.jobs:
            for ns, pid in self.reports.read(LOOK_S):
                self.began[pid] = ns
            time.sleep(LOOK_S)
            if time.monotonic() > deadline:
                raise self.error(f"began {len(self.began)} of {self.place.jobs} jobs in {PATIENCE_S:g} s")
            if system.is_dead(self.pid):
                raise self.error("ended before its jobs had begun")

    def error(self, what: str) -> BenchError:
        """An error of this peer, with the end of its log."""
        log = (self.place.directory / "daemon.log").read_text(errors="replace")[-2000:]
        return BenchError(f"{self.peer.name} {what}\n{log}".rstrip())

    @property
    def start_s(self) -> float:
        """From the launch of the daemon to the last first instruction."""
        return (max(self.began.values()) - self.launched_ns) / 1e9

    @property
    def environment_of_daemon(self) -> dict[str, str]:
        """What the command-line client of this peer needs to find its daemon."""
        return self.peer.environment(self.place)

    def kill_job(self, least_age_s: float) -> float:
        """SIGKILL the oldest job, once it is `least_age_s` old: the seconds to its successor's beginning."""
        pid = min(self.began, key=lambda pid: self.began[pid])
        age_s = (time.monotonic_ns() - self.began[pid]) / 1e9
        time.sleep(max(0.0, least_age_s - age_s))
        killed_ns = self.kill(pid)
        return (self.successor_ns(pid) - killed_ns) / 1e9

    def kill(self, pid: int) -> int:
        """SIGKILL a job: when that was, in nanoseconds. Its successor has to be waited for."""
        del self.began[pid]
        killed_ns = time.monotonic_ns()
        os.kill(pid, system.SIGKILL)
        return killed_ns

    def successor_ns(self, pid: int) -> int:
        """When the successor of a killed job began."""
        for began_ns, successor in self.reports.read(PATIENCE_S):
            self.began[successor] = began_ns
            return began_ns
        raise self.error(f"started no successor of job {pid}")

    def supervisors(self) -> list[int]:
        """The processes of the peer itself: the daemon and its descendants but the jobs."""
        return [pid for pid in system.family([self.pid]) if pid == self.pid or pid not in self.began]

    def wait_listening(self) -> None:
        """Wait until the daemon's socket takes connections: the jobs may have begun before that."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.connect().close()
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise self.error("does not listen on its socket") from None
                time.sleep(LOOK_S)

    def connect(self) -> socket.socket:
        """A connection to the daemon's socket."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE_S)
        connection.connect(str(self.place.socket))
        return connection

    def stop(self) -> float:
        """Ask the daemon to stop everything: the seconds to its exit, and to that of its helpers."""
        helpers = self.supervisors()
        began = time.monotonic()
        os.kill(self.pid, self.peer.stop_signal)
        for pid in helpers:  # the daemon is the first; those of a daemon that does not wait are then our own
            system.wait_end(pid)
        stopped_s = time.monotonic() - began
        left = [pid for pid in self.began if system.runs(pid, self.place.probe)]
        if left:
            raise self.error(f"ended and left {len(left)} jobs")
        Session.daemons.discard(self.pid)
        self.pid = 0
        return stopped_s

    def close(self) -> None:
        """End what is still there, and remove the directory."""
        if self.pid:
            Session.daemons.discard(self.pid)
            system.end_families([self.pid], Session.daemons)
            self.pid = 0
        os.close(self.reports.fd)
        shutil.rmtree(self.place.directory)
