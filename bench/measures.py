"""What is measured, and what JobMon has to reach. Each measure fills samples, one list for each column."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import peers
import system
from peers import Peer
from session import Session

Samples = dict[str, list[float]]

LIBRARIES = {"jobmon": str(peers.JobMon.python), "supervisord": str(peers.Supervisord.python)}  # for ask.py
WAITERS, WAITING_CONNECTIONS = 1000, 10
YOUNG_S = 1.2  # runit and s6 hold a service back that dies within 1 s of its start


@dataclass(frozen=True)
class Limit:
    """JobMon's median compared with a number, or with the median of another column times a number."""

    number: float
    times: str = ""
    at_least: bool = False

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.number:.3g}" + (f" x {self.times}" if self.times else "")

    def value(self, medians: dict[str, float]) -> float | None:
        """What has to keep to the number, or nothing when a column was not measured."""
        if "jobmon" not in medians or (self.times and self.times not in medians):
            return None
        return medians["jobmon"] / medians[self.times] if self.times else medians["jobmon"]

    def kept(self, value: float) -> bool:
        """Whether that value is good enough."""
        return value >= self.number if self.at_least else value <= self.number


@dataclass(frozen=True)
class Measure:
    """One line of the table; bench/README.md says what it means."""

    name: str
    unit: str
    limits: tuple[Limit, ...]


MEASURES = (
    Measure("respawn", "ms", (Limit(1.5, "runit"),)),
    Measure("start", "s", (Limit(1, "s6"),)),
    Measure("respawn-1000", "ms", ()),
    Measure("pss", "MiB", (Limit(14), Limit(0.5, "supervisord"))),
    Measure("stop", "s", (Limit(0.5, "s6"),)),
    Measure("idle", "switches", (Limit(0),)),
    Measure("requests", "1/s", (Limit(15, "supervisord", at_least=True),)),
    Measure("requests-100", "1/s", ()),
    Measure("library", "1/s", ()),
    Measure("wake", "ms", (Limit(5, "floor"),)),
    Measure("client", "ms", (Limit(1.6, "python3 -c pass"), Limit(1 / 3, "supervisord"))),
)
NAMES = tuple(measure.name for measure in MEASURES)


@dataclass
class Run:
    """One run of the benchmark: who takes part, how long, and what came out."""

    peers: list[Peer]
    wanted: set[str]
    base: Path
    rounds: int
    fleet_rounds: int
    fleet_jobs: int
    idle_jobs: int
    idle_s: float
    request_s: float
    say: Callable[[str], None]
    samples: dict[str, Samples] = field(default_factory=dict)

    def add(self, measure: str, column: str, sample: float | None) -> None:
        """Keep one sample, if there is one."""
        if sample is not None:
            self.samples.setdefault(measure, {}).setdefault(column, []).append(sample)

    def medians(self, measure: str) -> dict[str, float]:
        """The median of each column."""
        return {name: statistics.median(values) for name, values in self.samples.get(measure, {}).items()}

    def interleaved(self, rounds: int) -> Iterator[Peer]:
        """Every peer once in each round, each round beginning with another one."""
        for number in range(rounds):
            turn = number % len(self.peers)
            yield from self.peers[turn:] + self.peers[:turn]

    def all(self) -> None:
        """Measure what is wanted."""
        if "respawn" in self.wanted:
            self.say("respawn")
            self.respawn()
        if self.wanted & {"start", "respawn-1000", "pss", "stop"}:
            self.fleets()
        if "idle" in self.wanted:
            self.say(f"idle for {self.idle_s:g} s")
            self.idle()
        if self.wanted & {"requests", "library"}:
            self.answers(self.fleet_jobs, {"requests": raw_requests, "library": library_requests})
        if self.wanted & {"requests-100", "wake", "client"}:
            self.answers(self.idle_jobs, {"requests-100": raw_requests, "wake": wake_waiters})

    def sessions(self, stack: ExitStack, jobs: int, wanted: list[Peer]) -> dict[str, Session]:
        """A daemon of each peer, all at once."""
        return {peer.name: stack.enter_context(Session(peer, jobs, self.base)) for peer in wanted}

    def respawn(self) -> None:
        """All daemons run at once; one job after the other is killed, peer by peer."""
        with ExitStack() as stack:
            most = max(peer.kills_per_round for peer in self.peers)
            sessions = self.sessions(stack, most, self.peers)
            for number, peer in enumerate(self.interleaved(self.rounds * most)):
                if number // len(self.peers) % most < peer.kills_per_round:
                    self.add("respawn", peer.name, sessions[peer.name].kill_job(YOUNG_S) * 1e3)

    def fleets(self) -> None:
        """Start, memory and stop of many jobs: one daemon at a time, in turns."""
        for number, peer in enumerate(self.interleaved(self.fleet_rounds)):
            self.say(f"{self.fleet_jobs} jobs, round {number // len(self.peers) + 1}: {peer.name}")
            with Session(peer, self.fleet_jobs, self.base) as session:
                self.add("start", peer.name, session.start_s)
                time.sleep(0.5)  # what the daemon does after the last start is over
                pids = session.supervisors()
                self.add("pss", peer.name, sum(system.memory_kib(pid, "Pss") for pid in pids) / 1024)
                self.add("rss", peer.name, sum(system.memory_kib(pid, "Rss") for pid in pids) / 1024)
                if "respawn-1000" in self.wanted:
                    for _ in range(peer.kills_per_round):
                        self.add("respawn-1000", peer.name, session.kill_job(YOUNG_S) * 1e3)
                self.add("stop", peer.name, session.stop())

    def idle(self) -> None:
        """All daemons do nothing during the same seconds."""
        with ExitStack() as stack:
            sessions = self.sessions(stack, self.idle_jobs, self.peers)
            time.sleep(2)
            pids = {name: session.supervisors() for name, session in sessions.items()}
            before = {name: sum(map(system.context_switches, pids[name])) for name in pids}
            time.sleep(self.idle_s)
            for name, its in pids.items():
                self.add("idle", name, sum(map(system.context_switches, its)) - before[name])

    def answers(self, jobs: int, measures: dict[str, Callable[[Session, float], float | None]]) -> None:
        """Requests over one connection, of those who can be asked so, and clients that are processes."""
        with ExitStack() as stack:
            able = [peer for peer in self.peers if type(peer).status_request is not Peer.status_request]
            sessions = self.sessions(stack, jobs, able)
            for session in sessions.values():
                session.wait_listening()
            wanted = {name: ask for name, ask in measures.items() if name in self.wanted}
            self.say(f"{jobs} jobs: {', '.join(wanted) or 'client'}")
            for _ in range(self.rounds):
                for session in sessions.values():
                    for name, ask in wanted.items():
                        self.add(name, session.peer.name, ask(session, self.request_s))
            if jobs == self.idle_jobs and "client" in self.wanted:
                clients(self, sessions)


