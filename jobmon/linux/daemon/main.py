"""From a configuration's path to a running daemon: load, daemonise, listen, run.

Whatever fails before the daemon is up is said once, to the person who started it, and leaves
nothing behind.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import sys
import time

from jobmon.errors import ConfigError, StartupError
from jobmon.lean.cpython import signal
from jobmon.lean.records import Record
from jobmon.linux.daemon.configsource import Source, forget
from jobmon.linux.daemon.systemd import Notifier, passed_sockets, watchdog_seconds
from jobmon.linux.kernel.execution import keep_only
from jobmon.linux.kernel.signals import Terminal
from jobmon.linux.log import ERROR, INFO, WARNING, is_journal, journal_mark

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobmon.core.spec import SupervisorSpec
    from jobmon.linux.daemon.engine import Engine
    from jobmon.linux.kernel.cgroup import Hierarchy
    from jobmon.linux.kernel.sockets import Listener
    from jobmon.linux.log import Log
    from jobmon.linux.processes.maincommand import Companion
    from jobmon.linux.processes.statedir import StateDir

_NO_PRCTL = (
    "the daemon needs the package python-prctl, which is not installed for {python}.\n"
    "        Install it with: {python} -m pip install python-prctl\n"
    "        (it is compiled: on Debian, 'apt-get install gcc python3-dev libcap-dev' first)"
)


def main(path: str, mode: str, companion: Companion | None = None) -> int:
    """Run a daemon. `mode`: "foreground", "background", "init" (the foreground, and nobody waits for its
    address), or "auto" (the foreground as PID 1 and under $NOTIFY_SOCKET). A companion is a command that
    runs beside its jobs. Returns the exit code."""
    _make_good()
    foreground = mode in ("foreground", "init") or (
        mode == "auto" and (os.getpid() == 1 or "NOTIFY_SOCKET" in os.environ)
    )
    # In the background, the service's own processes speak for it, not this one.
    notifier = Notifier(os.environ if foreground else {})
    try:
        source = Source(path)
        _need_prctl()
    except (ConfigError, StartupError) as error:
        return _fail(notifier, error)
    for warning in source.warnings:
        _say(WARNING, warning)
    if not foreground:
        return _in_background(source)
    return _in_foreground(source, notifier, companion, _announcer(mode))


def _make_good() -> None:
    """What may be inherited and would break us. The number of a closed standard stream would go to
    a descriptor of ours. With SIGCHLD ignored the kernel reaps our children by itself, and nobody
    learns how they ended (waitpid(2))."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _fail(notifier: Notifier, error: ConfigError | StartupError) -> int:
    """The start has failed: tell the manager and the person who tried. Returns the exit code."""
    notifier.failed(error, error.errno if isinstance(error, StartupError) else errno.EINVAL)
    return _complain(str(error))


def _complain(text: str) -> int:
    _say(ERROR, text)
    return 1


def _say(level: str, text: str) -> None:
    """A message to standard error, in the journal with its level."""
    mark = journal_mark(level) if is_journal(os.environ.get("JOURNAL_STREAM", "")) else ""
    try:
        print("\n".join(f"{mark}jobmon: {line}" for line in text.splitlines()), file=sys.stderr)
    except OSError:
        pass  # its terminal, or the other end of the pipe, is gone


def _need_prctl() -> None:
    try:
        import prctl  # noqa: F401
    except ImportError:
        text = _NO_PRCTL.format(python=sys.executable or "this Python")
        raise StartupError(text, errno.ENOPKG) from None


# ---- where it runs ----------------------------------------------------------------------------


def _in_foreground(
    source: Source, notifier: Notifier, companion: Companion | None, announce: Callable[[str], None]
) -> int:
    for name in os.listdir("/proc/self/fd"):
        try:
            os.set_inheritable(int(name), int(name) < 3)
        except OSError:
            pass  # the descriptor of the listing itself

    pid = os.getpid()
    setting = Setting(
        announce=announce,
        notifier=notifier,
        terminal=Terminal(),
        watchdog=watchdog_seconds(os.environ, pid),
        passed=passed_sockets(os.environ, pid),
        companion=companion,
    )
    if companion is not None:
        companion.remember()
    try:
        return _serve(source, setting)
    except StartupError as error:
        return _fail(notifier, error)


def _announcer(mode: str) -> Callable[[str], None]:
    """Return the function that tells the caller the address. Nobody waits for it where standard output
    belongs to the jobs of a container, or is the journal."""
    journal = is_journal(os.environ.get("JOURNAL_STREAM", ""), 1)
    return (lambda _: None) if mode == "init" or os.getpid() == 1 or journal else _print


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:
        pass  # nobody reads it


