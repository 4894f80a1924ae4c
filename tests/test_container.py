"""JobMon in containers of a real OCI runtime: read-only, as a user nobody knows; and what the runtime sees.

The root of each container is made of directories of this machine, mounted by runc: nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import kit
import pytest
from inits import LEAVES, PROBE, Run, Screen, may_mount, need, spin

import jobmon
from jobmon.linux.processes.init import MOMENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    Make = Callable[..., "Container"]

HERE = os.path.dirname(os.path.abspath(__file__))
CONTRIB = os.path.join(os.path.dirname(HERE), "contrib", "container")
NOBODY_KNOWN = 54321  # a uid that has no entry in any /etc/passwd, also because there is none
PYTHON = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
MOUNTED = ("usr", "run", "proc", "dev", "sys")
CONFIG = "/etc/jobmon/jobs.json"
DAEMON = ["jobmon", "daemon", CONFIG]
UP = "ready for clients"  # so says the log, from INFO on
WEB = {"command": kit.FOR_EVER, "autostart": True}

pytestmark = pytest.mark.slow  # each test makes a container or several


def inside(program: str) -> list[str]:
    """The words that run a program text in a container."""
    return [PYTHON, "-I", "-S", "-c", program]


class Container:
    """A container under runc: `args` is its process, `run` what is seen of it from outside."""

    def __init__(
        self, launch: Callable[..., Run], directory: str, args: Sequence[str], **options: Any
    ) -> None:
        self.directory = directory
        self._runc = ["runc", "--root", f"{directory}/state"]
        self._id = f"jobmon-test-{os.getpid()}-{os.path.basename(directory)}"
        self._lay_root(options.pop("jobs", None), options.pop("supervisor", {}))
        settings = {key: options.pop(key) for key in ("uid", "shared", "tmpfs") if key in options}
        self._write_spec(args, terminal="preexec_fn" in options, **settings)
        self.run = launch("none", [*self._runc, "run", "--bundle", directory, self._id], **options)

    def _lay_root(self, jobs: dict[str, Any] | None, supervisor: dict[str, Any]) -> None:
        root = f"{self.directory}/rootfs"
        for name in ("etc/jobmon", "opt/bin", "opt/python", "opt/packages", "opt/source/jobmon", *MOUNTED):
            os.makedirs(f"{root}/{name}")
        os.chmod(f"{root}/run", 0o1777)  # runc gives a tmpfs the mode of the directory below it
        for name in ("bin", "sbin", "lib", "lib64"):
            if os.path.islink(f"/{name}"):
                os.symlink(f"usr/{name}", f"{root}/{name}")
        with open(f"{root}/opt/bin/jobmon", "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {PYTHON} -m jobmon "$@"\n')
            os.fchmod(file.fileno(), 0o755)
        if jobs is not None:
            self.configure(jobs, **supervisor)

    def configure(self, jobs: dict[str, Any], **supervisor: Any) -> None:
        """Write its configuration, which it sees at once."""
        with open(f"{self.directory}/rootfs{CONFIG}", "w", encoding="utf-8") as file:
            json.dump({"supervisor": {"log-level": "INFO", **supervisor}, "jobs": jobs}, file)

    def _write_spec(
        self,
        args: Sequence[str],
        *,
        terminal: bool,
        uid: int = NOBODY_KNOWN,
        shared: bool = False,
        tmpfs: bool = False,
    ) -> None:
        subprocess.run(["runc", "spec", "--bundle", self.directory], check=True)
        with open(f"{self.directory}/config.json", encoding="utf-8") as file:
            spec = json.load(file)
        search = f"/opt/bin:{os.path.dirname(PYTHON)}:/usr/sbin:/usr/bin:/sbin:/bin"
        places = ["PYTHONPATH=/opt/source:/opt/packages", "LD_LIBRARY_PATH=/opt/python/lib", "HOME=/"]
        spec["process"] |= {
            "args": list(args),
            "env": [f"PATH={search}", *places, "PYTHONDONTWRITEBYTECODE=1", "TERM=dumb"],
            "user": {"uid": uid, "gid": uid},
            "capabilities": {},
            "terminal": terminal,
        }
        spec["root"] = {"path": "rootfs", "readonly": True}
        spec["mounts"] += [self._bind(source, target) for source, target in self._sources()]
        if tmpfs:
            options = ["nosuid", "noexec", "nodev", "size=1m"]
            place = {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": options}
            spec["mounts"].append(place)
        if shared:
            spaces = spec["linux"]["namespaces"]
            spec["linux"]["namespaces"] = [one for one in spaces if one["type"] != "pid"]
        with open(f"{self.directory}/config.json", "w", encoding="utf-8") as file:
            json.dump(spec, file)

    @staticmethod
    def _sources() -> Iterator[tuple[str, str]]:
        import prctl

        yield "/usr", "/usr"
        for name in ("/bin", "/sbin", "/lib", "/lib64"):
            if os.path.isdir(name) and not os.path.islink(name):
                yield name, name
        yield sys.base_prefix, "/opt/python"
        yield os.path.dirname(prctl.__file__), "/opt/packages"
        yield os.path.dirname(jobmon.__file__), "/opt/source/jobmon"

    @staticmethod
    def _bind(source: str, target: str) -> dict[str, Any]:
        return {"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"]}

    @property
    def pid(self) -> int:
        """The pid of its first process, as seen from here."""
        return int(json.loads(self._do("state", self._id).out)["pid"])

    def kill(self, number: int) -> None:
        """What `docker kill -s` and, with SIGTERM, `docker stop` do."""
        assert self._do("kill", self._id, str(int(number))).code == 0

    def exec(self, *words: str) -> kit.Done:
        """Run a command inside, to its end."""
        return self._do("exec", self._id, *words)

    def until(self, what: str) -> str:
        """Wait until its output has this; returns the line."""
        return self.run.out.until(what)

    def wait(self) -> int:
        """Wait for its end: the exit code that the runtime sees."""
        return self.run.wait()

    def delete(self) -> None:
        """Leave nothing of it."""
        self._do("delete", "--force", self._id)

    def _do(self, *words: str) -> kit.Done:
        done = subprocess.run(
            [*self._runc, *words], capture_output=True, text=True, check=False, timeout=kit.DEADLINE
        )
        return kit.Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def container(launch: Callable[..., Run], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A factory of containers, with the arguments of Container but the first two."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    need("runc")
    if not may_mount():
        pytest.skip("needs root with CAP_SYS_ADMIN, to make containers")
    made: list[Container] = []

    def make(args: Sequence[str], **options: Any) -> Container:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Container(launch, str(directory), args, **options))
        return made[-1]

    yield make
    for one in made:
        one.delete()


def init(*command: str) -> list[str]:
    """What an image with ENTRYPOINT ["jobmon", "init", "--"] makes of its CMD."""
    return ["jobmon", "init", "--", *command]


# ---- jobmon init ----------------------------------------------------------------------------


def test_init_is_an_entrypoint(container: Make) -> None:
    """As ENTRYPOINT init is PID 1, on a read-only root, as a user whom nobody knows."""
    look = "tr '\\0' ' ' </proc/1/cmdline; id -u; touch /x /run/x /tmp/x; exit 7"
    one = container(init("sh", "-c", look))

    assert one.wait() == 7
    said = one.run.out.drain()
    assert "-m jobmon init -- sh -c" in said
    assert f"\n{NOBODY_KNOWN}\n" in said or f" {NOBODY_KNOWN}\n" in said
    assert said.count("Read-only file system") + said.count("No such file") == 3


CODES = [
    (["sh", "-c", "exit 200"], 200),
    (["sh", "-c", "kill -9 $$"], 137),
    (["nowhere-to-be-found"], 127),
    (["/usr"], 126),
]


@pytest.mark.parametrize(("command", "code"), CODES)
def test_the_runtime_sees_the_exit_code(command: list[str], code: int, container: Make) -> None:
    """The runtime sees CMD's exit code, 128+n, 127 and 126."""
    assert container(init(*command)).wait() == code


