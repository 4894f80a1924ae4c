"""The hooks of contrib/deploy-hooks are run: against a real daemon, a real web server, real pushes of git.

Every directory here has a space in its name. Of the YAML files the commands are run, as Ansible and the
runner of GitHub Actions would.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import urllib.error
import urllib.request

import e2e
import inits
import kit
import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Make = Callable[..., kit.Daemon]

HOOKS = os.path.join(os.path.dirname(kit.HERE), "contrib", "deploy-hooks")
SCRIPTS = ["drain-before-stop", "migrate-then-restart", "post-receive", "restart-with-rollback"]

# What a release is made of: the program that its job executes, in the directory of the release.
GOOD = 'exec "$PYTHON" -m http.server "$PORT" --bind 127.0.0.1'
DIES = "echo 'no such table: orders' >&2; exit 3"
DIES_LATER = """exec "$PYTHON" -c '
import http.server, os, sys
handler = http.server.SimpleHTTPRequestHandler
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), handler).handle_request()
sys.exit(7)'"""  # is asked once whether it is ready
NEVER_READY = 'echo begun >"$TOLD"; exec sleep 1000000'

# Takes no more connections after SIGUSR1, answers what it was asked, and ends. /slow lasts until told.
DRAINS = """
import http.server, os, signal, threading

def tell(word):
    with open(os.environ["TOLD"], "w") as told:
        told.write(word + "\\n")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            tell("begun")
            open(os.environ["GO"]).readline()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"answered")

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
server.daemon_threads = False
signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(0.02)
server.socket.close()
tell("closed")
server.server_close()  # when the last answer is given
"""

pytestmark = pytest.mark.slow


