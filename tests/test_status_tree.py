"""`status --tree`: the processes of a job with their command lines, from /proc to the terminal."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from fcntl import ioctl
from termios import TIOCSWINSZ

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import Lines, settled

from jobmon.cli import formatting, processtree
from jobmon.client import CommandPipe
from jobmon.lean import fastjson
from jobmon.linux.control import replies
from jobmon.linux.kernel import procfs
from jobmon.linux.kernel.procfs import Stat
from jobmon.protocol import CONTROL, BadRequest, Connection, JobStatus, Request, encode, job_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kit import Daemon

    Process = tuple[int, int, str]

FAMILY = (
    (10, 1, "leader"),
    (20, 1, "an orphan"),
    (11, 10, "first\nchild"),
    (12, 10, "second child"),
    (13, 11, "grandchild"),
)


def status(*processes: Process, count: int | None = None) -> JobStatus:
    """A running job with these processes, or with `count`, of which these are told."""
    many = len(processes) if count is None else count
    return JobStatus("web", "running", True, 10, 1, processes=many, tree=processes)


def drawn(
    job: JobStatus, lines: processtree.Lines = processtree.FINE, columns: int | None = None
) -> list[str]:
    """The lines of a job's tree."""
    return list(processtree.branches(job, lines, columns))


# ---- drawing ---------------------------------------------------------------------------------


def test_children_stand_below_their_parents() -> None:
    """The leader comes first, each child below its parent, what has no parent in the job at the left."""
    assert drawn(status(*FAMILY)) == [
        "├─ 10 leader",
        "│  ├─ 11 first\\nchild",
        "│  │  └─ 13 grandchild",
        "│  └─ 12 second child",
        "└─ 20 an orphan",
    ]


def test_a_plain_tree_is_ascii() -> None:
    """The same tree for those who cannot show its lines."""
    lines = drawn(status(*FAMILY, (21, 20, "\u00fc" * 20)), processtree.PLAIN, 12)

    assert lines[:3] == ["|- 10 leader", "|  |- 11 ...", "|  |  `- ..."]
    assert lines[-1] == "   `- 21 ..."


def test_who_is_not_told_is_counted() -> None:
    """Where a job has more processes than are told, the tree says so, and a whole one says nothing."""
    assert drawn(status(*FAMILY[:2], count=5))[-1] == "… and 3 more"
    assert drawn(status(count=0)) == []


@pytest.mark.parametrize("columns", [5, 14, 15, 16, 80])
def test_a_terminal_is_not_exceeded(columns: int) -> None:
    """No line is wider than the terminal, wide characters counted as two."""
    job = status((10, 1, "\u65e5\u672c\u8a9e \u65e5\u672c\u8a9e"), (11, 10, "x" * 100))

    assert all(formatting.width(line) <= columns for line in drawn(job, processtree.FINE, columns))
    assert len(drawn(job, processtree.FINE, columns)) == 2


pids = st.integers(1, 12)
anything = st.lists(st.tuples(pids, pids, st.text(max_size=3)), max_size=12, unique_by=lambda one: one[0])


@given(anything)
def test_everybody_is_drawn_once(processes: list[Process]) -> None:
    """Each process has just one line, also where what was read of parents makes no sense."""
    lines = drawn(status(*processes))

    assert sorted(int(line.lstrip("├└│─ ").split()[0]) for line in lines) == sorted(
        pid for pid, _, _ in processes
    )


def test_a_deep_tree_is_drawn() -> None:
    """A chain of two thousand processes is no deeper than the drawing can go."""
    chain = [(pid, pid - 1, "sh") for pid in range(1, 2001)]

    assert len(drawn(status(*chain))) == 2000


@pytest.mark.parametrize(
    ("environ", "poor"),
    [
        ({}, True),
        ({"LANG": "C"}, True),
        ({"LANG": "POSIX"}, True),
        ({"LANG": "C.UTF-8"}, False),
        ({"LANG": "de_DE.UTF-8"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True),
        ({"LC_CTYPE": "C.UTF-8"}, True),
        ({"LC_CTYPE": "de_DE.UTF-8"}, False),
        ({"LANG": "C", "LC_ALL": "C.UTF-8"}, False),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, True),
    ],
    ids=str,
)
def test_without_a_locale_there_are_no_fine_lines(environ: dict[str, str], poor: bool) -> None:
    """Python's own UTF-8 where no locale is set does not count: the terminal has not heard of it."""
    assert processtree._is_poor(environ) is poor


