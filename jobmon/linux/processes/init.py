"""`init -- CMD`: what a container wants of its first process, and nothing more.

CMD runs in our session, in a process group of its own, in the foreground of the terminal if that
was ours. Every signal that can be caught goes to CMD, none has a meaning here; whatever is
orphaned comes to us and is reaped; the exit code is CMD's. Nothing listens, nothing polls.

Imports next to nothing, because it is there before CMD is: the C part of `signal` is enough:
`signal` itself would bring `enum` along and take longer than all of this.
"""

from __future__ import annotations

import errno
import os

from jobmon.lean.cpython import signal
from jobmon.lean.records import Record
from jobmon.limits import DIED, NOT_EXECUTABLE, exec_failed
from jobmon.linux.kernel.execution import keep_only, try_places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jobmon.linux.processes.tracker import Tree

MOMENT = 2.0  # seconds that what CMD left in an own PID namespace has between SIGTERM and SIGKILL

LOOK = 0.02  # seconds between two rounds of SIGKILL

SHELL = "/bin/sh"

CAUGHT = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
# Stops that come from a terminal, or from a shell in its place.
STOPS = frozenset((signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))


class Manner(Record):
    """How CMD is run, as the options of the verb say.

    `rewrite`: the signal that is sent in place of one that came, or 0 for none. `codes`: the exit
    code that stands for one of CMD's. `leftovers`: the seconds between SIGTERM and SIGKILL for the processes
    that CMD leaves; None: a moment as PID 1, else they are left alone. `parent_death`: the signal that we
    get when our parent ends, or 0.
    """

    group: bool = False
    rewrite: Mapping[int, int] = {}
    codes: Mapping[int, int] = {}
    leftovers: float | None = None
    parent_death: int = 0


class Inherited(Record):
    """The ignored and blocked signals that this process was started with, as far as something changes them.

    CPython ignores SIGPIPE and SIGXFSZ before a line of ours runs, and nothing tells what they were:
    they count as not ignored. It leaves an ignored SIGINT alone.
    """

    ignored: frozenset[int]
    mask: frozenset[int]

    @staticmethod
    def now() -> Inherited:
        """Ask the kernel. Call it before anything is changed."""
        suspects = (signal.SIGINT, signal.SIGCHLD)
        ignored = frozenset(n for n in suspects if signal.getsignal(n) == signal.SIG_IGN)
        return Inherited(ignored, frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ())))

    def restore(self) -> None:
        """Set them again, in the child."""
        for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_IGN if number in self.ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


def main(argv: Sequence[str], manner: Manner) -> int:
    """Run a command to its end; returns the exit code that it stands for.

    Raises:
        OSError: it cannot be forked.
    """
    first = os.getpid() == 1
    if not first:  # the first of a PID namespace gets the orphans without asking
        _adopt_orphans()
    inherited = Inherited.now()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the exit codes away: wait(2)
    signal.pthread_sigmask(signal.SIG_SETMASK, CAUGHT)
    command = Command(argv, manner, inherited)
    _let_go(command)
    code = _watch(command)
    if first:
        end_the_rest(command, MOMENT if manner.leftovers is None else manner.leftovers)
    elif manner.leftovers is not None:
        end_all_below(command, manner.leftovers)
    return code


def _adopt_orphans() -> None:
    import prctl

    prctl.set_child_subreaper(1)


def follow_parent(number: int, parent: int) -> None:
    """Get a signal when the thread of `parent` that started us ends: PR_SET_PDEATHSIG, prctl(2)."""
    import prctl

    prctl.set_pdeathsig(number)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), number)


def _let_go(command: Command) -> None:
    """Keep standard error alone, and the terminal: the other end of a pipe must see CMD close it, and
    no directory but / is busy because of us."""
    os.chdir("/")
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        keep_only(0, 1, 2, command.terminal_fd)
    except OSError:
        pass  # a container without /dev or /proc: they stay open, as they do elsewhere


def _watch(command: Command) -> int:
    """Forward and reap until the command has ended."""
    code = None
    while code is None:
        info = signal.sigwaitinfo(CAUGHT)
        assert info is not None
        # From 0 downward it is a process's word and not the kernel's: sigaction(2), si_code.
        if info.si_signo != signal.SIGCHLD or info.si_code <= 0:
            command.forward(info.si_signo)
        if info.si_signo == signal.SIGCHLD:
            for pid, status in _reap():
                if pid == command.pid and os.WIFSTOPPED(status):
                    command.stopped(os.WSTOPSIG(status))
                elif pid == command.pid:
                    code = command.ended(os.waitstatus_to_exitcode(status))
    return code


