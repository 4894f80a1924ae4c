"""The event loop: order, isolation, deadlines over one timerfd, and nothing left behind."""

from __future__ import annotations

import os
import select
import signal
import time

import kit
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmon.linux.kernel import loop as loops
from jobmon.linux.kernel import syscalls
from jobmon.linux.kernel.loop import CHILD, COMMAND, EXEC, READ, SIGNAL, TIMER, UNSET, WRITE, Handle, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def never(_events: int) -> None:
    pytest.fail("it was called")


class Pipes:
    """A loop, pipes that it may watch, and what it complained about."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, Exception]] = []
        self.loop = Loop(lambda where, error: self.failures.append((where, error)))
        self._open: list[int] = []

    def pipe(self, *, ready: bool = True) -> tuple[int, int]:
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._open += ends
        if ready:
            os.write(ends[1], b"x")
        return ends

    def close(self) -> None:
        self.loop.close()
        for fd in self._open:
            os.close(fd)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    made.close()


def test_a_turn_dispatches_what_is_ready_and_nothing_else(pipes: Pipes) -> None:
    """The handler of a ready descriptor is called once a turn, with its events; others are not."""
    seen: list[tuple[str, int]] = []
    pipes.loop.add_reader(pipes.pipe()[0], lambda events: seen.append(("ready", events)), COMMAND)
    pipes.loop.add_reader(pipes.pipe(ready=False)[0], lambda events: seen.append(("idle", events)), COMMAND)
    pipes.loop.run_once(block=False)

    assert seen == [("ready", READ)]


def test_without_block_a_turn_does_not_wait(pipes: Pipes) -> None:
    """With births outstanding the loop only looks."""
    pipes.loop.add_reader(pipes.pipe(ready=False)[0], never, COMMAND)
    pipes.loop.run_once(block=False)


def test_what_is_ready_together_comes_by_priority(pipes: Pipes) -> None:
    """An exec's outcome before a death, a death before a command about it, a success before a time-out."""
    order: list[int] = []
    for priority in (TIMER, COMMAND, EXEC, SIGNAL, CHILD):
        handler = order.append
        pipes.loop.add_reader(pipes.pipe()[0], lambda _, p=priority, h=handler: h(p), priority)  # type: ignore[misc]
    pipes.loop.run_once(block=True)

    assert order == [EXEC, CHILD, SIGNAL, COMMAND, TIMER]


def test_a_source_removed_in_a_turn_is_not_called_in_it(pipes: Pipes) -> None:
    """A handler may end another source whose event is already here."""
    first, second = pipes.pipe()[0], pipes.pipe()[0]
    called: list[int] = []

    def end_the_other(fd: int, other: int) -> Callable[[int], None]:
        def handler(_events: int) -> None:
            called.append(fd)
            pipes.loop.remove_reader(other)

        return handler

    pipes.loop.add_reader(first, end_the_other(first, second), COMMAND)
    pipes.loop.add_reader(second, end_the_other(second, first), COMMAND)
    pipes.loop.run_once(block=True)

    assert len(called) == 1


