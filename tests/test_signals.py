"""Signals by name and number, and the one signalfd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import kit
import pytest

from jobmon.core.spec import REALTIME_SIGNALS, SIGNALS
from jobmon.linux.kernel import signals
from jobmon.linux.kernel.signals import SignalSource, name_of, number_of, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def alone() -> None:
    kit.be_single_threaded()


@pytest.fixture
def source() -> Iterator[SignalSource]:
    made = SignalSource((signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD))
    yield made
    made.close()


# ---- names and numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SIGNALS if hasattr(signal, name)])
def test_a_name_and_its_number_are_the_kernels(name: str) -> None:
    """Every name of a configuration has the number of the kernel's header, and comes back from it."""
    assert number_of(name) == getattr(signal, name)
    assert name_of(number_of(name)) == name


def test_every_real_time_signal_has_a_name() -> None:
    """SIGRTMIN to SIGRTMIN+30 are the real-time signals that glibc leaves to us."""
    names = ["SIGRTMIN", *(f"SIGRTMIN+{steps}" for steps in range(1, REALTIME_SIGNALS + 1))]

    assert [number_of(name) for name in names] == list(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
    assert [name_of(number_of(name)) for name in names] == names


def test_every_number_has_a_name() -> None:
    """A status can be told whatever signal it was, also one that has no name here."""
    assert len({name_of(number) for number in range(1, signal.NSIG)}) == signal.NSIG - 1
    assert name_of(33) == "SIG33"


@pytest.mark.parametrize("text", ["HUP", "SIGHUP", "hup", "sighup", "1", " 1 ", 1])
def test_a_signal_as_people_write_it(text: str | int) -> None:
    """A signal may be a name with or without SIG, in any case, or a number."""
    assert parse(text) == signal.SIGHUP


def test_real_time_signals_as_people_write_them() -> None:
    """RTMIN+n and RTMAX-n are understood as `kill -l` writes them."""
    assert parse("rtmin+2") == signal.SIGRTMIN + 2
    assert parse("SIGRTMAX-1") == signal.SIGRTMAX - 1
    assert parse(str(int(signal.SIGRTMAX))) == signal.SIGRTMAX


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "SIG",
            "FOO",
            "SIG_IGN",
            "_BLOCK",
            "NALS",
            "0",
            "-1",
            "65",
            "32",
            "33",
            "9" * 5000,
            "1.0",
            "\u0661",
        ),
        *("TERM+3", "RTMIN+", "RTMIN+x", "RTMIN-1", "RTMIN+31", "RTMAX+1", "RTMIN+-1", "TERM\0", 0, 33, -9),
    ],
)
def test_what_is_no_signal_is_refused(text: str | int) -> None:
    """Anything else is a ValueError that says it is no signal; TERM+3 is not SIGCONT."""
    with pytest.raises(ValueError, match=r"unknown signal|not a signal number"):
        parse(text)


def test_a_number_without_a_name_does_not_end_the_daemon(daemon: Callable[..., kit.Daemon]) -> None:
    """`jobmon signal 33 JOB` is refused in words, and the daemon goes on."""
    one = daemon({"jobs": {"web": {"command": kit.FOR_EVER, "autostart": True}}})
    refused = one.run_cli("signal", "33", "web")

    assert refused.code == 2
    assert "33 is not a signal number" in refused.err
    assert one.run_cli("status", "web").code == 0


# ---- the signalfd ---------------------------------------------------------------------------


def test_signals_are_read_and_not_delivered(source: SignalSource) -> None:
    """What is blocked comes by the descriptor, with its sender, lowest number first."""
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR1)

    assert kit.readable(source.fileno())
    assert source.read() == [(signal.SIGUSR1, os.getpid(), False), (signal.SIGUSR2, os.getpid(), False)]
    assert source.read() == []


def test_a_standard_signal_is_one_however_often_it_came(source: SignalSource) -> None:
    """Five deaths may be one SIGCHLD: so one SIGCHLD may stand for five."""
    for _ in range(5):
        os.kill(os.getpid(), signal.SIGUSR1)

    assert source.read() == [(signal.SIGUSR1, os.getpid(), False)]


def test_real_time_signals_all_come_however_many() -> None:
    """More signals than fit one read are not lost."""
    source = SignalSource((signal.SIGRTMIN,))
    try:
        for _ in range(100):
            os.kill(os.getpid(), signal.SIGRTMIN)
        first = source.read()

        assert len(first) + len(source.read()) == 100
    finally:
        source.close()


def test_the_descriptor_is_not_for_children(source: SignalSource) -> None:
    """The signalfd is closed on exec and never blocks."""
    assert not os.get_inheritable(source.fileno())
    assert not os.get_blocking(source.fileno())


def test_closing_gives_the_mask_back() -> None:
    """The process has its old mask again, and the descriptor is closed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    source = SignalSource((signal.SIGUSR1,))

    assert source.inherited_mask == before
    assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    source.close()

    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_what_is_ignored_is_known() -> None:
    """What a process was started with ignored, and what Python ignores, is what children must get back."""
    program = "from jobmon.linux.kernel import signals; print(*sorted(signals.ignored()))"
    done = subprocess.run(
        ["sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": kit.SOURCES},
    )
    wanted = {signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ}

    assert {int(word) for word in done.stdout.split()} == wanted
    assert set(signals.ignored()) <= wanted
