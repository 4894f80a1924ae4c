"""The one epoll: order, isolation, and nothing left behind."""

from __future__ import annotations

import os
import select
import signal

import kit
import pytest

from jobmon.linux.kernel import reactor
from jobmon.linux.kernel.reactor import CHILD, COMMAND, EXEC, READ, SIGNAL, TIMER, WRITE, Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def never(_events: int) -> None:
    pytest.fail("it was called")


class Pipes:
    """A reactor, pipes that it may watch, and what it complained about."""

    def __init__(self) -> None:
        self.failures: list[tuple[int, Exception]] = []
        self.reactor = Reactor(lambda fd, error: self.failures.append((fd, error)))
        self._open: list[int] = []

    def pipe(self, *, ready: bool = True) -> tuple[int, int]:
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._open += ends
        if ready:
            os.write(ends[1], b"x")
        return ends

    def close(self) -> None:
        self.reactor.close()
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
    pipes.reactor.register(pipes.pipe()[0], lambda events: seen.append(("ready", events)), COMMAND)
    pipes.reactor.register(pipes.pipe(ready=False)[0], lambda events: seen.append(("idle", events)), COMMAND)
    pipes.reactor.turn(block=False)

    assert seen == [("ready", READ)]


def test_without_block_a_turn_does_not_wait(pipes: Pipes) -> None:
    """With births outstanding the loop only looks."""
    pipes.reactor.register(pipes.pipe(ready=False)[0], never, COMMAND)
    pipes.reactor.turn(block=False)


def test_what_is_ready_together_comes_by_priority(pipes: Pipes) -> None:
    """An exec's outcome before a death, a death before a command about it, a success before a time-out."""
    order: list[int] = []
    for priority in (TIMER, COMMAND, EXEC, SIGNAL, CHILD):
        handler = order.append
        pipes.reactor.register(pipes.pipe()[0], lambda _, p=priority, h=handler: h(p), priority)  # type: ignore[misc]
    pipes.reactor.turn(block=True)

    assert order == [EXEC, CHILD, SIGNAL, COMMAND, TIMER]


def test_who_is_unregistered_in_a_turn_is_not_called_in_it(pipes: Pipes) -> None:
    """A handler may end another source whose event is already here."""
    first, second = pipes.pipe()[0], pipes.pipe()[0]
    called: list[int] = []

    def end_the_other(fd: int, other: int) -> Callable[[int], None]:
        def handler(_events: int) -> None:
            called.append(fd)
            pipes.reactor.unregister(other)

        return handler

    pipes.reactor.register(first, end_the_other(first, second), COMMAND)
    pipes.reactor.register(second, end_the_other(second, first), COMMAND)
    pipes.reactor.turn(block=True)

    assert len(called) == 1


def test_a_handler_that_fails_is_disabled_and_reported_alone(pipes: Pipes) -> None:
    """One bad source costs itself; the others of the same turn are served, and the loop lives."""
    served: list[int] = []
    bad = pipes.pipe()[0]
    pipes.reactor.register(bad, lambda _: 1 // 0, EXEC)  # type: ignore[arg-type]
    pipes.reactor.register(pipes.pipe()[0], served.append, COMMAND)
    pipes.reactor.turn(block=True)
    pipes.reactor.turn(block=True)

    assert [(fd, type(error)) for fd, error in pipes.failures] == [(bad, ZeroDivisionError)]
    assert len(served) == 2


def test_a_source_waits_for_what_it_is_told_to(pipes: Pipes) -> None:
    """Modify changes what is waited for."""
    seen: list[int] = []
    _, writer = pipes.pipe()
    pipes.reactor.register(writer, seen.append, COMMAND, 0)
    pipes.reactor.turn(block=False)
    assert seen == []

    pipes.reactor.modify(writer, WRITE)
    pipes.reactor.turn(block=True)
    assert seen == [WRITE]


def test_unregister_is_harmless_twice(pipes: Pipes) -> None:
    """Whoever cleans up need not know what was registered."""
    fd, _ = pipes.pipe()
    pipes.reactor.unregister(fd)
    pipes.reactor.register(fd, never, COMMAND)
    pipes.reactor.unregister(fd)
    pipes.reactor.unregister(fd)
    pipes.reactor.turn(block=False)


def test_what_was_unregistered_before_closing_never_comes_back(pipes: Pipes) -> None:
    """A forked child that holds the same open file cannot make epoll report a closed descriptor."""
    fd, _ = pipes.pipe()
    copy = os.dup(fd)  # what a child before its exec would hold
    pipes.reactor.register(fd, never, COMMAND)
    pipes.reactor.unregister(fd)
    pipes.reactor.turn(block=False)

    with select.epoll() as plain:  # the control: closed without being unregistered, it is reported for ever
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
    pipes.reactor.register(reader, seen.append, COMMAND)
    before = signal.signal(signal.SIGALRM, lambda *_: os.write(writer, b"x") and None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        pipes.reactor.turn(block=True)
    finally:
        signal.signal(signal.SIGALRM, before)

    assert seen == [READ]


def test_many_sources_ready_at_once_all_get_their_turn(pipes: Pipes) -> None:
    """More than one batch of ready descriptors starves nobody."""
    count = reactor._BATCH + 50
    seen: set[int] = set()
    for _ in range(count):
        fd, _ = pipes.pipe()
        pipes.reactor.register(fd, lambda _, fd=fd: seen.add(fd), COMMAND)  # type: ignore[misc]
    pipes.reactor.turn(block=True)
    assert len(seen) == reactor._BATCH

    for _ in range(2):
        pipes.reactor.turn(block=True)
    assert len(seen) == count


def test_the_descriptors_of_a_reactor_are_not_for_children() -> None:
    """The epoll instance's own descriptor is closed on exec, and by close."""
    before = set(kit.fds_of(os.getpid()))
    made = Reactor(lambda *_: None)
    (own,) = set(kit.fds_of(os.getpid())) - before

    assert not os.get_inheritable(own)
    made.close()
    assert set(kit.fds_of(os.getpid())) == before