def _in_background(source: Source) -> int:
    """daemon(7): fork twice, so that it can never get a terminal. The caller waits for its word."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            _be_the_daemon(source, writer)
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        verdict, _, text = pipe.read().decode(errors="surrogateescape").partition("\n")
    if verdict == "up":
        print(text)
        return 0
    return _complain(text or "the daemon died before it was up; its log may say why")


def _be_the_daemon(source: Source, writer: int) -> None:
    code = 1
    try:
        _let_go(writer)
        setting = Setting(
            announce=lambda text: _tell(writer, "up", text),
            notifier=Notifier({}),
            terminal=Terminal(),
            log_path=os.devnull,
            owns_stderr=True,
        )
        code = _serve(source, setting)
    except StartupError as error:
        _tell(writer, "failed", str(error))
    except BaseException as error:  # noqa: BLE001 - said, and the end
        _tell(writer, "failed", f"the daemon cannot start: {error!r}")
        sys.excepthook(type(error), error, error.__traceback__)  # standard error is the log by now
    finally:
        os._exit(code)


def _let_go(writer: int) -> None:
    """Nothing of the caller's stays but its umask: no descriptor, no terminal."""
    keep_only(0, 1, 2, writer)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _tell(writer: int, verdict: str, text: str) -> None:
    try:
        os.write(writer, f"{verdict}\n{text}".encode(errors="surrogateescape"))
        os.close(writer)
    except OSError:
        pass  # whoever started us has gone, or was told before


# ---- what it does -----------------------------------------------------------------------------


class Setting(Record):
    """Where the daemon runs. `log_path` is for a configuration without log-file (None: standard
    error), `passed` are sockets that it was started with (descriptor: control, event or nothing),
    `watchdog` is seconds or 0."""

    announce: Callable[[str], None]
    notifier: Notifier
    terminal: Terminal
    log_path: str | None = None
    owns_stderr: bool = False
    watchdog: float = 0.0
    passed: Mapping[int, str] = {}
    companion: Companion | None = None


def _serve(source: Source, setting: Setting) -> int:
    """Build the engine and run it. Raises StartupError."""
    import prctl

    from jobmon.linux.daemon.engine import SIGNALS
    from jobmon.linux.processes.statedir import acquire

    # From here on there is something to tidy up: the engine reads what comes before it is there.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    spec = source.config.supervisor
    try:
        os.chdir(spec.working_dir)
    except OSError as error:
        raise StartupError(f"working-dir {spec.working_dir}: {error.strerror}", error.errno or 0) from None
    log = _open_log(spec, setting)
    state = acquire(spec.state_dir, source.path, os.environ, log)
    nofile = _raise_nofile()
    listeners: list[Listener] = []
    try:
        if not _succeed(source, setting, log, state):
            state.close()
            return 0
        state.begin(source.path, spec.control_port)
        _listen(spec, setting, log, listeners)
        prctl.set_child_subreaper(1)
        engine = _engine(source, setting, log, listeners, state, nofile)
    except BaseException:
        for listener in listeners:
            listener.close()
        state.close()
        raise
    try:
        return _run(engine, listeners)
    finally:
        state.close()  # before a client can see our end: it may start the next daemon at once
        engine.close()
        log.close()


def _open_log(spec: SupervisorSpec, setting: Setting) -> Log:
    from jobmon.linux.log import Log

    path = spec.log_file or setting.log_path
    try:
        log = Log(path, spec.log_level, journal=is_journal(os.environ.get("JOURNAL_STREAM", "")))
        if setting.owns_stderr:
            log.take_stderr()
    except OSError as error:
        raise StartupError(f"log-file {path}: {error.strerror}", error.errno or 0) from None
    return log


def _families(source: Source) -> list[str]:
    """What the daemons of one configuration have in common: the file, or its name, the links of which may
    lead to another file by now."""
    from jobmon.linux.processes.statedir import digest

    paths = os.path.realpath(source.path), os.path.normpath(source.path)
    return list(dict.fromkeys(digest(os.fsencode(path)) for path in paths))