def test_a_handler_that_fails_is_disabled_and_reported_alone(pipes: Pipes) -> None:
    """One bad source costs itself; the others of the same turn are served, and the loop lives."""
    served: list[int] = []
    bad = pipes.pipe()[0]
    pipes.loop.add_reader(bad, lambda _: 1 // 0, EXEC)  # type: ignore[arg-type]
    pipes.loop.add_reader(pipes.pipe()[0], served.append, COMMAND)
    pipes.loop.run_once(block=True)
    pipes.loop.run_once(block=True)

    assert [(where, type(error)) for where, error in pipes.failures] == [
        (f"descriptor {bad}", ZeroDivisionError)
    ]
    assert len(served) == 2


def test_a_source_waits_for_what_it_is_told_to(pipes: Pipes) -> None:
    """Modify changes what is waited for."""
    seen: list[int] = []
    _, writer = pipes.pipe()
    pipes.loop.add_reader(writer, seen.append, COMMAND, 0)
    pipes.loop.run_once(block=False)
    assert seen == []

    pipes.loop.modify_reader(writer, WRITE)
    pipes.loop.run_once(block=True)
    assert seen == [WRITE]


def test_removing_is_harmless_twice(pipes: Pipes) -> None:
    """Cleaning up needs no knowledge of what was added."""
    fd, _ = pipes.pipe()
    pipes.loop.remove_reader(fd)
    pipes.loop.add_reader(fd, never, COMMAND)
    pipes.loop.remove_reader(fd)
    pipes.loop.remove_reader(fd)
    pipes.loop.run_once(block=False)


def test_what_was_removed_before_closing_never_comes_back(pipes: Pipes) -> None:
    """A forked child that holds the same open file cannot make epoll report a closed descriptor."""
    fd, _ = pipes.pipe()
    copy = os.dup(fd)  # what a child before its exec would hold
    pipes.loop.add_reader(fd, never, COMMAND)
    pipes.loop.remove_reader(fd)
    pipes.loop.run_once(block=False)

    with select.epoll() as plain:  # the control: closed without being removed, it is reported for ever
        plain.register(fd, READ)
        gone = os.dup(fd)
        plain.register(gone, READ)
        os.close(gone)
        assert gone in dict(plain.poll(0))
    os.close(copy)


def test_a_turn_survives_a_signal(pipes: Pipes) -> None:
    """EINTR is nobody's business: the wait goes on."""
    reader, writer = pipes.pipe(ready=False)
    seen: list[int] = []
    pipes.loop.add_reader(reader, seen.append, COMMAND)
    before = signal.signal(signal.SIGALRM, lambda *_: os.write(writer, b"x") and None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        pipes.loop.run_once(block=True)
    finally:
        signal.signal(signal.SIGALRM, before)

    assert seen == [READ]


def test_many_sources_ready_at_once_all_get_their_turn(pipes: Pipes) -> None:
    """More than one batch of ready descriptors starves nobody."""
    count = loops._BATCH + 50
    seen: set[int] = set()
    for _ in range(count):
        fd, _ = pipes.pipe()
        pipes.loop.add_reader(fd, lambda _, fd=fd: seen.add(fd), COMMAND)  # type: ignore[misc]
    pipes.loop.run_once(block=True)
    assert len(seen) == loops._BATCH

    for _ in range(2):
        pipes.loop.run_once(block=True)
    assert len(seen) == count


def test_the_descriptors_of_a_loop_are_not_for_children() -> None:
    """The loop's own descriptors, epoll and timerfd, are closed on exec, and by close."""
    before = set(kit.fds_of(os.getpid()))
    made = Loop(lambda *_: None)
    own = set(kit.fds_of(os.getpid())) - before

    assert len(own) == 2
    assert not any(map(os.get_inheritable, own))
    made.close()
    assert set(kit.fds_of(os.getpid())) == before


# ---- deadlines --------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[Loop]:
    def failed(where: str, error: Exception) -> None:
        raise AssertionError(f"{where} failed") from error

    made = Loop(failed)
    yield made
    made.close()


class Fired:
    """What has fired in a loop, by name."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.names: list[str] = []

    def at(self, name: str, when: float) -> Handle:
        return self.loop.call_at(when, self.names.append, name)

    def due(self, now: float) -> list[str]:
        """The names of those that fire at `now`."""
        self.names.clear()
        self.loop.run_due(now)
        return self.names.copy()


def cancel_all(handles: list[Handle]) -> None:
    for handle in handles:
        handle.cancel()


def settimes(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """All that the timerfd is set to from now on; nothing reaches the kernel."""
    calls: list[float | None] = []
    monkeypatch.setattr(syscalls, "timerfd_settime", lambda _fd, at: calls.append(at))
    return calls


def test_deadlines_come_in_their_order_and_not_before_their_time(loop: Loop) -> None:
    """Earlier first, equal times in the order of setting, and what is not due stays."""
    fired = Fired(loop)
    for name, at in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 2.0), ("late", 2.001)):
        fired.at(name, at)

    assert fired.due(0.999) == []
    assert fired.due(2.0) == ["a", "b", "d"]
    assert fired.due(9.0) == ["late", "c"]
    assert loop.deadlines == 0


def test_what_is_cancelled_never_fires(loop: Loop) -> None:
    """Also when its time has come already, and another deadline of the same turn cancels it."""
    fired = Fired(loop)
    others: list[Handle] = []
    first = loop.call_at(1.0, cancel_all, others)
    second = fired.at("second", 1.0)
    others.append(second)
    assert (first.active, second.active, loop.deadlines) == (True, True, 2)

    assert fired.due(2.0) == []
    assert (first.active, second.active, loop.deadlines) == (False, False, 0)


def test_cancelling_is_harmless_at_any_time(loop: Loop) -> None:
    """Twice, after it has fired, in its own callback, and where nothing was ever set."""
    fired = Fired(loop)
    handle = fired.at("a", 1.0)
    itself: list[Handle] = []
    itself.append(loop.call_at(1.0, cancel_all, itself))
    twice = fired.at("b", 1.0)
    twice.cancel()
    twice.cancel()
    UNSET.cancel()

    assert fired.due(1.0) == ["a"]
    handle.cancel()
    assert loop.deadlines == 0
    assert not UNSET.active


def test_a_cancelled_deadline_keeps_nothing_alive(loop: Loop) -> None:
    """What a callback refers to is let go at once, not when its time would have come."""
    handle = loop.call_at(1e6, never, object())
    handle.cancel()

    assert handle._args == ()
    assert handle._callback is None


def test_a_deadline_that_fails_costs_no_other(pipes: Pipes) -> None:
    """The error is reported, and what is due in the same turn fires."""
    fired = Fired(pipes.loop)
    pipes.loop.call_at(1.0, lambda: 1 // 0)
    fired.at("next", 1.0)

    assert fired.due(1.0) == ["next"]
    assert [(where, type(error)) for where, error in pipes.failures] == [("a timer", ZeroDivisionError)]


def test_after_each_deadline_its_consequences_come_before_the_next() -> None:
    """What `after_timer` cancels does not fire, though it is due in the same turn."""
    order: list[str] = []
    others: list[Handle] = []

    def after() -> None:
        order.append("after")
        cancel_all(others)

    loop = Loop(lambda *_: pytest.fail("it failed"), after)
    loop.call_at(1.0, order.append, "first")
    others.append(loop.call_at(1.0, order.append, "last"))
    loop.run_due(1.0)
    loop.close()

    assert order == ["first", "after"]


def test_what_is_set_for_at_once_comes_in_the_next_turn(loop: Loop) -> None:
    """A callback that sets itself again and again leaves room for everything else."""
    count = [0]

    def again() -> None:
        count[0] += 1
        loop.call_later(0, again)

    again()
    for turns in range(1, 4):
        loop.run_once(block=True)
        assert count[0] == 1 + turns


def test_the_loop_wakes_at_the_deadline_and_not_before(loop: Loop) -> None:
    """A turn that may block ends when the earliest deadline has passed."""
    fired = Fired(loop)
    start = time.monotonic()
    fired.at("late", start + 100)
    fired.at("soon", start + 0.02)
    loop.run_once(block=False)
    assert fired.names == [] or time.monotonic() >= start + 0.02

    while not fired.names:
        loop.run_once(block=True)
    assert fired.names == ["soon"]
    assert start + 0.02 <= time.monotonic()


def test_a_later_deadline_never_replaces_a_sooner_one(loop: Loop) -> None:
    """The same callback may have several: each has its own handle."""
    fired = Fired(loop)
    start = time.monotonic()
    fired.at("same", start + 0.01)
    fired.at("same", start + 100)
    while not fired.names:
        loop.run_once(block=True)

    assert time.monotonic() < start + 50
    assert loop.deadlines == 1


@pytest.mark.parametrize("at", [0.0, 1e-12, 1.0])
def test_a_time_that_has_passed_wakes_at_once(loop: Loop, at: float) -> None:
    """Zero too, which for the kernel means never."""
    fired = Fired(loop)
    fired.at("a", at)
    loop.run_once(block=True)

    assert fired.names == ["a"]


def test_a_cancelled_deadline_wakes_nobody(loop: Loop) -> None:
    """The timerfd is disarmed with the last deadline: an idle daemon is not woken for nothing."""
    handle = loop.call_later(0.02, never, 0)
    loop.run_once(block=False)
    handle.cancel()
    loop.run_once(block=False)

    assert not kit.readable(loop._timerfd, 0.05)


def test_setting_the_timer_costs_nothing_when_nothing_changed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn sets the timerfd only if the earliest deadline is another one."""
    calls = settimes(monkeypatch)
    far = time.monotonic() + 100
    loop.run_once(block=False)
    first = loop.call_at(far, never, 0)
    loop.run_once(block=False)
    loop.run_once(block=False)
    loop.call_at(far + 1, never, 0)
    loop.run_once(block=False)
    first.cancel()
    loop.run_once(block=False)

    assert calls == [far, far + 1]


def test_setting_and_cancelling_for_ever_costs_no_memory(loop: Loop) -> None:
    """A job that is restarted a million times leaves no trail of old deadlines."""
    last = UNSET
    for number in range(10_000):
        last.cancel()
        last = loop.call_at(1e6 + number, never, 0)
        loop.call_at(1e6 + number, never, 0).cancel()

    assert loop.deadlines == 1
    assert len(loop._heap) <= 200


@pytest.mark.parametrize("at", [1e10, 1e18, 1e300, float("inf")])
def test_a_time_beyond_the_kernels_clock_is_never(loop: Loop, at: float) -> None:
    """However far away a deadline is, it can be set, and does not come."""
    loop.call_at(at, never, 0)
    loop.run_once(block=False)

    assert not kit.readable(loop._timerfd, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("due"), st.integers(0, 5)),
    )
)