def _reap() -> Iterator[tuple[int, int]]:
    """All children that have ended or stopped, with their wait statuses. One SIGCHLD may stand for many."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


class Command:
    """CMD, started. Whoever reaps it says so by `ended`; until then its pid is its own."""

    def __init__(
        self,
        argv: Sequence[str],
        manner: Manner,
        inherited: Inherited,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Start it. `prepare` is called in the child, before the program is looked for.

        Raises:
            OSError: it cannot be forked.
        """
        self._manner = manner
        self._inherited = inherited
        self._stop_forwarded = False
        self.terminal_fd = _find_terminal()
        lend = self._in_foreground()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(argv, lend, parent, prepare)
        try:
            os.setpgid(self.pid, self.pid)
        except OSError:
            pass  # the child was faster: EACCES once it has executed its program

    def rewritten(self, number: int) -> int:
        """Return the signal to send in place of one that came; 0 for none."""
        return self._manner.rewrite.get(number, number)

    def forward(self, came: int) -> None:
        """Send CMD a signal that came here. Those of job control go to its group, as a shell sends them."""
        number = self.rewritten(came)
        if not number:
            return
        if number == signal.SIGCONT:
            self._stop_forwarded = False
            self._lend()  # `fg` has just put our group into the foreground
        elif number in STOPS:
            self._stop_forwarded = True
        everybody = self._manner.group or number in STOPS or number == signal.SIGCONT
        try:
            os.kill(-self.pid if everybody else self.pid, number)
        except ProcessLookupError:
            pass  # it has just ended
        except OSError as error:
            _complain(f"signal {number} cannot be sent to pid {self.pid}: {error.strerror}")

    def ended(self, result: int) -> int:
        """It was reaped: exited with `result`, or died of signal `-result`. Returns the exit code."""
        self._take_back()
        code = result if result >= 0 else DIED - result
        return self._manner.codes.get(code, code)

    def stopped(self, number: int) -> None:
        """It was stopped. If that was the terminal's doing, the shell that started us must see it in us."""
        if number not in STOPS or self.terminal_fd < 0:
            return
        if number != signal.SIGTSTP and self._lend():  # it wanted a terminal that `fg` had given to us
            os.kill(-self.pid, signal.SIGCONT)
            return
        if _stop_too(number) or number != signal.SIGTSTP or self._stop_forwarded:
            return
        if os.getpgrp():  # group 0 is one of another PID namespace, where somebody may say `fg`
            # Ctrl-Z where nobody ever can: no terminal is to hang because of it.
            os.kill(-self.pid, signal.SIGCONT)

    # ---- the child's side of the fork

    def _become(
        self, argv: Sequence[str], lend: bool, parent: int, prepare: Callable[[], None] | None
    ) -> None:
        try:
            os.setpgid(0, 0)
            if lend:
                # Before the program runs, or it might find itself in the background. SIGTTOU is still
                # blocked, so this does not stop us: tcsetpgrp(3).
                os.tcsetpgrp(self.terminal_fd, os.getpid())
        except OSError:
            pass  # the terminal was hung up
        try:
            if self._manner.parent_death == signal.SIGKILL:  # we could not pass that one on
                follow_parent(signal.SIGKILL, parent)
            if prepare is not None:
                prepare()
            self._inherited.restore()
            execute(argv)
        except OSError as error:
            _complain(f"{argv[0]}: {error.strerror}")
            os._exit(exec_failed(error.errno or 0))
        finally:
            os._exit(NOT_EXECUTABLE)

    # ---- the terminal

    def _in_foreground(self) -> bool:
        """Whether the terminal is there and ours to lend."""
        try:
            return self.terminal_fd >= 0 and os.tcgetpgrp(self.terminal_fd) == os.getpgrp()
        except OSError:
            return False  # hung up

    def _lend(self) -> bool:
        """Put CMD's group into the foreground, if ours is there; whether that was done."""
        try:
            if self._in_foreground():
                os.tcsetpgrp(self.terminal_fd, self.pid)
                return True
        except OSError:
            pass
        return False

    def _take_back(self) -> None:
        """Take the foreground after CMD, for the sake of who called us and reads on from the terminal."""
        try:
            if self.terminal_fd >= 0 and not _group_lives(os.tcgetpgrp(self.terminal_fd), self.pid):
                os.tcsetpgrp(self.terminal_fd, os.getpgrp())
        except OSError:
            pass  # hung up, or our group belongs to another PID namespace


def _stop_too(number: int) -> bool:
    """Stop with our group as the terminal would have stopped us; whether it came to that.

    The kernel does it only where somebody is there to continue us: not in an orphaned group,
    not the first process of a PID namespace.
    """
    os.kill(0, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))  # here we stop, until SIGCONT
    signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
    return signal.SIGCONT in signal.sigpending()