def test_signals_of_the_runtime_reach_the_command(container: Make) -> None:
    """What `docker kill` and, in the end, `docker stop` send reaches CMD."""
    one = container(init(*inside(PROBE)))
    one.until("pid ")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPWR, signal.SIGRTMIN + 3, signal.SIGTERM):
        one.kill(number)
        one.until(f"got {int(number)}\n")

    assert one.wait() == 42


def test_what_is_left_in_a_container_takes_its_leave(container: Make) -> None:
    """When CMD has ended, what it left gets SIGTERM and may end by itself; the code stays CMD's."""
    one = container(init(*inside(LEAVES)))

    assert one.wait() == 3
    assert "bye" in one.run.out.drain()


def test_a_terminal_of_the_runtime(container: Make, screen: Screen) -> None:
    """With `-it` CMD has the terminal: it reads, Ctrl-Z does not hang it, Ctrl-C ends it."""
    one = container(init("cat"), **screen.options())
    screen.type("first\n")
    screen.until("first\r\nfirst\r\n")
    screen.type("\x1a")
    screen.until("^Z")
    screen.type("second\n")
    screen.until("second\r\nsecond\r\n")
    screen.type("\x03")

    assert one.wait() == 130


def test_jobs_beside_the_command(container: Make) -> None:
    """ENTRYPOINT ["jobmon", "init", CONFIG, "--"]: CMD finds the jobs running; its end is the container's."""
    asks = ["sh", "-c", "jobmon status web; exit 5"]
    one = container(["jobmon", "init", CONFIG, "--", *asks], jobs={"web": WEB})

    assert one.wait() == 5
    assert "web: running" in one.run.out.drain()