@given(STEPS)
def test_deadlines_do_what_a_list_would(steps: list[tuple[str, int]]) -> None:
    """Whatever is set, cancelled and taken, in whatever order: the same as from the plainest of lists."""
    loop = Loop(lambda *_: pytest.fail("it failed"))
    fired = Fired(loop)
    handles: list[Handle] = []
    plain: dict[int, int] = {}  # number -> time
    try:
        for step, value in steps:
            if step == "set":
                plain[len(handles)] = value
                handles.append(fired.at(str(len(handles)), float(value)))
            elif step == "cancel":
                if value < len(handles):
                    handles[value].cancel()
                    plain.pop(value, None)
            else:
                come = sorted((when, number) for number, when in plain.items() if when <= value)
                plain = {number: when for number, when in plain.items() if when > value}
                assert fired.due(float(value)) == [str(number) for _, number in come]
            assert loop.deadlines == len(plain)
            assert [number for number, handle in enumerate(handles) if handle.active] == sorted(plain)
    finally:
        loop.close()


def test_a_system_call_that_fails_says_which() -> None:
    """An error of a call that Python does not know names it."""
    with pytest.raises(OSError, match=r"timerfd_settime|Bad file descriptor"):
        syscalls.timerfd_settime(1 << 30, 1.0)
    with pytest.raises(OSError, match="clone3: "):
        syscalls.fork_into(-1)
