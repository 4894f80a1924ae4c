"""Errands: work in a child of the daemon, against the real kernel."""

from __future__ import annotations

import os
import signal

import kit
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmon.core import spec
from jobmon.core.plan import Change, Keys, Plan
from jobmon.linux.daemon.reload import _KINDS
from jobmon.linux.kernel.loop import SIGNAL, Loop
from jobmon.linux.kernel.signals import SignalSource
from jobmon.linux.processes import worker
from jobmon.linux.processes.children import Children
from jobmon.linux.processes.tracker import Tree
from jobmon.linux.processes.worker import Errand, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Site:
    """The surroundings of an errand; `results` are all that it told."""

    def __init__(self) -> None:
        kit.be_single_threaded()
        self._signals = SignalSource((signal.SIGCHLD,))
        self._loop = Loop(self._failed)
        self.children = Children(self._loop, lambda *_: None, Tree("0" * 16))
        self._loop.add_reader(self._signals.fileno(), self._on_signal, SIGNAL)
        self.results: list[Result] = []

    def begin(self, work: Callable[[], object], seconds: float = kit.DEADLINE) -> Errand:
        """Begin work that gives one piece."""
        return self.begin_all(lambda: (work() for _ in range(1)), seconds)

    def begin_all(self, work: Callable[[], Iterable[object]], seconds: float = kit.DEADLINE) -> Errand:
        """Begin work that gives several."""
        return Errand(self._loop, self.children, work, self.results.append, kinds=_KINDS, seconds=seconds)

    def finish(self) -> Result:
        """Turn until all is told and reaped; return the result, which must be the only one."""
        while not self.results or self.children.guests:
            self._loop.run_once(block=True)
        (result,) = self.results
        return result

    def _failed(self, _where: str, error: Exception) -> None:
        raise AssertionError("a handler failed") from error

    def _on_signal(self, _events: int) -> None:
        if self._signals.read():
            self.children.sweep()

    def close(self) -> None:
        self._signals.close()
        self._loop.close()


@pytest.fixture
def site() -> Iterator[Site]:
    """A place for errands, where nothing stays open."""
    before = kit.fds_of(os.getpid())
    one = Site()
    yield one
    one.close()
    assert kit.fds_of(os.getpid()) == before


def lose_the_pipe() -> None:
    """Work that cannot tell what it comes to."""
    os.closerange(3, 100)


def wait_for_ever() -> None:
    """Work that has no end."""
    signal.pause()


def test_it_tells_what_the_work_comes_to(site: Site) -> None:
    """However large it is, in its order, and once."""
    pieces = ("x" * 3_000_000, {"a": (1, 2.5, None)}, *(spec.JobSpec(f"{n}", "true") for n in range(2000)))
    site.begin_all(lambda: iter(pieces))

    assert site.finish() == Result(pieces)


def test_its_child_holds_nothing_of_the_daemon(site: Site) -> None:
    """The standard streams and the pipe are all that is open there, and no lock outlives its holder."""
    site.begin(lambda: len(os.listdir("/proc/self/fd")))

    assert site.finish().pieces == (5,)  # with that of the listing


def test_an_exception_is_told_with_its_place(site: Site) -> None:
    """It goes no further than the child."""
    site.begin(lambda: 1 // 0)
    result = site.finish()

    assert (result.pieces, result.trouble) == ((), "ZeroDivisionError('integer division or modulo by zero')")
    assert result.place.startswith(__file__)


@pytest.mark.parametrize(
    ("work", "how"),
    [
        (lambda: os._exit(3), "exited with 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
        (lose_the_pipe, "exited with 0"),
    ],
)
def test_a_crash_is_told(site: Site, work: Callable[[], object], how: str) -> None:
    """However the child ends; the pieces that it had given by then do not count."""
    site.begin_all(lambda: (piece() for piece in (int, work)))

    assert site.finish() == Result((), f"the process that does it {how}")


def test_too_long_is_told(site: Site) -> None:
    """And the child is killed."""
    site.begin(wait_for_ever, 0.02)

    assert site.finish().trouble == "it takes longer than 0.02 seconds: does a file system not answer?"


def test_too_much_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result has a bound, and the child is killed."""
    monkeypatch.setattr(worker, "MAX_BYTES", 1 << 20)
    site.begin(lambda: "x" * (2 << 20))

    assert site.finish().trouble == "it comes to more than 1 MiB"


def test_it_can_be_stopped(site: Site) -> None:
    """Its end is told all the same."""
    site.begin(wait_for_ever).stop()

    assert site.finish() == Result((), "the process that does it was killed by SIGKILL")


TEXTS = st.text(max_size=3)
ADDRESSES = st.tuples(st.tuples(TEXTS, st.integers(1, 65535)))
WAYS = (
    st.builds(spec.NotifyReadiness),
    st.builds(spec.FdReadiness, fd=st.integers(3, 255)),
    st.builds(spec.ExecReadiness, command=TEXTS | st.tuples(TEXTS)),
    st.builds(spec.TcpReadiness, addresses=ADDRESSES, owned=st.booleans()),
    st.builds(spec.HttpReadiness, host=TEXTS, path=TEXTS, addresses=ADDRESSES),
    st.builds(spec.LogReadiness, pattern=TEXTS, interval=st.floats(0, 10)),
)
JOBS = st.builds(
    spec.JobSpec,
    name=TEXTS,
    command=TEXTS | st.tuples(TEXTS, TEXTS),
    env=st.dictionaries(TEXTS, TEXTS, max_size=2),
    restart=st.sampled_from(list(spec.Restart)),
    success_codes=st.frozensets(st.integers(0, 255) | TEXTS, max_size=3),
    kill_scope=st.sampled_from(list(spec.KillScope)),
    essential=st.sampled_from(list(spec.Essential)),
    type=st.sampled_from(list(spec.JobType)),
    ready=st.none() | st.one_of(*WAYS),
    watchdog=st.none() | st.floats(0, 10),
    after=st.tuples() | st.tuples(TEXTS, TEXTS),
)
KEYS = st.builds(Keys, hot=st.tuples(TEXTS), restart=st.tuples())


@given(st.builds(Plan, added=st.tuples(JOBS), changed=st.tuples(st.builds(Change, spec=JOBS)), daemon=KEYS))
def test_what_travels_arrives_as_it_was(plan: Plan) -> None:
    """Specs with all that they hold."""
    assert worker.unpack(worker.pack(plan), _KINDS) == plan