@pytest.mark.parametrize(
    ("encoding", "able"), [("utf-8", True), ("ascii", False), ("latin-1", False), ("no", False)]
)
def test_an_encoding_without_the_lines_gets_plain_ones(encoding: str, able: bool) -> None:
    """What standard output cannot encode is not tried."""
    assert processtree._can_write(encoding) is able


# ---- the wire --------------------------------------------------------------------------------


def test_the_wish_and_the_answer_travel() -> None:
    """A request for trees arrives as it was sent, and so does a tree."""
    request, job = Request(1, "status", ("web",), tree=True), status(*FAMILY)

    assert Connection(CONTROL).receive(encode(request)) == [request]
    assert job_status(fastjson.decode(fastjson.encode(job.body()))) == job
    assert "tree" not in request.replace(tree=False).body()


@pytest.mark.parametrize("wrong", [{}, [1], [[1, 2]], [[1, 2, 3]], [[True, 1, "x"]], [[1, 2, "x", 3]], "x"])
def test_a_tree_that_is_none_is_refused(wrong: object) -> None:
    """A client does not draw what is no tree."""
    with pytest.raises(ValueError, match="list of processes"):
        job_status({**status().body(), "tree": wrong})


def test_a_wish_of_the_wrong_type_is_refused() -> None:
    """The daemon says which argument is wrong."""
    data = encode(Request(1, "status", tree="yes"))  # type: ignore[arg-type]
    (answer,) = Connection(CONTROL).receive(data)

    assert isinstance(answer, BadRequest)
    assert '"tree" must be true or false' in answer.message


# ---- /proc -----------------------------------------------------------------------------------


