"""`jobmon init -- CMD` beside tini and dumb-init: signals, exit codes, terminals, orphans, and the end.

What differs between the three is written down as data, so that it is tested too. As PID 1 they run in a PID
namespace of unshare's and of bubblewrap's; a real container runtime is the subject of test_container.py.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import termios
import time

import kit
import pytest
from inits import (
    CATCHABLE,
    INITS,
    JOBMON,
    LEAVES,
    PLACES,
    POLITE,
    PROBE,
    THREE,
    Screen,
    Shell,
    environment,
    need,
    need_place,
    python,
    spin,
    state,
)

from jobmon.linux.processes.init import MOMENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from inits import Run

    Launch = Callable[..., Run]

REAL_TIME = range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
JOB_CONTROL = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
FAULTS = tuple(getattr(signal, f"SIG{name}") for name in "SEGV BUS FPE ILL TRAP ABRT SYS".split())
# What reaches CMD through the others. (dumb-init's CMD gets SIGSTOP in place of the stops of job control.)
NOT_FORWARDED: dict[str, frozenset[int]] = {
    "jobmon": frozenset(),
    "tini": frozenset((*FAULTS, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD)),
    "dumb-init": frozenset((*JOB_CONTROL, signal.SIGCHLD)),
}


def code_of(words: Sequence[str]) -> int:
    """The exit code of a command line."""
    return subprocess.run(words, check=False, env=environment()).returncode


# ---- signals --------------------------------------------------------------------------------


def name(number: int) -> str:
    """How a signal is called."""
    return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number in REAL_TIME else signal.Signals(number).name


def probe(launch: Launch, init: str, place: str = "child", **options: Any) -> Run:
    """A PROBE that runs under an init."""
    one = launch(init, python(PROBE), place, **options)
    one.out.until("pid ")
    return one


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("init", THREE)
def test_signals_reach_the_command(init: str, place: str, launch: Launch) -> None:
    """Every signal that can be caught reaches CMD, once; tini and dumb-init leave out what the table says."""
    one = probe(launch, init, place)
    expected = [n for n in CATCHABLE if n not in NOT_FORWARDED[init] and n != signal.SIGTERM]
    for number in expected:
        one.send(number)
        one.out.until(f"got {number}\n")
    one.send(signal.SIGTERM)

    assert one.wait() == 42
    one.out.drain()
    assert one.out.text.split()[3::2] == [str(n) for n in (*expected, signal.SIGTERM)]


@pytest.mark.parametrize("init", ["tini", "dumb-init"])
def test_the_others_leave_signals_out(init: str, launch: Launch) -> None:
    """What the table says that tini and dumb-init leave out does not reach CMD (as PID 1: else some end)."""
    one = probe(launch, init, "pid 1 of unshare")
    for number in sorted(NOT_FORWARDED[init] - {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}):
        one.send(number)
    one.send(signal.SIGTERM)

    assert one.wait() == 42
    assert one.out.drain().split()[2:] == ["got", str(int(signal.SIGTERM))]


@pytest.mark.parametrize("number", [n for n in CATCHABLE if n in (*FAULTS, *REAL_TIME[:2])], ids=name)
def test_no_signal_ends_init(number: int, launch: Launch) -> None:
    """A signal that somebody sends, one of a fault too, is CMD's to die of, and init lives to tell: 128+n."""
    one = launch("jobmon", ["sh", "-c", "ulimit -c 0; echo up; exec sleep 1000"])
    one.out.until("up")
    one.send(number)

    assert one.wait() == 128 + number


def test_queued_signals_are_all_forwarded(launch: Launch) -> None:
    """Real-time signals are counted: a hundred that come at once are a hundred for CMD."""
    one = probe(launch, "jobmon")
    os.kill(one.pid, signal.SIGSTOP)
    spin(lambda: state(one.pid) == "T")
    for _ in range(100):
        one.send(signal.SIGRTMIN)
    os.kill(one.pid, signal.SIGCONT)
    one.out.until(f"got {int(signal.SIGCONT)}\n")  # it has come behind none, but each is its own system call
    spin(lambda: one.out.drain().count(f"got {int(signal.SIGRTMIN)}\n") == 100)
    one.send(signal.SIGTERM)

    assert one.wait() == 42


# A CMD with a process of its own group beside it; both say which SIGUSR1 they got.
TWO = """
trap 'echo leader got it' USR1
(trap 'echo other got it' USR1; echo other is up; while :; do sleep 1000 & wait; done) &
while :; do wait; done
"""