def _succeed(source: Source, setting: Setting, log: Log, state: StateDir) -> bool:
    """Take the place of a daemon that died: what it left is ended. Whether to go on."""
    from jobmon.linux.daemon.engine import SHUTDOWN
    from jobmon.linux.kernel.cgroup import abandoned, own_pids

    def tell(jobs: list[str], seconds: float) -> None:
        setting.notifier.waits("stopping left-over processes of a previous daemon", jobs, seconds)

    _tell_others(source, log, state)
    left = abandoned(set(_families(source)), state.daemons)
    # Without a manager our cgroup may be everybody's, and too long to read.
    others = own_pids() if setting.notifier else []
    if left or state.daemons or state.runs or len(others) > 1:
        from jobmon.linux.processes import leftovers

        clearing = leftovers.Clearing(state, left, source.config.jobs, log)
        if not clearing.clear(SHUTDOWN, tell):
            log.write(INFO, "shutdown requested during start-up")
            return False
        leftovers.name_survivors([pid for pid in others if pid not in clearing.told], log)
    return True


def _tell_others(source: Source, log: Log, state: StateDir) -> None:
    """Name daemons that are not our predecessors, and yet have our configuration or our address."""
    from jobmon.linux.processes.statedir import others

    for one in others(state, source.path, source.config.supervisor.control_port, os.environ):
        if one.lives:
            text = "another daemon runs this configuration under another path"
        else:
            text = "a daemon of another path died and left jobs, which only its own successor ends"
        log.write(WARNING, text, path=one.daemon.config, pid=one.daemon.pid, jobs=", ".join(one.left) or None)


def _listen(spec: SupervisorSpec, setting: Setting, log: Log, listeners: list[Listener]) -> None:
    """Open (or take over) the control and the event listener, in this order."""
    from jobmon.linux.kernel.sockets import adopt, listen

    public = bool(spec.allow_users or spec.allow_groups)
    given = {role: fd for fd, role in setting.passed.items() if role}
    for role, address in (("control", spec.control_port), ("event", spec.event_port)):
        listeners.append(adopt(given[role]) if role in given else listen(address, public=public))
    for fd in (fd for fd, role in setting.passed.items() if not role):
        log.write(WARNING, "ignoring a passed socket that is neither control nor event", fd=fd)
        os.close(fd)


def _engine(
    source: Source,
    setting: Setting,
    log: Log,
    listeners: list[Listener],
    state: StateDir,
    nofile: int,
) -> Engine:
    from jobmon.core.supervisor import Supervisor
    from jobmon.linux.daemon.engine import Engine
    from jobmon.linux.daemon.reload import Reloader
    from jobmon.linux.kernel.peers import Access
    from jobmon.linux.processes.spawn import Spawner
    from jobmon.linux.processes.tracker import Tree

    spec, jobs = source.config.supervisor, source.config.jobs
    access = Access.resolve(spec.allow_users, spec.allow_groups, unidentified=spec.allow_unidentified)
    now = time.monotonic()
    wall = time.time() - now
    control, event = (listener.address for listener in listeners)

    def announce() -> None:
        log.write(INFO, "ready for clients", control=control, event=event)
        setting.announce(f"{control},{event}")

    return Engine(
        Supervisor(jobs.values(), now, wall, begin=int((now + wall) * 1e6)),
        Spawner(os.environb, state.id, nofile, f"{control},{event}"),
        log,
        access,
        reloader=Reloader(
            source, setting.log_path, frozenset(f"{role}-port" for role in setting.passed.values() if role)
        ),
        tree=Tree(state.id),
        hierarchy=_hierarchy(".".join((*_families(source), state.id)), log),
        state=state,
        announce=announce,
        notifier=setting.notifier,
        watchdog=setting.watchdog,
        terminal=setting.terminal,
        companion=setting.companion,
        about={
            "config": os.path.normpath(source.path),
            "control": control,
            "event": event,
            "started": now + wall,
        },
    )


def _hierarchy(name: str, log: Log) -> Hierarchy | None:
    from jobmon.linux.kernel.cgroup import Hierarchy, Unavailable

    try:
        hierarchy = Hierarchy(name)
    except Unavailable as error:
        log.write(INFO, "process tracking: /proc, no cgroups", why=str(error))
        return None
    log.write(INFO, "process tracking: cgroups", below=hierarchy.path)
    return hierarchy


def _run(engine: Engine, listeners: list[Listener]) -> int:
    from jobmon import protocol

    for listener, role in zip(listeners, (protocol.CONTROL, protocol.EVENTS), strict=True):
        engine.sessions.listen(listener, role)
    sys.modules.pop("prctl", None)  # it was needed once
    forget()
    gc.freeze()  # what is there now stays: later collections need not look at it
    try:
        return engine.run()
    except BaseException:
        engine.give_up()
        raise


def _raise_nofile() -> int:
    """Raise our soft RLIMIT_NOFILE to the hard one: a pidfd per job. Returns what it was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 1 << 20, hard)
        )
    except ValueError:
        pass  # fs.nr_open was lowered: it stays as it is
    return soft