# ---- jobmon daemon as PID 1 -----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGPWR, signal.SIGRTMIN + 3])
def test_the_daemon_is_pid_1(number: int, container: Make) -> None:
    """As PID 1 the daemon stays in the foreground; each of these signals is an ordered shutdown: 0."""
    patient = {"command": "trap 'echo leaving; exit' TERM; echo up; while :; do sleep 1000 & wait; done"}
    one = container(DAEMON, jobs={"web": {**patient, "autostart": True, "stdout": "inherit"}})
    one.until("up\n")
    one.until(UP)
    one.kill(number)

    assert one.wait() == 0
    assert "leaving" in one.run.out.drain()


@pytest.mark.parametrize("command", [DAEMON, ["jobmon", "init", CONFIG]], ids=["daemon", "init"])
def test_a_hangup_reads_the_configuration_again(command: list[str], container: Make) -> None:
    """SIGHUP to PID 1 ends nothing: what has not changed runs on, what is new is started."""
    one = container(command, jobs={"web": WEB})
    one.until(UP)
    before = one.exec("jobmon", "pid", "web").out
    one.configure({"web": WEB, "new": WEB})
    one.kill(signal.SIGHUP)
    one.until('job="new" run=1 pid=')

    assert one.exec("jobmon", "pid", "web").out == before
    assert one.exec("jobmon", "reload").out == "nothing has changed\n"


ESSENTIAL = [("exit 3", 3), ("kill -9 $$", 137), ("exit 0", 0), (["nowhere-to-be"], 127), (["/usr"], 126)]


@pytest.mark.parametrize(("command", "code"), ESSENTIAL)
def test_an_essential_job_gives_the_code(command: Any, code: int, container: Make) -> None:
    """The end of an essential job is the container's, with its code, never 0 for a failure."""
    vital = {"command": command, "autostart": True, "essential": True}
    one = container(DAEMON, jobs={"web": WEB, "vital": vital})

    assert one.wait() == code


def test_health_checks(container: Make) -> None:
    """`jobmon status JOB` run inside says whether the job lives: over TCP, with nothing to write to."""
    one = container(DAEMON, jobs={"web": WEB})
    one.until(UP)

    assert one.exec("jobmon", "status", "web").code == 0
    assert one.exec("jobmon", "stop", "web").code == 0
    assert one.exec("jobmon", "status", "web").code == 1
    assert one.exec("jobmon", "status", "typo").code == 255


def test_sockets_on_the_one_tmpfs(container: Make) -> None:
    """With one tmpfs, which is noexec, UNIX sockets and a log file go there."""
    paths = {"control-port": "/run/control", "event-port": "/run/event", "log-file": "/run/log"}
    one = container(DAEMON, jobs={"web": WEB}, supervisor=paths, tmpfs=True)
    ask = ("env", "JOBMON_PORT=/run/control,/run/event", "jobmon", "status", "web")
    spin(lambda: one.exec(*ask).out.startswith("web: running"))

    assert 'to="running"' in one.exec("cat", "/run/log").out
    one.kill(signal.SIGTERM)
    assert one.wait() == 0


STORM = """
import os, signal
for _ in range(300):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
        os._exit(0)
    os.wait()
os.write(1, b"stormed\\n")
signal.pause()
"""


def test_no_zombie_is_left(container: Make) -> None:
    """What the jobs of a container orphan is reaped by the daemon; nothing is a zombie."""
    storm = {"command": inside(STORM), "autostart": True, "stdout": "inherit"}
    one = container(DAEMON, jobs={"storm": storm})
    one.until("stormed")
    spin(lambda: len(kit.children_of(one.pid)) == 1)


def test_the_container_ends_when_nothing_is_left(container: Make) -> None:
    """A stray that no job owns takes its leave at the shutdown, and the container ends at once after it."""
    parent = {"command": inside(LEAVES), "autostart": True, "stdout": "inherit", "kill-scope": "process"}
    one = container(DAEMON, jobs={"parent": parent})
    one.until("up\n")
    one.until('to="failed"')
    started = time.monotonic()
    one.kill(signal.SIGTERM)

    assert one.wait() == 0
    assert "bye" in one.run.out.drain()
    assert time.monotonic() - started < MOMENT


