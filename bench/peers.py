"""JobMon and whom it is compared with: how each is configured, launched and stopped.

Each peer gets the settings under which it does best at what is measured; bench/README.md lists them.
All run the same job: the compiled probe.c, executed directly, without a shell.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from system import BenchError

HERE = Path(__file__).resolve().parent
PEERS = Path(os.environ.get("BENCH_PEERS", HERE / ".peers"))


@dataclass(frozen=True)
class Place:
    """Where one daemon of a peer lives: a directory of its own, the number of its jobs, their program."""

    directory: Path
    jobs: int
    probe: Path

    @property
    def socket(self) -> Path:
        """The UNIX socket that answers requests, of those peers that have one."""
        return self.directory / "control.sock"

    @property
    def names(self) -> list[str]:
        """The names of the jobs."""
        return [f"job-{number:04d}" for number in range(self.jobs)]


class Peer:
    """One supervisor."""

    name = ""
    by_default = True
    ends_quickly = False  # so it is asked to stop where others, whose stop is not measured there, are killed
    stop_signal = signal.SIGTERM
    kills_per_round = 5  # respawns that are measured in one round
    files_per_job = 4  # open files that the daemon needs

    def missing(self) -> str:
        """Why it cannot be measured here, or nothing."""
        return ""

    def prepare(self, place: Place) -> list[str]:
        """Write its configuration, and return the command line that launches it in the foreground."""
        raise NotImplementedError

    def environment(self, place: Place) -> dict[str, str]:
        """Variables of its own."""
        return {}

    def status_request(self, place: Place, job: str) -> bytes | None:
        """The bytes that ask for one job's status on the socket, where it can be asked at all."""
        return None

    def wait_request(self, job: str, number: int) -> bytes | None:
        """The bytes that ask to be told of the next end of a job, in a request of that number."""
        return None

    def whole_reply(self, data: bytes) -> bool:
        """Whether these bytes are a whole reply."""
        return len(data) >= 4 and len(data) == 4 + int.from_bytes(data[:4], "big")

    def check_reply(self, data: bytes) -> None:
        """Raise BenchError unless the reply says that the job runs."""
        if json.loads(data[4:]).get("is_running") is not True:
            raise BenchError(f"{self.name} replied {data!r}")

    def status_command(self, place: Place, job: str) -> list[str] | None:
        """The command line that does the same as a process."""
        return None


def frame(body: dict[str, object]) -> bytes:
    """One message of JobMon's wire: a length of 4 bytes, then JSON."""
    text = json.dumps(body, separators=(",", ":")).encode()
    return len(text).to_bytes(4, "big") + text


def wait_frame(job: str, number: int) -> bytes:
    """A request for the next change of a job."""
    return frame({"type": "request", "id": number, "command": "wait", "jobs": [job]})


class JobMon(Peer):
    """The one that this is about, installed as a wheel."""

    name = "jobmon"
    ends_quickly = True  # and would leave its empty cgroups until the next daemon
    python = PEERS / "jobmon" / "bin" / "python"
    program = PEERS / "jobmon" / "bin" / "jobmon"
    scope = "job"

    def missing(self) -> str:
        return "" if self.program.exists() else "there is no jobmon in its virtual environment"

    def prepare(self, place: Place) -> list[str]:
        job = {
            "command": [str(place.probe)],
            "autostart": True,
            "restart": True,
            "restart-window": 0,
            "restart-penalty": 0,
            "kill-scope": self.scope,
        }
        supervisor = {
            "working-dir": str(place.directory),
            "control-port": str(place.socket),
            "event-port": str(place.directory / "event.sock"),
        }
        config = place.directory / "jobmon.json"
        config.write_text(json.dumps({"supervisor": supervisor, "jobs": dict.fromkeys(place.names, job)}))
        return [str(self.program), "daemon", "-f", str(config)]

    def environment(self, place: Place) -> dict[str, str]:
        runtime = place.directory / "runtime"
        runtime.mkdir(exist_ok=True)
        return {
            "JOBMON_PORT": f"{place.socket},{place.directory / 'event.sock'}",
            "RUNTIME_DIRECTORY": str(runtime),
        }

    def status_request(self, place: Place, job: str) -> bytes:
        return frame({"type": 1, "job": job, "command": 5})

    def wait_request(self, job: str, number: int) -> bytes:
        return wait_frame(job, number)

    def status_command(self, place: Place, job: str) -> list[str]:
        return [str(self.program), "status", job]