def test_the_group_gets_signals_on_request(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --group CMD's whole process group gets a signal, as with `tini -g` and dumb-init."""
    monkeypatch.setitem(INITS, "jobmon", [*JOBMON[:-1], "--group", "--"])
    one = launch("jobmon", ["sh", "-c", TWO])
    one.out.until("other is up")
    one.send(signal.SIGUSR1)
    one.out.until("leader got it")
    one.out.until("other got it")


def test_the_command_alone_gets_signals(launch: Launch) -> None:
    """Without --group CMD alone gets a signal, as with tini, and as if init were not there."""
    one = launch("jobmon", ["sh", "-c", TWO])
    one.out.until("other is up")
    one.send(signal.SIGUSR1)
    one.out.until("leader got it")
    os.kill(-one.command, signal.SIGUSR1)  # now to both, to have an end that is seen
    one.out.until("other got it")

    assert one.out.text.count("other got it") == 1


def test_job_control_signals_reach_the_group(launch: Launch) -> None:
    """SIGTSTP stops CMD's whole group, SIGCONT continues it, without a terminal too."""
    one = launch("jobmon", ["sh", "-c", "sleep 1000 & echo up; wait"])
    one.out.until("up")
    shell = one.command
    both = [shell, *kit.children_of(shell)]
    one.send(signal.SIGTSTP)
    spin(lambda: [state(pid) for pid in both] == ["T", "T"])
    one.send(signal.SIGCONT)
    spin(lambda: [state(pid) for pid in both] == ["S", "S"])
    one.send(signal.SIGTERM)

    assert len(both) == 2
    assert one.wait() == 128 + signal.SIGTERM


def test_two_side_by_side(launch: Launch) -> None:
    """Two inits on one machine have each their own CMD, signals and code."""
    one, other = probe(launch, "jobmon"), probe(launch, "jobmon")
    one.send(signal.SIGUSR1)
    one.out.until(f"got {int(signal.SIGUSR1)}\n")
    one.send(signal.SIGTERM)

    assert one.wait() == 42
    other.send(signal.SIGTERM)
    assert other.wait() == 42
    assert "got 10" not in other.out.drain()


def test_a_signal_that_may_not_be_sent_is_told(launch: Launch) -> None:
    """Where CMD belongs to another user by now, and init may not signal it, init says so and lives on."""
    need("setpriv")
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    program = "import os, signal; os.setuid(65533); print('up', flush=True); signal.pause()"
    # init stays root, but without CAP_KILL
    words = ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", *JOBMON, *python(program)]
    one = launch("none", words)
    one.out.until("up")
    one.send(signal.SIGHUP)
    one.out.until("signal 1 cannot be sent")


REWRITES = {
    "jobmon": ["--rewrite", "USR1=WINCH", "-r", "HUP=0", "-r", "TERM=SIGQUIT"],
    "dumb-init": ["-r", "10:28", "-r", "1:0", "-r", "15:3"],
}


@pytest.mark.parametrize("init", REWRITES)
def test_signals_are_rewritten(init: str, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """CMD gets another signal than the one that came, or none, where that is asked for: as with dumb-init."""
    monkeypatch.setitem(INITS, init, [*INITS[init][:-1], *REWRITES[init], "--"])
    one = probe(launch, init)
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
        one.send(number)
        if number != signal.SIGHUP:
            expected = {signal.SIGUSR1: signal.SIGWINCH, signal.SIGTERM: signal.SIGQUIT}
            one.out.until(f"got {int(expected.get(number, number))}\n")
    os.kill(one.command, signal.SIGTERM)

    assert one.wait() == 42
    got = one.out.drain().split()[3::2]
    assert list(map(int, got)) == [signal.SIGWINCH, signal.SIGQUIT, signal.SIGUSR2, signal.SIGTERM]


# A parent that starts an init, tells its pid, and ends at the end of its standard input.
PARENT = """
import os, subprocess, sys
init = subprocess.Popen(sys.argv[1:])
os.write(1, b"init %d\\n" % init.pid)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.parametrize(("init", "option"), [("jobmon", "SIGUSR1"), ("tini", "SIGUSR1")])
def test_the_end_of_the_parent_is_told(init: str, option: str, launch: Launch) -> None:
    """With --parent-death-signal CMD gets that signal when the parent of init ends: as with `tini -p`."""
    need(*([] if init == "jobmon" else [init]))
    words = [*INITS[init][:-1], "-p", option, "--", *python(PROBE)]
    one = launch("none", [*python(PARENT), *words], stdin=subprocess.PIPE)
    one.out.until("pid ")
    pid = int(one.out.until("init ").split()[1])
    one.close_stdin()
    one.out.until(f"got {int(signal.SIGUSR1)}\n")
    os.kill(pid, signal.SIGTERM)
    one.out.until(f"got {int(signal.SIGTERM)}\n")

    assert one.wait() == 0


def test_a_parent_death_by_sigkill_reaches_the_command(launch: Launch) -> None:
    """With --parent-death-signal KILL nothing of init and CMD is left when the parent ends."""
    words = [*JOBMON[:-1], "--parent-death-signal", "KILL", "--", *python(PROBE)]
    one = launch("none", [*python(PARENT), *words], stdin=subprocess.PIPE)
    command = int(one.out.until("pid ").split()[1])
    init = int(one.out.until("init ").split()[1])
    one.close_stdin()

    assert one.wait() == 0
    kit.wait_gone(init)
    kit.wait_gone(command)


# ---- exit codes -----------------------------------------------------------------------------


@pytest.mark.slow  # a process for each code: seconds of starting
@pytest.mark.parametrize("init", THREE)
def test_exit_codes_pass(init: str, launch: Launch) -> None:
    """Each exit code of CMD is the init's, all 256."""
    need(*([] if init == "jobmon" else [init]))
    words = [*INITS[init], "sh", "-c", 'exit "$0"']
    codes = [code_of([*words, str(code)]) for code in range(256)]

    assert codes == list(range(256))


FATAL = [
    n
    for n in (*CATCHABLE, signal.SIGKILL)
    if n not in (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, *JOB_CONTROL)
]


@pytest.mark.parametrize("init", THREE)
def test_deaths_by_signals_pass(init: str) -> None:
    """A CMD that died of signal n makes the init exit with 128+n, for every n that can kill."""
    need(*([] if init == "jobmon" else [init]))
    words = [*INITS[init], "sh", "-c", 'ulimit -c 0; kill -"$0" $$']
    codes = [code_of([*words, str(int(n))]) for n in FATAL]

    assert codes == [128 + n for n in FATAL]


def with_options(monkeypatch: pytest.MonkeyPatch, init: str, *words: str) -> str:
    """Give an init options; its name."""
    monkeypatch.setitem(INITS, init, [*INITS[init][:-1], *words, "--"])
    return init


# Exit codes of CMD, and what becomes of them with the options.
MAPPED = [
    ("jobmon", ["--map-exit", "143=0", "-e", "7=9"], {143: 0, 7: 9, 0: 0, 9: 9, 144: 144}),
    ("jobmon", ["--map-exit=0=3", "--map-exit", "127=4"], {0: 3, 127: 4, 3: 3}),
    ("tini", ["-e", "143", "-e", "7"], {143: 0, 7: 0, 0: 0, 144: 144}),
]


@pytest.mark.parametrize(("init", "options", "codes"), MAPPED)
def test_exit_codes_are_mapped(
    init: str, options: list[str], codes: dict[int, int], launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another exit code stands for one of CMD's where that is asked for, each once, as with `tini -e`."""
    with_options(monkeypatch, init, *options)

    assert {code: launch(init, ["sh", "-c", f"exit {code}"]).wait() for code in codes} == codes


@pytest.mark.parametrize(("init", "option"), [("jobmon", "143=0"), ("tini", "143")])
def test_the_code_of_a_death_is_mapped(
    init: str, option: str, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CMD that died of SIGTERM is a success where 143 is mapped to 0, and nothing else is."""
    with_options(monkeypatch, init, "-e", option)
    one = launch(init, ["sh", "-c", "echo up; exec sleep 1000"])
    one.out.until("up")
    one.send(signal.SIGTERM)

    assert one.wait() == 0
    assert launch(init, ["nowhere-to-be-found"]).wait() == 127


WRONG_OPTIONS = [
    (["--map-exit", "143"], "--map-exit 143: must be CODE=CODE, two numbers from 0 to 255"),
    (["--map-exit", "143=256"], "--map-exit 143=256: must be CODE=CODE"),
    (["--map-exit", "-1=0"], "--map-exit -1=0: must be CODE=CODE"),
    (["--rewrite", "TERM"], "--rewrite TERM: must be SIG=SIG"),
    (["--rewrite", "TERM="], "--rewrite TERM=: must be SIG=SIG"),
    (["--rewrite", "TREM=QUIT"], "unknown signal SIGTREM"),
    (["--rewrite", "KILL=TERM"], "--rewrite KILL=TERM: KILL cannot be caught"),
    (["--rewrite", "0=TERM"], "--rewrite 0=TERM: 0 cannot be caught"),
    (["--leftovers", "soon"], "invalid duration 'soon'"),
    (["--parent-death-signal", "99"], "99 is not a signal number"),
]


@pytest.mark.parametrize(("options", "told"), WRONG_OPTIONS, ids=[told for _, told in WRONG_OPTIONS])
def test_wrong_options_start_nothing(options: list[str], told: str) -> None:
    """An option that makes no sense is told before CMD is started, with exit code 2."""
    done = subprocess.run(
        [*JOBMON[:-1], *options, "--", "echo", "started"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"jobmon: init: {told}")


@pytest.fixture
def scripts(tmp_path: Any) -> dict[str, str]:
    """Files that can and cannot be executed."""
    texts = {"plain": "exit 5\n", "noexec": "#!/bin/sh\n", "no-interpreter": "#!/nowhere/sh\n"}
    for title, text in texts.items():
        (tmp_path / title).write_text(text)
        (tmp_path / title).chmod(0o644 if title == "noexec" else 0o755)
    return {title: str(tmp_path / title) for title in texts}


CANNOT = [
    ("nowhere-to-be-found", 127, 127),
    ("/nowhere/at-all", 127, 127),
    ("noexec", 126, 126),
    ("no-interpreter", 127, 127),
    ("/", 126, 126),
    ("/dev/null/under", 127, 1),
    ("", 127, 127),
]


@pytest.mark.parametrize(("command", "ours", "tinis"), CANNOT)
def test_what_cannot_be_executed(
    command: str, ours: int, tinis: int, scripts: dict[str, str], launch: Launch
) -> None:
    """What is not found is 127, what cannot be executed 126, as in a shell; and init says why."""
    words = [scripts.get(command, command), "argument"]
    one, other = launch("jobmon", words), launch("tini", words)

    assert one.wait() == ours
    assert one.out.drain().startswith(f"jobmon: {words[0]}: ")
    assert other.wait() == tinis


def test_the_search_goes_on(scripts: dict[str, str], tmp_path: Any, launch: Launch) -> None:
    """A file in $PATH that cannot be executed does not hide one behind it that can; alone it means 126."""
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "noexec").symlink_to("/bin/true")
    path = f"{tmp_path}:{tmp_path}/second"

    assert launch("jobmon", ["noexec"], env={**environment(), "PATH": path}).wait() == 0
    assert launch("jobmon", ["noexec"], env={**environment(), "PATH": f"{tmp_path}:/nowhere"}).wait() == 126


@pytest.mark.parametrize("init", THREE)
def test_a_script_of_no_interpreter_is_the_shells(init: str, scripts: dict[str, str], launch: Launch) -> None:
    """A script that does not name its interpreter is run by /bin/sh, as execvp(3) has it."""
    assert launch(init, [scripts["plain"]]).wait() == 5


@pytest.mark.parametrize("arguments", [[], ["--"], ["sleep", "5"], ["--no", "--", "true"]], ids=" ".join)
def test_a_wrong_call_is_told(arguments: list[str]) -> None:
    """A call that makes no sense starts nothing, says what is wrong and exits with 2."""
    done = subprocess.run(
        [*JOBMON[:-1], *arguments], capture_output=True, text=True, check=False, env=environment()
    )

    assert done.returncode == 2
    assert done.stderr.startswith("jobmon: init: ")


# ---- what CMD has ---------------------------------------------------------------------------


def test_streams_arguments_and_environment_pass(launch: Launch) -> None:
    """CMD has the streams, the directory, the environment and the arguments of init, byte by byte."""
    program = """
import os, sys
print((os.fsencode(sys.argv[1]), os.environb[b"X"], os.getcwd()), sys.stdin.read(), end="")
"""
    done = subprocess.run(
        [*JOBMON, *python(program), b"\xff --", "--group"],
        input=b"typed",
        capture_output=True,
        check=True,
        cwd="/",
        env={**os.environb, **{k.encode(): v.encode() for k, v in environment().items()}, b"X": b"\xfe"},
    )

    assert done.stdout == b"(b'\\xff --', b'\\xfe', '/') typed"
    assert done.stderr == b""


def test_other_descriptors_pass(launch: Launch) -> None:
    """A descriptor that init was given is CMD's, and CMD's alone: its end is seen when CMD closes it."""
    reader, writer = os.pipe()
    program = f"import os; os.write({writer}, b'hello\\n'); os.close({writer}); os.write(1, b'ok'); input()"
    one = launch("jobmon", python(program), pass_fds=(writer,), stdin=subprocess.PIPE)
    os.close(writer)
    lines = kit.Lines(reader)
    one.out.until("ok")

    assert lines.line() == "hello"
    assert lines.line() == ""
    os.close(reader)


def test_standard_output_ends_with_the_command_closing_it(launch: Launch) -> None:
    """Init holds neither standard input nor output: who reads sees CMD close it."""
    one = launch("jobmon", ["sh", "-c", "echo hello; exec >/dev/null; sleep 1000"], stderr=subprocess.DEVNULL)

    assert one.out.line() == "hello"
    assert one.out.line() == ""
    assert one.out.ended
    assert one.process.poll() is None


SPOILT = (signal.SIGHUP, *JOB_CONTROL, signal.SIGINT, signal.SIGRTMIN)
SPOILT_MASK = (signal.SIGUSR1, signal.SIGTERM)


def spoil() -> None:
    """Ignore and block signals, as who starts an init may."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SPOILT_MASK)
    for number in SPOILT:
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python has ignored for itself
        signal.signal(number, signal.SIG_DFL)


def bits(*numbers: int) -> int:
    """Signals as /proc/PID/status has them."""
    return sum(1 << (number - 1) for number in numbers)


def masks(launch: Launch, init: str, **options: Any) -> list[int]:
    """The signals that are blocked, ignored and caught in a CMD."""
    one = launch(init, ["cat", "/proc/self/status"], restore_signals=False, **options)
    one.wait()
    said = dict(line.split(":\t", 1) for line in one.out.drain().splitlines())
    return [kit.ignored_by(said[key]) for key in ("SigBlk", "SigIgn", "SigCgt")]


@pytest.mark.parametrize("init", ["none", "jobmon", "tini"])
def test_the_command_keeps_ignored_and_blocked_signals(init: str, launch: Launch) -> None:
    """CMD has the ignored and blocked signals of the caller of init, as under tini and without an init."""
    assert masks(launch, init, preexec_fn=spoil) == [bits(*SPOILT_MASK), bits(*SPOILT), 0]


def test_under_dumb_init_signals_are_clean(launch: Launch) -> None:
    """Under dumb-init nothing is blocked, and a real-time signal alone is ignored: the test above sees
    something."""
    assert masks(launch, "dumb-init", preexec_fn=spoil) == [0, bits(signal.SIGRTMIN), 0]


@pytest.mark.parametrize("init", ["none", "jobmon"])
def test_an_ignored_sigchld_passes(init: str, launch: Launch) -> None:
    """CMD keeps an ignored SIGCHLD too, and its exit code is seen nevertheless (tini never ends then)."""

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    program = "import os, signal; os._exit(5 if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN else 6)"

    assert launch(init, python(program), preexec_fn=ignore).wait() == 5


def test_what_python_ignores_the_command_does_not(launch: Launch) -> None:
    """Where nothing was ignored or blocked CMD has nothing so, SIGPIPE and SIGXFSZ neither."""

    def clean() -> None:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)

    assert masks(launch, "jobmon", preexec_fn=clean) == [0, 0, 0]


@pytest.mark.parametrize("init", ["none", "jobmon", "tini"])
def test_nohup_outlives_a_hangup(init: str, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup INIT CMD` lives on when SIGHUP comes, to init and to CMD."""
    monkeypatch.setitem(INITS, init, ["nohup", *INITS[init]])
    one = launch(init, ["sh", "-c", "echo up; read line; exit 3"], stdin=subprocess.PIPE)
    one.out.until("up")
    for pid in {one.pid, *(kit.children_of(one.pid))}:
        os.kill(pid, signal.SIGHUP)
    one.close_stdin()

    assert one.wait() == 3


@pytest.mark.parametrize("init", ["jobmon", "dumb-init"])
def test_init_keeps_no_directory_busy(init: str, launch: Launch, tmp_path: Any) -> None:
    """While CMD runs init is in /, as dumb-init is; CMD is where init was started."""
    program = ["sh", "-c", "pwd; read line; exit 0"]
    one = launch(init, program, cwd=tmp_path, stdin=subprocess.PIPE)

    assert one.out.line() == str(tmp_path)
    spin(lambda: state(one.pid) == "S")
    assert os.readlink(f"/proc/{one.pid}/cwd") == "/"
    assert os.readlink(f"/proc/{one.command}/cwd") == str(tmp_path)
    one.close_stdin()
    assert one.wait() == 0


def test_the_command_has_a_group_of_its_own_in_our_session(launch: Launch) -> None:
    """CMD leads a process group in init's own session."""
    one = probe(launch, "jobmon")

    assert os.getpgid(one.command) == one.command
    assert os.getsid(one.command) == os.getsid(one.pid) == os.getsid(0)


def test_init_waits_without_waking(launch: Launch) -> None:
    """While nothing happens init sleeps in one system call: no context switch comes to pass."""
    one = probe(launch, "jobmon")
    spin(lambda: state(one.pid) == "S")

    def switches() -> str:
        return kit.status_of(one.pid)["voluntary_ctxt_switches"]

    one.send(signal.SIGUSR1)
    one.out.until("got 10")
    spin(lambda: state(one.pid) == "S")
    before = switches()
    other = probe(launch, "jobmon")  # tens of milliseconds in which a poll would show
    other.send(signal.SIGTERM)

    assert other.wait() == 42
    assert switches() == before


# ---- orphans --------------------------------------------------------------------------------

# A CMD that leaves COUNT orphans behind, says so, and ends on SIGTERM.
ORPHANS = """
import os, signal
for _ in range({count}):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
        os._exit(0)
    os.wait()
os.write(1, b"pid %d\\n" % os.getpid())
signal.pause()
"""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("init", THREE)
def test_orphans_are_reaped(init: str, place: str, launch: Launch) -> None:
    """What CMD leaves behind is reaped; dumb-init, which is no subreaper, gets it as PID 1 only."""
    one = launch(init, python(ORPHANS.format(count=50)), place)
    one.out.until("pid ")
    spin(lambda: len(kit.children_of(one.pid)) == 1)
    one.send(signal.SIGTERM)

    assert one.wait() == 128 + signal.SIGTERM


def test_orphans_come_to_init(launch: Launch) -> None:
    """Where it is not PID 1, too, what loses its parent becomes init's child, and is reaped when it dies."""
    one = launch("jobmon", ["sh", "-c", "(sleep 1000 & echo $!); exec sleep 1000"])
    orphan = int(one.out.line())
    spin(lambda: kit.processes()[orphan].parent == one.pid)
    os.kill(orphan, signal.SIGKILL)
    spin(lambda: orphan not in kit.processes())

    assert one.process.poll() is None


def test_without_init_orphans_stay_zombies(launch: Launch) -> None:
    """As PID 1 the same CMD alone has fifty zombies: the test above sees what it looks for."""
    one = launch("none", python(ORPHANS.format(count=50)), "pid 1 of unshare")
    one.out.until("pid 1")
    spin(lambda: len(kit.zombies_of(one.pid)) == 50)


@pytest.mark.slow  # thousands of processes
def test_a_storm_of_orphans_is_reaped(launch: Launch) -> None:
    """Three thousand orphans in a row: none stays a zombie, and CMD's signals come through meanwhile."""
    one = launch("jobmon", python(ORPHANS.format(count=3000)))
    one.out.until("pid ", 60)
    spin(lambda: not kit.zombies_of(one.pid))
    one.send(signal.SIGTERM)

    assert one.wait() == 128 + signal.SIGTERM


def test_orphans_live_on_where_init_is_not_pid_1(launch: Launch) -> None:
    """What CMD leaves alive goes to the next reaper, unharmed, where init is not PID 1."""
    one = launch("jobmon", ["sh", "-c", "(trap 'echo TERM' TERM; echo up; sleep 1000 >&-) & exit 3"])

    assert one.wait() == 3
    one.out.until("up")
    assert "TERM" not in one.out.drain()


# ---- the end of a PID namespace -------------------------------------------------------------


@pytest.mark.parametrize("place", list(PLACES)[1:])
def test_what_is_left_may_take_its_leave(place: str, launch: Launch) -> None:
    """As PID 1, when CMD has ended, the others get SIGTERM and end by themselves; the code is CMD's."""
    one = launch("jobmon", python(LEAVES), place)

    assert one.wait() == 3
    assert "bye" in one.out.drain()


@pytest.mark.parametrize("init", ["tini", "dumb-init"])
def test_the_others_kill_what_is_left(init: str, launch: Launch) -> None:
    """Under tini and dumb-init nobody says goodbye but CMD's own session: the test above sees something."""
    one = launch(init, python(LEAVES), "pid 1 of unshare")

    assert one.wait() == 3
    assert "bye" not in one.out.drain()


def test_the_end_is_at_once_when_nothing_is_left(launch: Launch) -> None:
    """Where CMD leaves nothing behind, or what obeys, the namespace ends at once, not after the moment."""
    started = time.monotonic()
    assert launch("jobmon", ["sh", "-c", "sleep 1000 & exit 4"], "pid 1 of unshare").wait() == 4

    assert time.monotonic() - started < MOMENT


@pytest.mark.slow  # the moment is two real seconds
def test_what_does_not_obey_is_killed(launch: Launch) -> None:
    """As PID 1, what ignores SIGTERM lives for a moment and is killed then; nothing survives."""
    program = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo up; sleep 1000' & sleep 1000 & wait $!"
    one = launch("jobmon", ["sh", "-c", program], "pid 1 of unshare")
    one.out.until("up")
    inside = kit.descendants_of(one.process.pid)
    started = time.monotonic()
    os.kill(one.command, signal.SIGKILL)

    assert one.wait() == 128 + signal.SIGKILL
    assert time.monotonic() - started >= MOMENT
    assert len(inside) > 3
    assert not inside & set(kit.processes())


def test_a_stopped_process_takes_its_leave_too(launch: Launch) -> None:
    """A process that was stopped is continued, so that it can act upon SIGTERM."""
    program = "sh -c 'trap \"echo bye; exit\" TERM; echo up; kill -STOP $$; sleep 1000' & read line; exit 3"
    one = launch("jobmon", ["sh", "-c", program], "pid 1 of unshare", stdin=subprocess.PIPE)
    one.out.until("up")
    spin(lambda: "T" in [state(pid) for pid in kit.descendants_of(one.pid)])
    one.close_stdin()

    assert one.wait() == 3
    assert "bye" in one.out.drain()


def test_those_from_outside_take_their_leave_too(launch: Launch) -> None:
    """Who came in from outside, as by `docker exec`, is no child of init's and gets his moment too."""
    need("nsenter")
    words = ["sh", "-c", "echo up; read line; exit 3"]
    one = launch("jobmon", words, "pid 1 of unshare", stdin=subprocess.PIPE)
    one.out.until("up")
    also = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    guest = launch("none", ["nsenter", f"--target={one.pid}", "--pid", "--mount", *also, *python(POLITE)])
    guest.out.until("up\n")
    started = time.monotonic()
    one.close_stdin()

    assert one.wait() == 3
    assert guest.wait() == 7
    assert "bye" in guest.out.drain()
    assert time.monotonic() - started < MOMENT  # at once, not after the moment


def test_signals_reach_those_who_are_left(launch: Launch) -> None:
    """A signal that comes while the last are taking their leave goes to them all."""
    told = "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'told'))\n"
    slow = LEAVES.replace("signal.signal(signal.SIGTERM, ", f"{told}signal.signal(signal.SIGUSR1, ")
    one = launch("jobmon", python(slow), "pid 1 of unshare")
    one.out.until("told")
    one.send(signal.SIGUSR1)
    one.out.until("bye")

    assert one.wait() == 3


def test_leftovers_may_take_their_leave_anywhere(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --leftovers the processes that CMD leaves get SIGTERM, in any session, also where init is not
    PID 1; the code is CMD's, and the end is at once when nothing is left."""
    monkeypatch.setitem(INITS, "jobmon", [*JOBMON[:-1], "--leftovers", "100s", "--"])
    one = launch("jobmon", python(LEAVES))

    assert one.wait() == 3
    assert "bye" in one.out.drain()


def test_dumb_init_tells_the_session_of_the_command(launch: Launch) -> None:
    """dumb-init sends SIGTERM to the processes that CMD leaves in its own session, and to no other."""
    assert launch("dumb-init", python(LEAVES)).wait() == 3
    here = launch("dumb-init", python(LEAVES.replace("os.setsid()", "pass")))

    assert here.wait() == 3
    here.out.until("bye")


@pytest.mark.parametrize("place", ["child", "pid 1 of unshare"])
def test_leftovers_that_do_not_obey_are_killed(
    place: str, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --leftovers a process that ignores SIGTERM has the given time, and is killed; nothing survives."""
    monkeypatch.setitem(INITS, "jobmon", [*JOBMON[:-1], "--leftovers", "100ms", "--"])
    program = "setsid sh -c 'trap \"\" TERM; echo up; sleep 1000; sleep 1000' & read line; exit 3"
    one = launch("jobmon", ["sh", "-c", program], place, stdin=subprocess.PIPE)
    one.out.until("up")
    inside = kit.descendants_of(one.process.pid)
    started = time.monotonic()
    one.close_stdin()

    assert one.wait() == 3
    assert time.monotonic() - started >= 0.1
    assert len(inside) > 1
    assert not inside & set(kit.processes())


def test_a_signal_reaches_the_leftovers(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --leftovers a signal that comes while they take their leave goes to them, rewritten as for CMD."""
    options = ["--leftovers", "100s", "--rewrite", "USR2=USR1"]
    monkeypatch.setitem(INITS, "jobmon", [*JOBMON[:-1], *options, "--"])
    told = "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'told'))\n"
    slow = LEAVES.replace("signal.signal(signal.SIGTERM, ", f"{told}signal.signal(signal.SIGUSR1, ")
    one = launch("jobmon", python(slow))
    one.out.until("told")
    one.send(signal.SIGUSR2)
    one.out.until("bye")

    assert one.wait() == 3


# ---- the terminal ---------------------------------------------------------------------------


# (dumb-init, which makes a session of its own for CMD, cannot take the terminal with it as PID 1 here.)
@pytest.mark.parametrize(
    ("init", "place"),
    [*((init, "child") for init in THREE), ("jobmon", "pid 1 of unshare"), ("tini", "pid 1 of unshare")],
)
def test_ctrl_c_reaches_the_command(init: str, place: str, launch: Launch, screen: Screen) -> None:
    """On a terminal CMD is in the foreground, so Ctrl-C reaches it, once, by the terminal's own hand."""
    one = launch(init, python(PROBE), place, **screen.options())
    screen.until("pid ")
    screen.type("\x03")
    screen.until(f"got {int(signal.SIGINT)}")
    screen.type("\x1c")
    screen.until(f"got {int(signal.SIGQUIT)}")

    assert screen.foreground == one.command
    assert screen.text.count(f"got {int(signal.SIGINT)}") == 1
    one.send(signal.SIGTERM)
    assert one.wait() == 42


@pytest.mark.parametrize("init", THREE)
def test_a_command_on_a_terminal_can_talk(init: str, launch: Launch, screen: Screen) -> None:
    """CMD reads what is typed and its end by Ctrl-C is seen: 130."""
    one = launch(init, ["sh", "-c", "read line; echo heard $line; exec sleep 1000"], **screen.options())
    screen.type("hello\n")
    screen.until("heard hello")
    screen.type("\x03")

    assert one.wait() == 130


def test_a_terminal_somewhere_else_is_found(launch: Launch, screen: Screen) -> None:
    """With all streams redirected, too, CMD is in the foreground of the session's terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    options = {**screen.options(), "stdin": null, "stdout": subprocess.PIPE, "stderr": null}
    options["preexec_fn"] = lambda: fcntl.ioctl(screen.slave, termios.TIOCSCTTY, 0)
    one = launch("jobmon", python(PROBE), **options)
    one.out.until("pid ")

    assert screen.foreground == one.command
    screen.type("\x03")
    one.out.until("got 2")
    os.close(null)


def test_a_hangup_reaches_the_command(launch: Launch) -> None:
    """When the terminal goes away, CMD learns it by SIGHUP."""
    screen = Screen()
    reader, writer = os.pipe()
    program = PROBE.replace("os.write(1,", f"os.write({writer},")
    one = launch("jobmon", python(program), pass_fds=(writer,), **screen.options())
    os.close(writer)
    lines = kit.Lines(reader)
    lines.until("pid ")
    screen.close()
    lines.until("got 1\n")
    one.send(signal.SIGTERM)

    assert one.wait() == 42
    lines.destroy()


@pytest.mark.parametrize("init", ["jobmon", "dumb-init"])
def test_ctrl_z_that_nobody_could_undo_stops_nothing(init: str, launch: Launch, screen: Screen) -> None:
    """Where no shell could say `fg`, Ctrl-Z leaves CMD running: a container's terminal does not hang."""
    one = launch(init, ["cat"], **screen.options())
    screen.type("first\n")
    screen.until("first\r\nfirst\r\n")
    screen.type("\x1a")
    screen.until("^Z")
    screen.type("second\n")
    screen.until("second\r\nsecond\r\n")
    screen.type("\x04")

    assert one.wait() == 0


def test_under_tini_it_stops_for_good(launch: Launch, screen: Screen) -> None:
    """Under tini the same Ctrl-Z stops CMD, and nobody continues it: the test above sees something."""
    one = launch("tini", ["cat"], **screen.options())
    screen.type("first\n")
    screen.until("first\r\nfirst\r\n")
    screen.type("\x1a")
    spin(lambda: state(one.command) == "T")


def test_a_stop_by_signal_stays(launch: Launch, screen: Screen) -> None:
    """A SIGTSTP that was sent to init, on a terminal too, stops CMD until SIGCONT: somebody wanted that."""
    one = launch("jobmon", ["cat"], **screen.options())
    screen.type("first\n")
    screen.until("first\r\nfirst\r\n")
    one.send(signal.SIGTSTP)
    spin(lambda: state(one.command) == "T")
    one.send(signal.SIGWINCH)  # whatever it has to do about the stop comes before this
    spin(lambda: state(one.pid) == "S")
    assert state(one.command) == "T"
    one.send(signal.SIGCONT)
    screen.type("second\n")
    screen.until("second\r\nsecond\r\n")


# ---- under a shell with job control -----------------------------------------------------------


def test_ctrl_z_and_fg(launch: Launch, screen: Screen, tmp_path: Any) -> None:
    """Ctrl-Z gives the shell back, `fg` gives CMD the terminal again, and Ctrl-C ends it: as without init."""
    shell = Shell(launch, screen, tmp_path)
    init, command = shell.run("$INIT sh talk")
    shell.converse("first")
    screen.type("\x1a")
    screen.until("Stopped")

    assert shell.answer() == str(128 + signal.SIGTSTP)
    assert (state(init), state(command)) == ("T", "T")
    shell.type("fg")
    spin(lambda: screen.foreground == command)
    shell.converse("second")
    screen.type("\x1a")
    spin(lambda: screen.drain().count("Stopped") == 2)
    shell.type("fg")
    spin(lambda: screen.foreground == command)
    screen.type("\x03")
    assert shell.answer() == "130"


def test_fg_gives_the_terminal_at_once(launch: Launch, screen: Screen, tmp_path: Any) -> None:
    """`fg` puts CMD into the foreground though it asks for nothing, so that Ctrl-C is its own."""
    shell = Shell(launch, screen, tmp_path)
    _, command = shell.run("$INIT sh nap")
    screen.type("\x1a")
    screen.until("Stopped")
    shell.type("fg")
    spin(lambda: screen.foreground == command)
    screen.type("\x03")

    assert shell.answer() == "130"


def test_ctrl_z_and_bg(launch: Launch, screen: Screen, tmp_path: Any) -> None:
    """`bg` lets CMD go on in the background, and the terminal stays the shell's; `kill %1` ends it."""
    shell = Shell(launch, screen, tmp_path)
    init, command = shell.run("$INIT sh nap")
    screen.type("\x1a")
    screen.until("Stopped")
    shell.type("bg")
    spin(lambda: (state(init), state(command)) == ("S", "S"))

    assert screen.foreground == shell.bash
    shell.type("kill %1; wait %1")
    assert shell.answer() == "143"


def test_the_background_has_no_terminal(launch: Launch, screen: Screen, tmp_path: Any) -> None:
    """Started with `&`, CMD does not take the terminal; when it wants to read, it stops until `fg`."""
    shell = Shell(launch, screen, tmp_path)
    init, command = shell.run("$INIT sh talk &")
    assert screen.foreground == shell.bash
    spin(lambda: (state(init), state(command)) == ("T", "T"))
    shell.type("fg")
    spin(lambda: screen.foreground == command)
    shell.converse("hello")
    screen.type("\x04")

    assert shell.answer() == "0"


def test_fg_of_a_running_command(launch: Launch, screen: Screen, tmp_path: Any) -> None:
    """A running CMD that `fg` brings to the front can be ended with Ctrl-C."""
    shell = Shell(launch, screen, tmp_path)
    init, _ = shell.run("$INIT sh nap &")
    shell.type("fg")
    spin(lambda: screen.foreground not in (shell.bash, 0))
    screen.type("\x03")

    assert shell.answer() == "130"
    assert state(init) == ""


def test_a_running_command_gets_the_terminal_when_it_asks(
    launch: Launch, screen: Screen, tmp_path: Any
) -> None:
    """A running CMD that `fg` brings to the front can read from the terminal whenever it wants to."""
    os.mkfifo(tmp_path / "gate")
    shell = Shell(launch, screen, tmp_path)
    shell.run("$INIT sh later &")
    shell.type("fg")
    spin(lambda: screen.foreground != shell.bash)
    (tmp_path / "gate").write_text("go\n")
    shell.converse("hello")
    screen.type("\x04")

    assert shell.answer() == "0"


def test_a_pipeline_stops_and_goes_on(launch: Launch, screen: Screen, tmp_path: Any) -> None:
    """Ctrl-Z stops all of a pipeline that init is in, as if CMD were in it itself."""
    shell = Shell(launch, screen, tmp_path)
    _, command = shell.run("$INIT sh talk | cat")
    screen.type("\x1a")
    screen.until("Stopped")
    assert {state(pid) for pid in kit.children_of(shell.bash)} == {"T"}
    shell.type("fg")
    spin(lambda: screen.foreground == command)
    screen.type("\x04")

    assert shell.answer() == "0"


def test_the_terminal_is_given_back(launch: Launch, screen: Screen, tmp_path: Any) -> None:
    """A script that runs init and then reads from the terminal can: the foreground is its own again."""
    shell = Shell(launch, screen, tmp_path)
    shell.type("sh after")
    screen.until("next\r\n")
    screen.type("hello\n")
    screen.until("heard hello")


def test_tini_does_not_give_it_back(launch: Launch, screen: Screen, tmp_path: Any) -> None:
    """After tini the same script is stopped when it reads: the test above sees something."""
    need("tini")
    shell = Shell(launch, screen, tmp_path, "tini")
    shell.type("sh after")
    screen.until("Stopped")


def test_ctrl_z_in_a_container_stops_nothing(launch: Launch, screen: Screen) -> None:
    """As PID 1 that leads its terminal's session, as in `docker run -it`, Ctrl-Z hangs nothing."""
    need("setsid")
    need_place("pid 1 of unshare")
    if os.geteuid() != 0:
        pytest.skip("needs root, to move a terminal to another session")
    words = [*PLACES["pid 1 of unshare"], "setsid", "--ctty", *JOBMON, "cat"]
    one = launch("none", words, **screen.options())
    screen.type("first\n")
    screen.until("first\r\nfirst\r\n")
    screen.type("\x1a")
    screen.until("^Z")
    screen.type("second\n")
    screen.until("second\r\nsecond\r\n")
    screen.type("\x04")

    assert one.wait() == 0
