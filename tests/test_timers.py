"""Deadlines over one timerfd, and the system calls under it."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import kit
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmon.linux.daemon.engine import NEVER, Engine
from jobmon.linux.kernel import syscalls
from jobmon.linux.kernel.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


@pytest.fixture
def timers() -> Iterator[Timers]:
    made = Timers()
    yield made
    made.close()


def due(timers: Timers, now: float) -> list[tuple[Hashable, int]]:
    found = []
    while (one := timers.next_due(now)) is not None:
        found.append(one)
    return found


def test_deadlines_come_in_their_order_and_not_before_their_time(timers: Timers) -> None:
    """Earlier first, equal times in the order of arming, and what is not due stays."""
    for key, at in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 2.0), ("late", 2.001)):
        timers.arm(key, ord(key[0]), at)

    assert due(timers, 0.999) == []
    assert [key for key, _ in due(timers, 2.0)] == ["a", "b", "d"]
    assert due(timers, 9.0) == [("late", ord("l")), ("c", ord("c"))]
    assert len(timers) == 0


def test_arming_again_replaces(timers: Timers) -> None:
    """A key has one deadline: the last, with the token of the last."""
    timers.arm("job", 1, 1.0)
    timers.arm("job", 2, 5.0)

    assert due(timers, 4.0) == []
    assert due(timers, 5.0) == [("job", 2)]


def test_what_is_cancelled_never_fires(timers: Timers) -> None:
    """Also when its time has come already, and when another deadline of the same turn cancels it."""
    timers.arm("first", 1, 1.0)
    timers.arm("second", 1, 1.0)
    assert timers.next_due(2.0) == ("first", 1)

    timers.disarm("second")
    timers.disarm("nobody")

    assert timers.next_due(2.0) is None
    assert len(timers) == 0


def test_the_descriptor_wakes_at_the_deadline_and_not_before(timers: Timers) -> None:
    """The timerfd expires once the earliest deadline has passed."""
    start = time.monotonic()
    timers.arm("late", 0, start + 100)
    timers.arm("soon", 0, start + 0.02)
    timers.program()
    assert not kit.readable(timers.fileno(), 0)

    assert kit.readable(timers.fileno())
    assert start + 0.02 <= time.monotonic()
    assert due(timers, time.monotonic()) == [("soon", 0)]

    timers.drain()
    timers.program()
    assert not kit.readable(timers.fileno(), 0)


@pytest.mark.parametrize("at", [0.0, 1e-12, 1.0])
def test_a_time_that_has_passed_wakes_at_once(timers: Timers, at: float) -> None:
    """Zero too, which for the kernel means never."""
    timers.arm("job", 0, at)
    timers.program()

    assert kit.readable(timers.fileno())


def test_a_deadline_that_was_not_taken_wakes_again(timers: Timers) -> None:
    """An expiry that was drained is not remembered as set: nothing that is due is ever slept over."""
    timers.arm("job", 0, time.monotonic())
    for _ in range(2):
        timers.program()
        assert kit.readable(timers.fileno(), 1)
        timers.drain()


def test_a_cancelled_deadline_wakes_nobody(timers: Timers) -> None:
    """The timerfd is disarmed with the last deadline: an idle daemon is not woken for nothing."""
    timers.arm("job", 0, time.monotonic() + 0.02)
    timers.program()
    timers.disarm("job")
    timers.program()

    assert not kit.readable(timers.fileno(), 0.05)


def test_draining_what_has_not_expired_does_not_wait(timers: Timers) -> None:
    """The descriptor never blocks, and is closed on exec."""
    timers.drain()

    assert not os.get_inheritable(timers.fileno())


def test_setting_the_timer_costs_nothing_when_nothing_changed(
    timers: Timers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn of the loop sets the timerfd only if the earliest deadline is another one."""
    calls: list[float | None] = []
    monkeypatch.setattr(syscalls, "timerfd_settime", lambda _fd, at: calls.append(at))
    far = time.monotonic() + 100
    timers.program()
    timers.arm("job", 0, far)
    timers.program()
    timers.program()
    timers.arm("later", 0, far + 1)
    timers.program()
    timers.disarm("job")
    timers.program()

    assert calls == [far, far + 1]


def test_arming_and_cancelling_for_ever_costs_no_memory(timers: Timers) -> None:
    """A job that is restarted a million times leaves no trail of old deadlines."""
    for number in range(10_000):
        timers.arm("job", number, 1e6 + number)
        timers.arm("other", number, 1e6 + number)
        timers.disarm("other")

    assert len(timers) == 1
    assert len(timers._heap) <= 200


@pytest.mark.parametrize("at", [1e10, 1e18, 1e300, float("inf")])
def test_a_time_beyond_the_kernels_clock_is_never(timers: Timers, at: float) -> None:
    """However far away a deadline is, it can be set, and does not come."""
    timers.arm("job", 0, at)
    timers.program()

    assert not kit.readable(timers.fileno(), 0)


KEYS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), KEYS, st.integers(0, 5)),
        st.tuples(st.just("disarm"), KEYS, st.just(0)),
        st.tuples(st.just("due"), st.just(""), st.integers(0, 5)),
    )
)


@given(STEPS)
def test_it_does_what_a_list_would(steps: list[tuple[str, str, int]]) -> None:
    """Whatever is armed, cancelled and taken, in whatever order: the same as from the plainest of lists."""
    timers = Timers()
    plain: dict[str, tuple[int, int]] = {}  # key -> (time, serial)
    try:
        for serial, (step, key, at) in enumerate(steps):
            if step == "arm":
                timers.arm(key, serial, float(at))
                plain[key] = (at, serial)
            elif step == "disarm":
                timers.disarm(key)
                plain.pop(key, None)
            else:
                come = sorted((when, number, k) for k, (when, number) in plain.items() if when <= at)
                plain = {k: entry for k, entry in plain.items() if entry[0] > at}
                assert due(timers, float(at)) == [(k, number) for _, number, k in come]
            assert len(timers) == len(plain)
    finally:
        timers.close()


def test_the_sooner_look_counts(timers: Timers) -> None:
    """The engine looks at children as soon as anybody wants it, and after that when another one does."""
    one = Engine.__new__(Engine)
    one.timers, one._look_at = timers, NEVER
    one._look_later(0.0)
    one._look_later(1000.0)
    ((look, token),) = due(timers, time.monotonic())
    one.children = SimpleNamespace(sweep=lambda: one._look_later(1.0))  # type: ignore[assignment]
    look(token)  # type: ignore[operator]
    assert due(timers, time.monotonic()) == []
    assert len(timers) == 1


def test_a_system_call_that_fails_says_which() -> None:
    """An error of a call that Python does not know names it."""
    with pytest.raises(OSError, match=r"timerfd_settime|Bad file descriptor"):
        syscalls.timerfd_settime(1 << 30, 1.0)
    with pytest.raises(OSError, match="clone3: "):
        syscalls.fork_into(-1)
