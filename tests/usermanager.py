r"""A real systemd, as the manager of one user, which a test starts and ends by itself.

It is `systemd --user` with directories, units and a cgroup of its own, so that it sees and touches nothing
of the machine's. It is never the system's manager: that one would clean the machine up.

    def test_it(manager):                     # the fixture of test_systemd.py
        manager.unit("x.service", "[Service]\nExecStart=/bin/sleep infinity\n")
        manager.ctl("start", "x.service")
        assert manager.show("x.service", "SubState") == "running"
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile

from kit import DEADLINE, Fifo, readable, wait_gone

from jobmon.linux.kernel import procfs

RUN = "/run/systemd"
TRACES = ("unit-root", "systemd-units-load", "propagate")
BOOTED = f"{RUN}/system"  # sd_booted(3): systemd refuses to be anybody's manager without it
PLACES = ("/usr/lib/systemd", "/lib/systemd")
# All that it is given of the machine's own units.
UNITS = "basic default exit shutdown sockets timers paths".split()


class Unable(Exception):
    """No manager can run here; the text says why."""


class Manager:
    """A running user manager. Raises Unable."""

    def __init__(self) -> None:
        binary = _found("systemd", PLACES)
        self.base = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        self.cgroup = self.runtime = ""
        self._made_booted = False
        self._before = set(os.listdir(RUN)) if os.path.isdir(RUN) else set()
        self._fifos: list[Fifo] = []
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self._prepare()
            self._start(binary)
        except BaseException:
            self.close()
            raise

    # ---- what a test does with it

    def path(self, *names: str) -> str:
        """A path in its directory."""
        return os.path.join(self.base, *names)

    def fifo(self, name: str) -> Fifo:
        """A FIFO in its directory, for units and jobs to write lines to."""
        fifo = Fifo(self.path(name))
        self._fifos.append(fifo)
        return fifo

    def unit(self, name: str, text: str) -> None:
        """Write a unit, or a drop-in ("x.service.d/y.conf")."""
        path = self.path("config", "systemd", "user", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def start_ctl(self, *words: str) -> subprocess.Popen[str]:
        """Start `systemctl --user WORDS`."""
        return subprocess.Popen(
            ["systemctl", "--user", "--no-pager", *words],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ctl(self, *words: str, code: int = 0) -> str:
        """Run `systemctl --user WORDS` to its end; what it printed."""
        with self.start_ctl(*words) as running:
            out, _ = running.communicate(timeout=2 * DEADLINE)
        assert running.returncode == code, f"systemctl {' '.join(words)}: {running.returncode}\n{out}"
        return out

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.ctl("show", "--value", "-p", what, unit).strip()

    def pid(self, unit: str) -> int:
        """The main process of a service; 0 where it has none."""
        return int(self.show(unit, "MainPID"))

    def folder(self, unit: str) -> str:
        """The directory of a unit's cgroup."""
        return f"{_mount_point()}{self.show(unit, 'ControlGroup')}"

    def processes(self) -> list[int]:
        """What lives in its cgroup, itself and all of its units."""
        found = []
        for here, _, names in os.walk(self.cgroup):
            if "cgroup.procs" in names:
                with open(f"{here}/cgroup.procs", encoding="ascii") as file:
                    found += [int(line) for line in file]
        return found

    # ---- its beginning and end

    def _prepare(self) -> None:
        self.runtime = tempfile.mkdtemp(prefix="jobmon-", dir=_volatile())
        os.symlink(self.runtime, self.path("run"))
        for name in ("config", "lib", "none"):
            os.mkdir(self.path(name))
        os.makedirs(self.path("config", "systemd", "user"))
        for name in [*(f"{unit}.target" for unit in UNITS), "systemd-exit.service"]:
            os.symlink(_found(f"user/{name}", PLACES), self.path("lib", name))
        self.environ = self._environment()
        try:
            os.makedirs(BOOTED)
            self._made_booted = True
        except FileExistsError:
            pass
        except OSError as error:
            raise Unable(f"{BOOTED} is not there and cannot be made: {error.strerror}") from None
        own = procfs.cgroup2_path(os.getpid())
        if own is None:
            raise Unable("no cgroup v2 hierarchy is mounted")
        cgroup = f"{own}/{os.path.basename(self.base)}"
        try:
            os.mkdir(cgroup)
            self.cgroup = cgroup
        except OSError as error:
            raise Unable(f"{cgroup} cannot be made: {error.strerror}") from None

    def _environment(self) -> dict[str, str]:
        nothing = self.path("none")
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": self.base,
            "LC_ALL": "C.UTF-8",
            "XDG_RUNTIME_DIR": self.runtime,
            "XDG_CONFIG_HOME": self.path("config"),
            "XDG_DATA_HOME": nothing,
            "XDG_CONFIG_DIRS": nothing,
            "XDG_DATA_DIRS": nothing,
            "SYSTEMD_UNIT_PATH": f"{self.path('config', 'systemd', 'user')}:{self.path('lib')}",
            "SYSTEMD_LOG_TARGET": "console",
        }

    def _start(self, binary: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(self.path("told"))
            with open(self.path("log"), "wb") as log:
                self.process = subprocess.Popen(
                    [binary, "--user"],
                    env=self.environ | {"NOTIFY_SOCKET": self.path("told")},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=self._enter,  # noqa: PLW1509 - there is no other thread
                )
            self._wait_ready(told)
        os.unlink(self.path("told"))

    def _enter(self) -> None:
        # Before it runs: it takes all that lives in its own cgroup for its own.
        with open(f"{self.cgroup}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")

    def _wait_ready(self, told: socket.socket) -> None:
        assert self.process is not None
        alive = os.pidfd_open(self.process.pid)
        try:
            while not readable(alive, 0):
                if readable(told.fileno(), 0.1) and b"READY=1" in told.recv(4096):
                    return
        finally:
            os.close(alive)
        raise Unable(f"systemd --user ended with {self.process.wait()}: {self.log()}")

    def log(self) -> str:
        """What it said."""
        with open(self.path("log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def close(self) -> None:
        """End it, and all that it started; remove all that was made for it."""
        if self.process is not None:
            self._end(self.process)
        if self.cgroup:
            self._remove_cgroups()
        for fifo in self._fifos:
            fifo.destroy()
        if self._made_booted:
            os.rmdir(BOOTED)
        self._tidy()
        if self.runtime:
            shutil.rmtree(self.runtime, ignore_errors=True)
        shutil.rmtree(self.base, ignore_errors=True)

    def _tidy(self) -> None:
        """What root's manager makes for itself in the system's own place."""
        for name in TRACES:
            path = f"{RUN}/{name}"
            if name not in self._before and os.path.lexists(path):
                (os.rmdir if os.path.isdir(path) else os.unlink)(path)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):  # it stops its units at the first
            process.send_signal(number)
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                continue
            return

    def _remove_cgroups(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            wait_gone(pid)
        name = os.path.relpath(self.cgroup, _mount_point())
        # On a hybrid machine systemd makes the same directories in the old hierarchies too.
        for top in (self.cgroup, *glob.glob(f"/sys/fs/cgroup/*/{name}")):
            for here, _, _ in os.walk(top, topdown=False):
                os.rmdir(here)


def _volatile() -> str:
    """A directory in memory, as /run/user is: on a disk systemd refuses to remove runtime directories."""
    for folder in ("/run", "/dev/shm"):
        with open("/proc/self/mounts", encoding="utf-8") as file:
            if f" {folder} tmpfs " in file.read() and os.access(folder, os.W_OK):
                return folder
    raise Unable("there is no tmpfs to write to at /run or /dev/shm")


def _mount_point() -> str:
    mount = procfs.cgroup2_mount()
    assert mount is not None
    return mount.point


def _found(name: str, places: tuple[str, ...]) -> str:
    for place in places:
        if os.path.exists(f"{place}/{name}"):
            return f"{place}/{name}"
    raise Unable(f"there is no {name} in {' or '.join(places)}: install systemd")