def _group_lives(group: int, ended: int) -> bool:
    """Whether a group other than that of the command that ended has processes."""
    if group in (0, ended):
        return False
    try:
        os.killpg(group, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True


def _find_terminal() -> int:
    """A descriptor of the terminal that controls our session, for us alone; -1 if there is none."""
    for fd in (0, 1, 2):
        try:
            os.tcgetpgrp(fd)  # ENOTTY also for a terminal that is not the controlling one
        except OSError:
            continue
        return _above_standard(fd)
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1
    copy = _above_standard(fd)
    os.close(fd)
    return copy


def _above_standard(fd: int) -> int:
    """A copy that stays out of the way of CMD's streams, which may be closed."""
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


# ---- executing ------------------------------------------------------------------------------


def execute(argv: Sequence[str]) -> None:
    """execvp(3), without what Python's own imports for it. Never returns.

    Raises:
        OSError: it cannot be executed, for the reason that says most.
    """
    name = argv[0]
    folders = [""] if "/" in name else os.environ.get("PATH", os.defpath).split(":")
    if not name:
        folders = []  # nothing is called so; Python's execve has an error of its own for it
    places = (f"{folder}/{name}" if folder else name for folder in folders)
    try_places(places, lambda place: _execute(place, argv))


def _execute(path: str, argv: Sequence[str]) -> None:
    try:
        os.execve(path, tuple(argv), os.environ)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        os.execve(SHELL, (SHELL, path, *argv[1:]), os.environ)  # a script that does not say whose


# ---- the end of a PID namespace ---------------------------------------------------------------


def end_the_rest(command: Command, seconds: float) -> None:
    """SIGTERM to all that still lives in our PID namespace, and some seconds; returns when nothing is left
    or they are over. The kernel kills what is there when its first process exits: so exit.

    Only for the first process of an own PID namespace, with the signals in CAUGHT blocked.
    """
    import time

    until = time.monotonic() + seconds
    if not _tell_all(signal.SIGTERM):
        return
    _tell_all(signal.SIGCONT)
    while (left := until - time.monotonic()) > 0:
        if _have_children():
            info = signal.sigtimedwait(CAUGHT, left)
            if info is not None and info.si_signo != signal.SIGCHLD:
                _tell_all(command.rewritten(info.si_signo))
        elif not _await_strangers(left):
            return


def _tell_all(number: int) -> bool:
    """Signal everybody else in this PID namespace; whether there is anybody."""
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _have_children() -> bool:
    """Reap the children that have ended; return whether there are others."""
    for _ in _reap():
        pass
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _await_strangers(seconds: float) -> bool:
    """Wait until one of those who came into the namespace from outside (`docker exec`) has ended: they are
    no children of ours. False if there is none."""
    import select

    poller = select.poll()
    fds = set(_pidfds())
    for fd in fds:
        poller.register(fd, select.POLLIN)
    for fd, _ in poller.poll(0):  # a zombie is its parent's, outside
        poller.unregister(fd)
        os.close(fd)
        fds.remove(fd)
    if fds:
        poller.poll(seconds * 1000)
    for fd in fds:
        os.close(fd)
    return bool(fds)


def _pidfds() -> Iterator[int]:
    """A descriptor for every other process of our PID namespace that /proc shows."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit() and int(name) != 1:
            try:
                yield os.pidfd_open(int(name))
            except OSError:
                continue  # it has just gone


# ---- the end elsewhere ------------------------------------------------------------------------


def end_all_below(command: Command, seconds: float) -> None:
    """Send SIGTERM to all processes below us, and SIGKILL after `seconds`. Return when none is left, or
    a moment after SIGKILL. For a subreaper: it has a child while a process below it is left."""
    import time

    from jobmon.linux.processes.members import Hunt
    from jobmon.linux.processes.tracker import Tree

    if not _have_children():
        return
    tree = Tree("")
    _tell_below(tree, signal.SIGTERM)
    _tell_below(tree, signal.SIGCONT)
    until = time.monotonic() + seconds
    while _have_children() and (left := until - time.monotonic()) > 0:
        info = signal.sigtimedwait(CAUGHT, left)
        if info is not None and info.si_signo != signal.SIGCHLD:
            _tell_below(tree, command.rewritten(info.si_signo))
    hunt = Hunt(tree, tree.strays)
    until = time.monotonic() + MOMENT
    while _have_children() and time.monotonic() < until:
        if hunt.go_on():
            signal.sigtimedwait((signal.SIGCHLD,), LOOK)


def _tell_below(tree: Tree, number: int) -> None:
    """Send a signal to all processes below us; 0 is no signal."""
    from jobmon.linux.kernel.signals import send_checked

    tree.forget()
    for fact in tree.strays() if number else ():
        send_checked(fact.pid, number, fact.still_lives)


def _complain(what: str) -> None:
    try:
        os.write(2, os.fsencode(f"jobmon: {what}\n"))
    except OSError:
        pass  # nobody is left to tell