class Shop:
    """A daemon with the job web, which runs what the link `current` points to, and the hooks beside it."""

    def __init__(self, make: Make, web: dict[str, Any] | None = None, **jobs: Any) -> None:
        directory = tempfile.mkdtemp(prefix="job mon-", dir="/tmp")
        self.base = os.path.join(directory, "the shop")
        os.makedirs(os.path.join(self.base, "releases"))
        self.told, self.go = (os.path.join(directory, name) for name in ("told", "go"))
        (self.port,) = e2e.free_ports(1)
        mine = {"PORT": f"{self.port}", "TOLD": self.told, "GO": self.go, "PYTHON": sys.executable}
        common = {"working-dir": "the shop/current", "stderr": "web.err", "env": mine}
        ready = {"http": f"http://127.0.0.1:{self.port}/", "interval": 0.05}
        job = {"command": ["./serve"], "restart": True, "ready": ready, **common, **(web or {})}
        others = {name: {**common, **other} for name, other in jobs.items()}
        self.daemon = make({"jobs": {"web": job, **others}}, directory=directory)
        self.environ = self._environ()

    def _environ(self) -> dict[str, str]:
        commands = self.daemon.path("bin")
        os.mkdir(commands)
        with open(os.path.join(commands, "jobmon"), "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {sys.executable} -m jobmon "$@"\n')
        os.chmod(os.path.join(commands, "jobmon"), 0o755)
        return {
            **self.daemon.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "STABLE": "300ms",
            "TIMEOUT": "15s",
        }

    def release(self, name: str, program: str = GOOD) -> str:
        """Make a release that serves its own name; returns where it is."""
        path = os.path.join(self.base, "releases", name)
        fill(path, name, program)
        return path

    def begin(self, name: str = "one", program: str = GOOD) -> str:
        """Let a release run, the first of all."""
        path = self.release(name, program)
        os.symlink(path, self.current)
        done = self.daemon.run_cli("start", "web")
        assert done.code == 0, done
        return path

    @property
    def current(self) -> str:
        """The link."""
        return os.path.join(self.base, "current")

    @property
    def points_at(self) -> str:
        """The name of the release that the link points to."""
        return os.path.basename(os.readlink(self.current))

    def served(self, path: str = "/index.html") -> str:
        """What the web server answers; "" when nobody does."""
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=kit.DEADLINE) as answer:
                text: str = answer.read().decode()
        except (urllib.error.URLError, ConnectionError, http.client.HTTPException):
            return ""
        return text.strip()

    def start(self, *command: str, **settings: str) -> subprocess.Popen[str]:
        """Begin a hook (or another command) with these settings in its environment."""
        pipe = subprocess.PIPE
        found = os.path.join(HOOKS, command[0])
        program = found if os.path.exists(found) else command[0]
        return subprocess.Popen(
            [program, *command[1:]],
            env={**self.environ, **settings},
            cwd=self.daemon.directory,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def run(self, *command: str, **settings: str) -> kit.Done:
        """Run a hook (or another command) to its end."""
        return self.end(self.start(*command, **settings))

    def end(self, process: subprocess.Popen[str]) -> kit.Done:
        """Wait for the end of what was begun."""
        with process:
            try:
                out, err = process.communicate(timeout=2 * kit.DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"{process.args!r} does not end\n{self.daemon.report()}") from None
        return kit.Done(process.returncode, out, err)

    def deploy(self, release: str, *jobs: str, **settings: str) -> kit.Done:
        """Run restart-with-rollback."""
        return self.run("restart-with-rollback", self.current, release, *(jobs or ("web",)), **settings)

    def nobody(self) -> dict[str, str]:
        """The settings of one who looks for the daemon where none is."""
        return {"JOBMON_PORT": f"{self.daemon.path('nobody')},{self.daemon.path('nothing')}"}


def fill(path: str, name: str, program: str) -> None:
    """Write the files of a release."""
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "index.html"), "w", encoding="utf-8") as page:
        page.write(f"{name}\n")
    serve = os.path.join(path, "serve")
    with open(serve, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\n{program}\n")
    os.chmod(serve, 0o755)


def read(path: str) -> str:
    """The text of a file."""
    with open(path, encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def shop(daemon: Make) -> Shop:
    """A shop in which nothing runs yet."""
    return Shop(daemon)


# ---- the scripts --------------------------------------------------------------------------------


def test_the_scripts_are_clean() -> None:
    """There is nothing that shellcheck has to say about the scripts."""
    inits.need("shellcheck")
    command = ["shellcheck", *(os.path.join(HOOKS, name) for name in SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_does_at_its_top(name: str) -> None:
    """Each hook is a program of plain sh whose first lines are its manual, its exit codes too."""
    text = read(os.path.join(HOOKS, name))
    manual = text.partition("\nset -eu\n")[0]

    assert os.access(os.path.join(HOOKS, name), os.X_OK)
    assert text.startswith("#!/bin/sh\n# ")
    assert "\n# What it does: " in manual
    assert "\n# To adapt" in manual
    assert "exit codes" in manual.lower()


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_is_polled(name: str) -> None:
    """No hook sleeps, and none asks twice: what it waits for, the daemon decides."""
    lines = [line.strip() for line in read(os.path.join(HOOKS, name)).splitlines()]
    loop = re.compile(r"\b(sleep|until)\b|while (true|:|!)")

    assert not [line for line in lines if loop.search(line) and not line.startswith("#")]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "post-receive"])
def test_a_script_says_how_it_is_used(shop: Shop, name: str) -> None:
    """Without arguments a hook changes nothing, shows its usage and exits with 2."""
    code, out, err = shop.run(name)

    assert (code, out) == (2, "")
    assert f"usage: {name} " in err


# ---- restart, and back where it fails -------------------------------------------------------------


def test_a_release_that_stays_up_serves(shop: Shop) -> None:
    """A good release is linked, started and seen to stay up: 0, and a line that says so."""
    shop.begin()
    done = shop.deploy(shop.release("two"))

    assert (done.code, done.out) == (0, "")
    assert done.err == f"deploy: {shop.base}/releases/two serves\n"
    assert (shop.points_at, shop.served()) == ("two", "two")


def test_the_log_of_the_daemon_has_the_reason(shop: Shop) -> None:
    """`jobmon why` names the release that a run was started for."""
    shop.begin()
    release = shop.release("two")
    shop.deploy(release)

    assert f"deploy of {release}" in shop.daemon.run_cli("why", "web").out


@pytest.mark.parametrize(("program", "end"), [(DIES, "exit 3"), (DIES_LATER, "exit 7")])
def test_a_release_that_dies_is_rolled_back(shop: Shop, program: str, end: str) -> None:
    """One that dies at once, or when it was ready already, is taken back: 1, and the old one serves again."""
    old = shop.begin()
    done = shop.deploy(shop.release("bad", program), STABLE="1s")

    assert done.code == 1
    assert f"web: has died meanwhile ({end})" in done.err
    assert "\nweb is " in done.err  # jobmon why, of the time before it was rolled back
    assert done.err.endswith(f"deploy: rolled back: {old} serves again\n")
    assert (shop.points_at, shop.served()) == ("one", "one")


def test_a_release_that_is_never_ready_is_rolled_back(shop: Shop) -> None:
    """When TIMEOUT is over the old release comes back, with the exit code and the state in the message."""
    shop.begin()
    shop.daemon.fifo("told")
    done = shop.deploy(shop.release("bad", NEVER_READY), TIMEOUT="4s")  # real ones: the way back has no more

    assert done.code == 1
    assert "the restart ended with 124" in done.err
    assert "web is starting\n  is not ready: " in done.err
    assert (shop.points_at, shop.served()) == ("one", "one")


def test_when_the_old_one_fails_too_it_is_another_code(shop: Shop) -> None:
    """Neither serves: 3, and the last line says so; the link is at the old one."""
    old = shop.begin()
    fill(old, "one", "exit 4")
    code, _, err = shop.deploy(shop.release("bad", DIES))

    assert code == 3
    assert err.endswith(f"deploy: {old} is current again, but does not serve: its restart ended with 1\n")
    assert shop.points_at == "one"


def test_the_first_release_has_nothing_to_go_back_to(shop: Shop) -> None:
    """Where no link was, the first release makes it; if it fails that is 3, and said."""
    bad = shop.deploy(shop.release("bad", DIES))
    os.unlink(shop.current)
    good = shop.deploy(shop.release("one"))

    assert bad.code == 3
    assert bad.err.endswith("deploy: nothing ran before, so there is nothing to go back to\n")
    assert good.code == 0
    assert shop.served() == "one"


def test_an_interrupted_deploy_goes_back(shop: Shop) -> None:
    """SIGTERM while it waits: at once, not when the wait is over, the old release comes back."""
    shop.begin()
    told = shop.daemon.fifo("told")
    release = shop.release("bad", NEVER_READY)
    process = shop.start("restart-with-rollback", shop.current, release, "web", TIMEOUT="300s")
    told.until("begun")
    process.terminate()
    code, _, err = shop.end(process)

    assert code == 1
    assert f"deploy: {release}: interrupted\n" in err
    assert "jobmon: web: " not in err  # the first restart's client has not lived on
    assert (shop.points_at, shop.served()) == ("one", "one")


def test_a_deploy_goes_on_when_nobody_reads(shop: Shop) -> None:
    """The reader of its messages has gone: it is rolled back all the same."""
    shop.begin()
    process = shop.start("restart-with-rollback", shop.current, shop.release("bad", DIES), "web")
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None

    assert shop.end(process).code == 1
    assert (shop.points_at, shop.served()) == ("one", "one")


def test_two_deploys_do_not_meet(shop: Shop) -> None:
    """While one is under way another is refused with 6, or waits for its turn as long as LOCK_WAIT says."""
    shop.begin()
    told = shop.daemon.fifo("told")
    bad, good = shop.release("bad", NEVER_READY), shop.release("two")
    first = shop.start("restart-with-rollback", shop.current, bad, "web", TIMEOUT="300s")
    told.until("begun")
    second = shop.deploy(good)
    assert shop.points_at == "bad"
    third = shop.start("restart-with-rollback", shop.current, good, "web", LOCK_WAIT="20")
    first.terminate()

    assert (second.code, second.err) == (6, f"deploy: another deploy to {shop.current} is under way\n")
    assert shop.end(first).code == 1
    assert shop.end(third).code == 0
    assert (shop.points_at, shop.served()) == ("two", "two")


def test_a_daemon_that_goes_away_meanwhile(shop: Shop) -> None:
    """Nobody can serve then: 3; but the link is back, so that the next daemon starts what is good."""
    shop.begin()
    told = shop.daemon.fifo("told")
    release = shop.release("bad", NEVER_READY)
    process = shop.start("restart-with-rollback", shop.current, release, "web", TIMEOUT="300s")
    told.until("begun")
    shop.daemon.pipe().terminate()
    code, _, err = shop.end(process)

    assert code == 3
    assert err.endswith("is current again, but does not serve: its restart ended with 69\n")
    assert shop.points_at == "one"


@pytest.mark.parametrize("what", ["no daemon", "no job", "no release", "no link"])
def test_what_cannot_be_done_changes_nothing(shop: Shop, what: str) -> None:
    """No daemon is 69, no job 4, wrong arguments 2: each before anything was changed."""
    shop.begin()
    run = shop.daemon.pipe().status("web")[0].run
    release = shop.release("two")
    code, message = {
        "no daemon": (69, "jobmon: no daemon answers at "),
        "no job": (4, "jobmon: wbe: no such job (did you mean 'web'?)"),
        "no release": (2, f"deploy: {release}s: no such directory"),
        "no link": (2, f"deploy: {release}: to be a symbolic link, but is something else"),
    }[what]
    link = release if what == "no link" else shop.current
    done = shop.run(
        "restart-with-rollback",
        link,
        f"{release}s" if what == "no release" else release,
        "wbe" if what == "no job" else "web",
        **(shop.nobody() if what == "no daemon" else {}),
    )

    assert done.code == code
    assert done.err.startswith(message)
    assert (shop.points_at, shop.daemon.pipe().status("web")[0].run) == ("one", run)


# ---- drain, then stop -------------------------------------------------------------------------------


def draining(make: Make, **more: Any) -> tuple[Shop, kit.Fifo, kit.Fifo]:
    """A shop whose web server can be drained, and the two FIFOs: what it tells, and what lets /slow go on."""
    command = [sys.executable, "-c", DRAINS]
    one = Shop(make, {"command": command, "working-dir": ".", "restart": "on-failure", **more})
    told, go = one.daemon.fifo("told"), one.daemon.fifo("go")
    assert one.daemon.run_cli("start", "web").code == 0
    return one, told, go


def ask_slowly(shop: Shop) -> subprocess.Popen[str]:
    """Begin a request that is answered when the test lets it; the answer is printed."""
    url = f"http://127.0.0.1:{shop.port}/slow"
    return shop.start(sys.executable, "-c", f"import urllib.request as u; print(u.urlopen('{url}').read())")


@pytest.mark.parametrize("restart", ["on-failure", "always"])
def test_a_drain_lets_what_is_at_hand_be_finished(daemon: Make, restart: str) -> None:
    """The request under way gets its answer, new ones are refused, then the job is down for good: 0."""
    shop, told, go = draining(daemon, restart=restart)
    slow = ask_slowly(shop)
    told.until("begun")
    hook = shop.start("drain-before-stop", "web", TIMEOUT="300s")
    told.until("closed")

    assert shop.served("/") == ""
    assert [shop.run("jobmon", "status", "web").code for _ in range(3)] == [0, 0, 0]  # time for a wrong stop
    assert hook.poll() is None
    os.write(go.fd, b"go\n")
    assert shop.end(slow).out == "b'answered'\n"
    assert shop.end(hook).code == 0
    assert shop.daemon.pipe().status("web")[0].state == "stopped"


def test_a_drain_that_takes_too_long_is_cut_short(daemon: Make) -> None:
    """After TIMEOUT the job is stopped as it is, and the exit code 124 tells."""
    shop, told, _ = draining(daemon)
    slow = ask_slowly(shop)
    told.until("begun")
    code, out, err = shop.run("drain-before-stop", "web", "USR1", TIMEOUT="500ms", REASON="a new kernel")

    assert (code, out) == (124, "")
    assert err.endswith("drain: web: not drained within 500ms, so it is stopped as it is\n")
    assert shop.daemon.pipe().status("web")[0].state == "stopped"
    assert "a new kernel" in shop.daemon.run_cli("why", "web").out
    assert shop.end(slow).code != 0


def test_what_is_down_needs_no_drain(shop: Shop) -> None:
    """A job that is stopped already: 0, and nothing is said."""
    assert tuple(shop.run("drain-before-stop", "web")) == (0, "", "")


def test_what_would_come_back_is_stopped(daemon: Make) -> None:
    """A job that waits for its next start is no drain's business, but is kept from coming back."""
    shop = Shop(daemon, {"command": ["false"], "working-dir": ".", "restart-penalty": 1000})
    watch = shop.daemon.watch()
    shop.daemon.run_cli("start", "web", "--no-wait")
    watch.find(lambda event: event.state == "backoff" and event.run == 2)

    assert shop.run("drain-before-stop", "web").code == 0
    assert shop.daemon.pipe().status("web")[0].state == "stopped"


def test_a_signal_that_there_is_not_stops_nothing(daemon: Make) -> None:
    """What cannot be drained is not stopped: 1, and it runs on."""
    shop, _, _ = draining(daemon)
    code, _, err = shop.run("drain-before-stop", "web", "USR7")

    assert code == 1
    assert "USR7" in err
    assert err.endswith("drain: web: not stopped, because it was not drained\n")
    assert shop.served("/") == "answered"


def test_a_drain_needs_a_daemon_and_a_job(shop: Shop) -> None:
    """No daemon is 69, no such job 4."""
    assert shop.run("drain-before-stop", "web", **shop.nobody()).code == 69
    assert shop.run("drain-before-stop", "wbe").code == 4


# ---- migrate, then start ------------------------------------------------------------------------------

MIGRATE = """\
#!/bin/sh
echo begun >"$TOLD"
[ ! -e ../slow ] || read -r _ <"$GO"
if [ -e ../broken ]; then echo 'column total exists already' >&2; exit 4; fi
"""


@pytest.fixture
def migrating(daemon: Make) -> tuple[Shop, kit.Fifo]:
    """A shop with the jobs of migration.json, and what its migration tells."""
    jobs = json.loads(read(os.path.join(HOOKS, "migration.json")))["jobs"]
    web, migrate = jobs["web"], jobs["migrate"]
    for job in (web, migrate):
        assert job.pop("working-dir") == "current"
    assert web.pop("ready") == {"http": "http://127.0.0.1:8080/"}
    shop = Shop(daemon, {**web, "autostart": False, "restart-penalty": 1}, migrate=migrate)
    told = shop.daemon.fifo("told")
    shop.daemon.fifo("go")
    path = shop.release("one")
    with open(os.path.join(path, "migrate"), "w", encoding="utf-8") as file:
        file.write(MIGRATE)
    os.chmod(os.path.join(path, "migrate"), 0o755)
    os.symlink(path, shop.current)
    return shop, told


def mark(shop: Shop, name: str) -> str:
    """Make the file that tells the migration how to go."""
    path = os.path.join(shop.base, "releases", name)
    open(path, "w", encoding="utf-8").close()
    return path


def test_the_configuration_of_the_migration_is_one() -> None:
    """`jobmon check` has nothing against migration.json."""
    command = [sys.executable, "-m", "jobmon", "check", os.path.join(HOOKS, "migration.json")]
    environ = {**os.environ, "PYTHONPATH": kit.SOURCES}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)

    assert (done.returncode, done.stderr) == (0, "")


def test_web_starts_after_the_migration(migrating: tuple[Shop, kit.Fifo]) -> None:
    """At the start, and at each migration again: web is down while it runs, and up after it."""
    shop, _ = migrating
    watch = shop.daemon.watch()
    assert shop.daemon.run_cli("start", "web").code == 0
    assert tuple(shop.run("migrate-then-restart", "migrate", "web")) == (0, "", "")

    watch.find(lambda event: (event.job, event.run, event.state) == ("web", 2, "running"))
    order = [f"{one.job} {one.event} {one.run}" for one in watch.seen if one.event in ("launched", "died")]
    first, again = (
        [f"migrate launched {run}", f"migrate died {run}", f"web launched {run}"] for run in (1, 2)
    )
    assert order == [*first, "web died 1", *again]
    assert shop.served() == "one"


def test_a_migration_that_fails_keeps_web_down(migrating: tuple[Shop, kit.Fifo]) -> None:
    """1, at once; web is down and says why; once mended, the same command brings it up."""
    shop, _ = migrating
    shop.daemon.run_cli("start", "web")
    broken = mark(shop, "broken")
    code, out, err = shop.run("migrate-then-restart", "migrate", "web", STABLE="300s", TIMEOUT="600s")

    assert (code, out) == (1, "")
    told = "jobmon: migrate: has died meanwhile (exit 4); last lines of stderr:"
    assert err.startswith(f"{told}\n  | column total exists already\n")
    assert "\nweb is failed\n  requires migrate, which is failed: exit 4" in err
    assert "requires migrate, which is failed: exit 4" in shop.daemon.run_cli("why", "web").out
    assert shop.served() == ""

    os.unlink(broken)
    assert shop.run("migrate-then-restart", "migrate", "web").code == 0
    assert shop.served() == "one"


def test_a_migration_may_come_before_the_first_start(migrating: tuple[Shop, kit.Fifo]) -> None:
    """Where web was down it is up afterwards."""
    shop, _ = migrating

    assert shop.run("migrate-then-restart", "migrate", "web").code == 0
    assert shop.served() == "one"


def test_web_that_does_not_stay_up_after_the_migration(migrating: tuple[Shop, kit.Fifo]) -> None:
    """The migration succeeded, web dies: 1, and the last lines say how."""
    shop, _ = migrating
    fill(os.path.join(shop.base, "releases", "one"), "one", DIES)
    code, _, err = shop.run("migrate-then-restart", "migrate", "web", TIMEOUT="300s")

    assert code == 1
    assert "jobmon: web: has died meanwhile (exit 3)" in err
    assert "exit 3" in err.partition("\nweb is ")[2]


def test_a_migration_that_takes_too_long_goes_on(migrating: tuple[Shop, kit.Fifo]) -> None:
    """124 when the time is over; web waits for it still, and starts when it has succeeded."""
    shop, told = migrating
    shop.daemon.run_cli("start", "web")
    told.until("begun")
    mark(shop, "slow")
    code, _, err = shop.run("migrate-then-restart", "migrate", "web", TIMEOUT="300ms", REASON="release 7")

    assert code == 124
    assert "jobmon: web: timed out: it is waiting\n" in err
    assert "\nweb is waiting\n  waiting for migrate" in err
    assert "release 7" in err
    waiting = shop.daemon.start_cli("wait", "web", "--for", "ready")
    with open(shop.go, "w", encoding="utf-8") as go:
        go.write("go\n")
    assert shop.end(waiting).code == 0
    assert shop.served() == "one"


def test_a_migration_when_the_daemon_goes_away(migrating: tuple[Shop, kit.Fifo]) -> None:
    """75, at once."""
    shop, told = migrating
    mark(shop, "slow")
    process = shop.start("migrate-then-restart", "migrate", "web")
    told.until("begun")
    pid = shop.daemon.pipe().get_pid("migrate")
    shop.daemon.stop(signal.SIGKILL)
    code, _, err = shop.end(process)
    assert pid is not None
    kit.end_orphan(pid)
    e2e.crash(shop.daemon)

    assert code == 75
    assert err.startswith("jobmon: the daemon at ")


def test_a_migration_that_the_old_program_can_live_with(daemon: Make) -> None:
    """With `after` the restart of the oneshot returns when it has succeeded or failed, and web runs on."""
    migrate = {"type": "oneshot", "command": "test ! -e ../broken"}
    shop = Shop(daemon, {"after": ["migrate"]}, migrate=migrate)
    shop.begin()
    well = shop.run("jobmon", "restart", "--timeout", "300s", "--", "migrate")
    mark(shop, "broken")
    badly = shop.run("jobmon", "restart", "--timeout", "300s", "--", "migrate")

    assert tuple(well) == (0, "", "")
    assert (badly.code, badly.err) == (1, "jobmon: migrate: is failed: exit 1\n")
    assert [(job.job, job.run) for job in shop.daemon.pipe().status()] == [("web", 1), ("migrate", 2)]
    assert shop.served() == "one"


def test_a_migration_needs_a_daemon_and_its_jobs(migrating: tuple[Shop, kit.Fifo]) -> None:
    """No daemon is 69, no such job 4, and then nothing has begun."""
    shop, told = migrating

    assert shop.run("migrate-then-restart", "migrate", "web", **shop.nobody()).code == 69
    assert shop.run("migrate-then-restart", "migrat", "web").code == 4
    assert shop.run("migrate-then-restart", "migrate", "wbe").code == 4
    assert told.drain() == ""


# ---- git push ---------------------------------------------------------------------------------------


class Repositories:
    """A bare repository with the hook, as its first lines say, and a clone to push from."""

    def __init__(self, shop: Shop) -> None:
        inits.need("git")
        self.shop = shop
        self.bare, self.clone = shop.daemon.path("the shop.git"), shop.daemon.path("a clone")
        for name in [name for name in shop.environ if name.startswith("GIT_")]:
            del shop.environ[name]  # these tests may be run by a hook themselves
        shop.environ |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        for who in ("AUTHOR", "COMMITTER"):
            shop.environ |= {f"GIT_{who}_NAME": "A Tester", f"GIT_{who}_EMAIL": "tester@example.org"}
        self.git("init", "-q", "--bare", self.bare, where=shop.base)
        self.git("init", "-q", "-b", "main", self.clone, where=shop.base)
        self.git("remote", "add", "origin", self.bare)
        for name in ("post-receive", "restart-with-rollback"):
            shutil.copy(os.path.join(HOOKS, name), os.path.join(self.bare, "hooks", name))
        port = shop.environ.pop("JOBMON_PORT")
        for name, value in (("base", shop.base), ("port", port), ("stable", "300ms"), ("timeout", "15s")):
            self.git("config", f"deploy.{name}", value, where=self.bare)

    def git(self, *words: str, where: str = "") -> kit.Done:
        """Run git in the clone, or elsewhere."""
        done = self.shop.run("git", "-C", where or self.clone, *words)
        assert done.code == 0, done
        return done

    def commit(self, name: str, program: str = GOOD) -> str:
        """Commit a release; returns the commit's name."""
        fill(self.clone, name, program)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", name)
        return self.git("rev-parse", "HEAD").out.strip()

    def start_push(self) -> subprocess.Popen[str]:
        """Begin to push."""
        return self.shop.start("git", "-C", self.clone, "push", "-q", "origin", "main")

    def push(self, what: str = "main") -> str:
        """Push, and return what was said to whoever pushes."""
        said = self.git("push", "-q", "origin", what).err
        return "\n".join(line.rstrip() for line in said.splitlines())


@pytest.fixture
def pushed(shop: Shop) -> Repositories:
    """The repositories, and one release that was pushed and serves."""
    repositories = Repositories(shop)
    commit = repositories.commit("one")
    assert repositories.push() == f"remote: deploy: {shop.base}/releases/{commit} serves"
    assert (shop.points_at, shop.served()) == (commit, "one")
    return repositories


def test_a_push_is_deployed(shop: Shop, pushed: Repositories) -> None:
    """The hook is triggered by a real push: what was pushed serves, and whoever pushes is told."""
    commit = pushed.commit("two")

    assert pushed.push() == f"remote: deploy: {shop.base}/releases/{commit} serves"
    assert (shop.points_at, shop.served()) == (commit, "two")


def test_a_bad_push_is_rolled_back(shop: Shop, pushed: Repositories) -> None:
    """A commit that does not stay up is taken back, and whoever pushed it is told; the next may be good."""
    old = shop.points_at
    pushed.commit("bad", DIES)
    said = pushed.push()

    assert "remote:   | no such table: orders" in said
    assert said.endswith(f"remote: deploy: rolled back: {shop.base}/releases/{old} serves again")
    assert (shop.points_at, shop.served()) == (old, "one")

    commit = pushed.commit("three")
    pushed.push()
    assert (shop.points_at, shop.served()) == (commit, "three")


def test_only_the_branch_that_is_named_is_deployed(shop: Shop, pushed: Repositories) -> None:
    """A push to another branch starts nothing, nor does the end of a branch."""
    run = shop.daemon.pipe().status("web")[0].run
    pushed.git("checkout", "-q", "-b", "other")
    pushed.commit("two")

    assert pushed.push("other") == ""
    assert pushed.push(":other") == ""
    pushed.git("config", "receive.denyDeleteCurrent", "ignore", where=pushed.bare)
    assert "deploy" not in pushed.push(":main")
    assert (shop.daemon.pipe().status("web")[0].run, shop.served()) == (run, "one")


def test_what_serves_already_is_not_deployed_again(shop: Shop, pushed: Repositories) -> None:
    """Another push of the commit that serves restarts nothing."""
    run = shop.daemon.pipe().status("web")[0].run
    pushed.git("config", "receive.denyDeleteCurrent", "ignore", where=pushed.bare)
    pushed.push(":main")

    assert pushed.push() == f"remote: deploy: {shop.base}/releases/{shop.points_at} serves already"
    assert shop.daemon.pipe().status("web")[0].run == run


def test_a_push_without_a_daemon_stands(shop: Shop, pushed: Repositories) -> None:
    """The push is kept, and whoever pushes reads that nothing was changed, and why."""
    old = shop.points_at
    pushed.git("config", "deploy.port", shop.nobody()["JOBMON_PORT"], where=pushed.bare)
    commit = pushed.commit("two")
    said = pushed.push()

    assert said.startswith("remote: jobmon: no daemon answers at ")
    assert said.endswith("remote: deploy: nothing was changed")
    assert pushed.git("rev-parse", "main", where=pushed.bare).out.strip() == commit
    assert shop.points_at == old


def test_who_pushes_may_go_away(shop: Shop, pushed: Repositories) -> None:
    """`git push` is killed while the release starts: it is rolled back all the same when it fails."""
    old = shop.points_at
    told, go = shop.daemon.fifo("told"), shop.daemon.fifo("go")
    pushed.commit("bad", 'echo begun >"$TOLD"; read -r _ <"$GO"; exit 3')
    ours = kit.children_of(os.getpid())
    push = pushed.start_push()
    told.until("begun")
    push.kill()
    push.wait()
    os.write(go.fd, b"go\ngo\n")  # it is tried a second time at once
    shop.end(push)
    with open(os.path.join(shop.base, "push.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # when the hook has ended
    for orphan in kit.children_of(os.getpid()) - ours:
        os.waitpid(orphan, 0)

    assert (shop.points_at, shop.served()) == (old, "one")


def test_the_last_of_several_pushes_counts(shop: Shop, pushed: Repositories) -> None:
    """While one push is deployed two others come: after it the end of the branch serves, nothing between."""
    told, go, refs = (shop.daemon.fifo(name) for name in ("told", "go", "refs"))
    hook = os.path.join(pushed.bare, "hooks", "reference-transaction")
    with open(hook, "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\n[ "$1" != committed ] || cat >"{refs.path}"\n')
    os.chmod(hook, 0o755)
    pushed.commit("slow", f'echo begun >"$TOLD"; read -r _ <"$GO"; {GOOD}')
    pushes = [pushed.start_push()]
    told.until("begun")
    commits = []
    for name in ("two", "three"):
        commits.append(pushed.commit(name))
        pushes.append(pushed.start_push())
        refs.until(f"{commits[-1]} refs/heads/main")
    os.write(go.fd, b"go\n")
    said = sorted(shop.end(push).err.split()[-1] for push in pushes)

    assert said == ["already", "serves", "serves"]
    assert (shop.points_at, shop.served()) == (commits[1], "three")
    assert not os.path.exists(os.path.join(shop.base, "releases", commits[0]))


# ---- GitHub Actions ---------------------------------------------------------------------------------


class Workflow:
    """The steps of github-actions-steps.yml, run as the runner does: `bash -e FILE` in the checkout."""

    def __init__(self, shop: Shop) -> None:
        inits.need("git", "bash")
        self.shop = shop
        self.repositories = Repositories(shop)
        text = read(os.path.join(HOOKS, "github-actions-steps.yml"))
        blocks = re.findall(r"^    run: \|\n((?:      .*\n|\n)+)", text, re.MULTILINE)
        self.steps = [textwrap.dedent(found) for found in blocks]
        names = re.findall(r"^  (\w+): ", text[text.index("\nenv:") : text.index("\nsteps:")], re.MULTILINE)
        assert sorted(names) == ["BASE", "JOB", "JOBMON_PORT", "LOCK_WAIT", "STABLE", "TIMEOUT"]
        self.summary = shop.daemon.path("summary.md")
        shutil.copy(os.path.join(HOOKS, "restart-with-rollback"), shop.base)
        shop.environ |= {
            "JOBMON_PORT": shop.daemon.environ["JOBMON_PORT"],
            "BASE": shop.base,
            "JOB": "web",
            "LOCK_WAIT": "20",
            "GITHUB_STEP_SUMMARY": self.summary,
        }

    def start(self, step: int, commit: str, **settings: str) -> subprocess.Popen[str]:
        """Begin a step for a commit that is checked out."""
        script = self.shop.daemon.path(f"step {step}.sh")
        with open(script, "w", encoding="utf-8") as file:
            file.write(f'cd "{self.repositories.clone}"\n{self.steps[step]}')
        return self.shop.start("bash", "-e", script, GITHUB_SHA=commit, **settings)

    def run(self, commit: str, **settings: str) -> kit.Done:
        """Run the first step, and the second one, which always comes after it."""
        done = self.shop.end(self.start(0, commit, **settings))
        assert self.shop.end(self.start(1, commit, **settings)).code == 0
        return done


@pytest.fixture
def workflow(shop: Shop) -> Workflow:
    """The steps, and a shop in which a release serves."""
    shop.begin()
    return Workflow(shop)


def test_the_step_deploys_the_commit(shop: Shop, workflow: Workflow) -> None:
    """The commit that the workflow runs for serves, and the summary says how it is."""
    commit = workflow.repositories.commit("two")
    done = workflow.run(commit)

    assert done.code == 0, done
    assert (shop.points_at, shop.served()) == (commit, "two")
    assert read(workflow.summary).startswith(f"### web after {commit}\n```\nweb is running\n")


def test_the_step_fails_with_a_release_that_does(shop: Shop, workflow: Workflow) -> None:
    """The step fails with the hook's exit code, the old release serves, the summary tells the story."""
    done = workflow.run(workflow.repositories.commit("bad", DIES))

    assert done.code == 1
    assert (shop.points_at, shop.served()) == ("one", "one")
    assert "exit 3" in read(workflow.summary)


def test_the_step_without_a_daemon(shop: Shop, workflow: Workflow) -> None:
    """69 and nothing changed; the summary has jobmon's word for it."""
    done = workflow.run(workflow.repositories.commit("two"), **shop.nobody())

    assert done.code == 69
    assert shop.points_at == "one"
    assert "no daemon answers at" in read(workflow.summary)


def test_a_workflow_that_is_cancelled_goes_back(shop: Shop, workflow: Workflow) -> None:
    """The runner signals the step's first process only: that is the hook, which goes back."""
    told = shop.daemon.fifo("told")
    commit = workflow.repositories.commit("bad", NEVER_READY)
    step = workflow.start(0, commit, TIMEOUT="300s")
    told.until("begun")
    step.send_signal(signal.SIGINT)

    assert shop.end(step).code == 1
    assert (shop.points_at, shop.served()) == ("one", "one")


# ---- Ansible ----------------------------------------------------------------------------------------


class Tasks:
    """The commands of ansible-tasks.yml, run in order; when one of the block fails, those of its rescue."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        text = read(os.path.join(HOOKS, "ansible-tasks.yml"))
        assert text.count('"stable:20s"') == 2
        text = text.replace('"stable:20s"', '"stable:300ms"')
        ahead, _, rest = text.partition("\n  block:\n")
        main, _, rescue = rest.partition("\n  rescue:\n")
        self.ahead, self.main, self.rescue = (tasks(part) for part in (ahead, main, rescue))
        assert [len(part) for part in (self.ahead, self.main, self.rescue)] == [2, 3, 4]

    def run(self, release: str, job: str = "web", **settings: str) -> tuple[bool, list[kit.Done]]:
        """Whether all went well, or it was rescued; and how each command ended."""
        known = {"base": self.shop.base, "release": release, "job": job}
        done: list[kit.Done] = []
        if not self._all(self.ahead, known, done, settings):
            return False, done
        if self._all(self.main, known, done, settings):
            return True, done
        assert self._all(self.rescue, known, done, settings), done
        return False, done

    def _all(self, part: Any, known: dict[str, str], done: list[kit.Done], settings: dict[str, str]) -> bool:
        for words, register in part:
            done.append(self.shop.run(*(filled(word, known) for word in words), **settings))
            known[f"{register}.stdout"] = done[-1].out.removesuffix("\n")
            if done[-1].code:
                return False
        return True


def tasks(text: str) -> list[tuple[list[str], str]]:
    """The words of each command, and the name that its outcome is registered under."""
    found = []
    for task in text.split("- name: ")[1:]:
        argv = re.search(r"argv: (\[.*?\])$", task, re.MULTILINE | re.DOTALL)
        register = re.search(r"register: (\w+)", task)
        if argv:
            found.append((json.loads(argv[1]), register[1] if register else ""))
    return found


def filled(word: str, known: dict[str, str]) -> str:
    """A word with what its variables stand for."""
    return re.sub(r"\{\{ ([\w.]+) \}\}", lambda name: known[name[1]], word)


def test_the_tasks_deploy_a_release(shop: Shop) -> None:
    """The tasks of Ansible in turn: the new release is linked, started and seen to stay up."""
    shop.begin()
    shop.release("two")
    well, done = Tasks(shop).run("two")

    assert well, done
    assert (shop.points_at, shop.served()) == ("two", "two")
    assert "ansible: two" in shop.daemon.run_cli("why", "web").out


def test_the_tasks_rescue_what_fails(shop: Shop) -> None:
    """A release that dies leads to the rescue: why is shown, and the old one serves again."""
    shop.begin()
    shop.release("bad", DIES)
    well, done = Tasks(shop).run("bad")

    assert not well
    assert [one.code for one in done] == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert "exit 3" in done[5].out
    assert (shop.points_at, shop.served()) == ("one", "one")


def test_the_tasks_ask_before_they_change(shop: Shop) -> None:
    """No daemon is 69, no such job 4, at the first task: the block is not begun."""
    shop.begin()
    shop.release("two")
    nowhere, unknown = Tasks(shop).run("two", **shop.nobody()), Tasks(shop).run("two", "wbe")

    assert [one.code for one in nowhere[1]] == [69]
    assert [one.code for one in unknown[1]] == [4]
    assert shop.points_at == "one"