def library_requests(session: Session, seconds: float) -> float | None:
    """Let ask.py ask for so long."""
    name, place = session.peer.name, session.place
    if name not in LIBRARIES:
        return None
    question = [name, str(place.socket), place.names[-1], str(seconds)]
    command = [LIBRARIES[name], str(peers.HERE / "ask.py"), *question]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=system.PATIENCE_S)
    if done.returncode:
        raise session.error(f"could not be asked by ask.py: {done.stderr.strip()}")
    return float(done.stdout)


def raw_requests(session: Session, seconds: float) -> float | None:
    """Ask for a job's status for so long, one request after the other over one connection."""
    request = session.peer.status_request(session.place, session.place.names[-1])
    assert request is not None
    with session.connect() as connection:
        whole = session.peer.whole_reply
        began = time.monotonic()
        count = 0
        while (now := time.monotonic()) < began + seconds:
            connection.sendall(request)
            reply = connection.recv(65536)
            while not whole(reply):
                more = connection.recv(65536)
                if not more:
                    raise session.error("closed the connection")
                reply += more
            count += 1
        session.peer.check_reply(reply)
        return count / (now - began)


def wake_waiters(session: Session, _seconds: float) -> float | None:
    """SIGKILL to a job for which many wait, to the last answer: milliseconds."""
    peer, job = session.peer, session.place.names[-1]
    if peer.wait_request(job, 1) is None:
        return None
    with ExitStack() as stack:
        connections = [stack.enter_context(session.connect()) for _ in range(WAITING_CONNECTIONS)]
        for connection in connections:
            numbers = range(1, WAITERS // WAITING_CONNECTIONS + 1)
            connection.sendall(b"".join(peer.wait_request(job, number) or b"" for number in numbers))
            connection.sendall(peer.status_request(session.place, job) or b"")
            status = json.loads(receive(connection, 1)[4:])  # all that came before it is registered
        killed_ns = session.kill(status["pid"])
        told = [receive(connection, len(numbers)) for connection in connections]
        told_ns = time.monotonic_ns()
    if sum(replies.count(b'"error"') for replies in told):
        raise session.error(f"did not wake everybody: {told[0]!r}")
    session.successor_ns(status["pid"])
    return (told_ns - killed_ns) / 1e6


def receive(connection: socket.socket, frames: int) -> bytes:
    """So many replies."""
    data, end = b"", 0
    while frames:
        if len(data) < end + 4 or len(data) < end + 4 + int.from_bytes(data[end : end + 4], "big"):
            more = connection.recv(1 << 20)
            if not more:
                raise system.BenchError("a connection was closed while replies were awaited")
            data += more
        else:
            end += 4 + int.from_bytes(data[end : end + 4], "big")
            frames -= 1
    return data


def clients(run: Run, sessions: dict[str, Session]) -> None:
    """The time of each client as a process, beside that of an interpreter that does nothing."""
    commands = {"python3 -c pass": ([str(peers.JobMon.python), "-c", "pass"], dict[str, str]())}
    for name, session in sessions.items():
        command = session.peer.status_command(session.place, session.place.names[-1])
        if command is not None:
            commands[name] = (command, session.environment_of_daemon)
    for number in range(run.rounds * 4 + 1):
        for name, (command, extra) in commands.items():
            seconds = process_s(command, extra)
            if number:  # the first round warms the caches
                run.add("client", name, seconds * 1e3)


def process_s(command: list[str], extra: dict[str, str]) -> float:
    """The seconds from the launch of a command to its end, which must be a success."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", **extra}
    silence = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
    began = time.monotonic()
    pid = os.posix_spawn(command[0], command, environment, file_actions=silence)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.monotonic() - began
    if code:
        raise system.BenchError(f"{' '.join(command)} exited with {code}")
    return seconds