class JobMonGroup(JobMon):
    """JobMon with a smaller kill-scope: what the cgroup of each run costs shows beside it."""

    name = "jobmon-group"
    by_default = False
    scope = "group"


class Floor(Peer):
    """The least that Python can do: floor.py, under JobMon's interpreter."""

    name = "floor"

    def prepare(self, place: Place) -> list[str]:
        script = str(HERE / "floor.py")
        return [str(JobMon.python), script, str(place.socket), str(place.jobs), str(place.probe)]

    def status_request(self, place: Place, job: str) -> bytes:
        return frame({"type": 1, "job": job, "command": 5})

    def wait_request(self, job: str, number: int) -> bytes:
        return wait_frame(job, number)


class ServiceDirectories(Peer):
    """What runit and s6 have in common: a directory for each service, whose `run` is the job itself."""

    def prepare(self, place: Place) -> list[str]:
        scan = place.directory / "services"
        scan.mkdir()
        for name in place.names:
            (scan / name).mkdir()
            (scan / name / "run").symlink_to(place.probe)
        os.utime(scan, (1, 1))  # runsvdir sleeps for a second when the directory is as young as that
        return self.command(scan)

    def command(self, scan: Path) -> list[str]:
        """The command line for these services."""
        raise NotImplementedError


class Runit(ServiceDirectories):
    """runsvdir, and a runsv for each job. It ends at SIGHUP without waiting for them."""

    name = "runit"
    stop_signal = signal.SIGHUP

    def command(self, scan: Path) -> list[str]:
        return ["runsvdir", str(scan)]


class S6(ServiceDirectories):
    """s6-svscan, and an s6-supervise for each job."""

    name = "s6"

    def command(self, scan: Path) -> list[str]:
        return ["s6-svscan", "-t", "0", "-c", "2000", str(scan)]


SUPERVISORD = """\
[supervisord]
nodaemon=true
directory={directory}
logfile=/dev/null
logfile_maxbytes=0
loglevel=error
pidfile={directory}/supervisord.pid
childlogdir={directory}
minfds={files}
[unix_http_server]
file={socket}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{socket}
[program:job]
command={probe}
process_name=job-%(process_num)04d
numprocs={jobs}
autostart=true
autorestart=true
startsecs=0
stdout_logfile=NONE
redirect_stderr=true
"""
XML_CALL = """\
<?xml version='1.0'?>
<methodCall><methodName>supervisor.getProcessInfo</methodName>\
<params><param><value><string>{job}</string></value></param></params></methodCall>
"""
HTTP_POST = """\
POST /RPC2 HTTP/1.1\r
Host: localhost\r
Connection: keep-alive\r
Content-Type: text/xml\r
Content-Length: {length}\r
\r
{body}"""


class Supervisord(Peer):
    """supervisord, from pip."""

    name = "supervisord"
    python = PEERS / "supervisor" / "bin" / "python"
    kills_per_round = 1  # each takes a second
    files_per_job = 6

    def prepare(self, place: Place) -> list[str]:
        config = place.directory / "supervisord.conf"
        config.write_text(
            SUPERVISORD.format(
                directory=place.directory,
                files=max(1024, place.jobs * self.files_per_job),
                socket=place.socket,
                probe=place.probe,
                jobs=place.jobs,
            )
        )
        return [str(PEERS / "supervisor" / "bin" / "supervisord"), "-c", str(config)]

    def status_request(self, place: Place, job: str) -> bytes:
        body = XML_CALL.format(job=f"job:{job}")
        return HTTP_POST.format(length=len(body), body=body).encode()

    def whole_reply(self, data: bytes) -> bool:
        head, blank, body = data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r")[0]
        return bool(blank) and len(body) == int(length)

    def check_reply(self, data: bytes) -> None:
        if b"<string>RUNNING</string>" not in data:
            raise BenchError(f"{self.name} replied {data!r}")

    def status_command(self, place: Place, job: str) -> list[str]:
        config = str(place.directory / "supervisord.conf")
        return [str(PEERS / "supervisor" / "bin" / "supervisorctl"), "-c", config, "status", f"job:{job}"]


ALL: tuple[Peer, ...] = (JobMon(), JobMonGroup(), Floor(), Runit(), S6(), Supervisord())