@pytest.fixture
def cat() -> Iterator[subprocess.Popen[bytes]]:
    """A child with an argument that is not easily shown; it is executing its program."""
    with subprocess.Popen([b"cat", b"-", b"\xff\n"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def fact_of(pid: int, state: str = "") -> Stat:
    """What /proc says of a process, in another state if one is given."""
    fact = procfs.stat(pid)
    assert fact is not None
    fact.state = state or fact.state
    return fact


def test_a_command_line_is_one_string(cat: subprocess.Popen[bytes]) -> None:
    """Arguments are joined by spaces; what is not UTF-8 is replaced, so that it can be sent."""
    assert procfs.command(fact_of(cat.pid)) == "cat - \ufffd\n"


def test_who_hangs_in_the_kernel_is_not_asked(cat: subprocess.Popen[bytes]) -> None:
    """In the state D only the name is told, which takes no lock of the process."""
    fact = fact_of(cat.pid, "D")

    assert procfs.command(fact) == f"[{fact.comm}]"


def test_who_has_no_command_line_has_a_name(cat: subprocess.Popen[bytes]) -> None:
    """A zombie is named in brackets, and so is one that has gone meanwhile."""
    cat.kill()
    os.waitid(os.P_PID, cat.pid, os.WEXITED | os.WNOWAIT)
    fact = fact_of(cat.pid)

    assert fact.state == "Z"
    assert procfs.command(fact) == f"[{fact.comm}]"

    cat.wait()

    assert procfs.command(fact) == f"[{fact.comm}]"


def test_a_long_command_line_is_cut() -> None:
    """Of megabytes of arguments only the beginning is read."""
    with subprocess.Popen(["cat", "-", "x" * 100_000], stdin=subprocess.PIPE) as child:
        settled(child.pid, "cat")
        line = procfs.command(fact_of(child.pid))
        child.kill()

    assert line == ("cat - " + "x" * 5000)[:4096] + "..."


# ---- the whole way ---------------------------------------------------------------------------

# A shell that says who it is, starts the next one below itself, and stays.
STEP = (
    "echo $0 $$ > told; "
    'case $0 in leader) sh -c "$STEP" child & ;; child) sh -c "$STEP" grandchild & ;; esac; '
    "read never < never"
)


@pytest.fixture
def three(daemon: Callable[..., Daemon]) -> tuple[Daemon, int, int, int]:
    """A daemon, and the leader, the child and the grandchild of its job."""
    family = {"command": ["sh", "-c", STEP, "leader"], "env": {"STEP": STEP}}
    one = daemon({"jobs": {"three": family, "none": {"command": "true"}}})
    told = one.fifo("told")
    one.fifo("never")
    assert one.run_cli("start", "three").code == 0
    pids = dict(told.line().split() for _ in range(3))
    return one, int(pids["leader"]), int(pids["child"]), int(pids["grandchild"])


def test_a_job_shows_its_processes(three: tuple[Daemon, int, int, int]) -> None:
    """The table and the line count them, the tree names them, JSON has them too."""
    one, leader, child, grandchild = three
    with CommandPipe(one.control) as pipe:
        (job,) = pipe.status("three", tree=True)
    environ = {**one.environ, "LC_ALL": "C.UTF-8"}
    code, said, wrong = one.run_cli("status", "three", "--tree", env=environ)
    head, *lines = said.splitlines()

    table = [row.split()[:4] for row in one.run_cli("status").out.splitlines()]

    assert job.processes == 3
    assert job.tree == (
        (leader, one.pid, f"sh -c {STEP} leader"),
        (child, leader, f"sh -c {STEP} child"),
        (grandchild, child, f"sh -c {STEP} grandchild"),
    )
    assert (code, wrong) == (0, "")
    assert head.startswith(f"three: running, pid {leader}, 3 processes, up ")
    assert lines == [
        f"└─ {leader} sh -c {STEP} leader",
        f"   └─ {child} sh -c {STEP} child",
        f"      └─ {grandchild} sh -c {STEP} grandchild",
    ]
    assert ["three", "running", str(leader), "3"] in table
    assert json.loads(one.run_cli("status", "three", "--tree", "--json").out)["tree"] == [
        *map(list, job.tree)
    ]
    assert json.loads(one.run_cli("status", "three", "--json").out)["tree"] is None


def test_trees_of_all_jobs(three: tuple[Daemon, int, int, int]) -> None:
    """Without a name every job has its line and its tree, in ASCII where there is no locale."""
    one, leader, _, _ = three
    said = one.run_cli("status", "--tree", env={**one.environ, "LC_ALL": "C"})
    alone = one.run_cli("status", "none", "--tree")

    assert said.code == 0
    assert said.out.splitlines()[0].startswith("three: running")
    assert said.out.splitlines()[1].startswith(f"`- {leader} sh -c ")
    assert said.out.splitlines()[-1] == alone.out.strip() == "none: stopped, never started"
    assert alone.code == 1


def test_a_tree_on_a_terminal_keeps_to_its_width(three: tuple[Daemon, int, int, int]) -> None:
    """On a terminal of thirty columns no line is longer, and a pipe gets them whole."""
    one, leader, _, grandchild = three
    ours, its = os.openpty()
    ioctl(its, TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    environ = {**one.environ, "LC_ALL": "C.UTF-8"}
    environ.pop("COLUMNS", None)
    terminal = Lines(ours)
    process = one.start_cli("status", "three", "--tree", env=environ, stdout=its)
    os.close(its)
    process.communicate()
    terminal.until(str(grandchild))
    lines = terminal.text.splitlines()
    terminal.destroy()

    assert lines[1] == f"└─ {leader} sh -c {STEP}"[:29] + "…"
    assert all(len(line) <= 30 for line in lines[1:])


def test_a_tree_has_bounds() -> None:
    """A job of very many processes costs the daemon no more than the bound; its leader is told first."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        pids = [os.getpid(), child.pid, 1 << 30]
        shown, gone = replies.tree(pids, child.pid, 2)
        everybody, gone_of_all = replies.tree(pids, child.pid, 9)
        assert child.stdin is not None
        child.stdin.write(b"\n")

    assert [pid for pid, _, _ in shown] == [child.pid, os.getpid()]
    assert gone == 0
    assert (len(everybody), gone_of_all) == (2, 1)
    assert replies.tree(pids, None, 0) == ((), 0)