def test_stopped_means_gone_in_a_container(container: Make) -> None:
    """`stop` leaves nothing there either, not what has a session of its own and ignores SIGTERM."""
    deaf = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000000' & sleep 1000000"
    one = container(DAEMON, jobs={"deaf": {"command": deaf, "autostart": True, "kill-timeout": 0.2}})
    one.until(UP)
    spin(lambda: len(kit.descendants_of(one.pid)) == 4)

    assert one.exec("jobmon", "stop", "deaf").code == 0
    assert kit.descendants_of(one.pid) == set()


# ---- not PID 1 --------------------------------------------------------------------------------


NOT_PID_1 = {
    "daemon": (["jobmon", "daemon", "-f", CONFIG], 0),
    "init": (["jobmon", "init", CONFIG, "--", *inside(PROBE)], 42),
}


@pytest.mark.parametrize("kind", NOT_PID_1)
def test_below_another_init(kind: str, container: Make) -> None:
    """Below tini (`docker run --init`) it works as well: nothing needs PID 1."""
    need("tini")
    command, code = NOT_PID_1[kind]
    one = container(["tini", "--", *command], jobs={"web": WEB})
    one.until({"daemon": UP, "init": "pid "}[kind])
    assert one.exec("jobmon", "status", "web").code == 0
    one.kill(signal.SIGTERM)

    assert one.wait() == code


@pytest.mark.parametrize("kind", NOT_PID_1)
def test_a_shared_pid_namespace(kind: str, container: Make, launch: Callable[..., Run]) -> None:
    """In a PID namespace with others (shareProcessNamespace, pidMode) the others are left alone."""
    user = {"user": NOBODY_KNOWN, "group": NOBODY_KNOWN, "extra_groups": []}
    bystander = launch("none", ["sleep", "1000"], **user)
    command, code = NOT_PID_1[kind]
    one = container(command, jobs={"web": WEB}, shared=True)
    one.until({"daemon": UP, "init": "pid "}[kind])
    one.kill(signal.SIGTERM)

    assert one.wait() == code
    assert bystander.process.poll() is None


# ---- what contrib/container has -------------------------------------------------------------


def test_the_example_runs(container: Make) -> None:
    """The example's configuration runs as it is; SIGTERM ends the container in order with 0."""
    with open(os.path.join(CONTRIB, "jobs.json"), encoding="utf-8") as file:
        example = json.load(file)
    web = example["jobs"]["web"]
    web["command"] = [PYTHON if word == "python3" else word for word in web["command"]]
    one = container(["jobmon", "init", CONFIG], jobs=example["jobs"], supervisor=example["supervisor"])
    spin(lambda: one.exec("jobmon", "status", "web").code == 0)
    fetch = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/').status)"
    spin(lambda: one.exec(PYTHON, "-c", fetch).out == "200\n")
    one.kill(signal.SIGTERM)

    assert one.wait() == 0


def test_the_example_is_valid() -> None:
    """`jobmon check` takes the example as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "jobmon", "check", os.path.join(CONTRIB, "jobs.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": kit.SOURCES},
    )

    assert (done.returncode, done.stderr) == (0, "")


def stages() -> dict[str, str]:
    """The stages of the Containerfile by name."""
    with open(os.path.join(CONTRIB, "Containerfile"), encoding="utf-8") as file:
        text = re.sub(r"\\\n\s*", " ", file.read())
    parts = re.split(r"^FROM +\S+ +AS +(\S+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_only_the_first_stage_has_a_compiler() -> None:
    """The Containerfile compiles in a stage that the final image takes nothing but the result from."""
    text = stages()

    assert list(text) == ["build", "jobmon", "example"]
    assert re.search(r"\bgcc\b", text["build"])
    assert not any(re.search(r"\b(gcc|libc6-dev|libcap-dev)\b", text[name]) for name in ("jobmon", "example"))
    assert re.findall(r"^COPY --from=(\S+) (\S+)", text["jobmon"], re.MULTILINE) == [("build", "/opt/jobmon")]


def test_the_images_name_what_there_is() -> None:
    """What the Containerfile copies exists, and its entry point and its user are what the docs say."""
    text = stages()
    whole = "\n".join(text.values())
    copied = " ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", whole, re.MULTILINE)).split()
    top = os.path.dirname(HERE)

    assert copied
    assert all(os.path.exists(os.path.join(top, path)) for path in copied)
    assert 'ENTRYPOINT ["jobmon", "init", "--"]' in text["jobmon"]
    assert re.search(r"^USER \d+:\d+$", text["jobmon"], re.MULTILINE)
