"""`Cause`: its text for people, its form for the wire, and the short form in which the event log keeps it."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmon.core import causes
from jobmon.core.causes import Actor, Cause, Kind, body, exited, pack, text, unpack
from jobmon.core.eventlog import EventLog
from jobmon.core.events import State

NUMBERS = st.none() | st.integers(0, 1 << 31)
TEXTS = st.text(max_size=200)
CAUSES = st.recursive(
    st.builds(
        Cause,
        st.sampled_from(list(Kind)),
        st.none() | st.integers(0, 255) | TEXTS,
        st.lists(TEXTS, max_size=5).map(tuple),
        st.none() | st.builds(Actor, NUMBERS, NUMBERS),
        TEXTS,
    ),
    lambda inner: st.builds(lambda cause, because: cause.replace(because=because), inner, inner),
    max_leaves=5,
)


def loss(length: int) -> Cause:
    """A chain of jobs that are lost, each for the one before."""
    cause = exited(1)
    for number in range(length):
        cause = Cause(Kind.REQUIREMENT, "failed", (f"job{number}",), because=cause)
    return cause


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (Cause(Kind.START, actor=Actor(1000, 7)), "start by uid 1000 pid 7"),
        (Cause(Kind.STOP, actor=Actor(1000), reason="why"), "stop by uid 1000: why"),
        (Cause(Kind.RESTART, actor=Actor()), "restart by uid unknown"),
        (Cause(Kind.RELOAD_RESTART, actor=Actor(0, 1)), "reload by uid 0 pid 1"),
        (Cause(Kind.RELOAD, "SIGHUP", actor=Actor(pid=7)), "SIGHUP from pid 7"),
        (Cause(Kind.TERMINATE, "SIGTERM", actor=Actor(pid=7)), "SIGTERM from pid 7"),
        (Cause(Kind.TERMINATE, reason="the end of its terminal"), "the end of its terminal"),
        (Cause(Kind.SIGNAL, "SIGHUP", actor=Actor(0, 1), reason="why"), "SIGHUP, signal by uid 0 pid 1: why"),
        (Cause(Kind.SPAWN_FAILED, "exec", reason="exec ./web: ENOENT"), "exec ./web: ENOENT"),
        (Cause(Kind.GAVE_UP, 1, because=exited(2)), "exit 2, gave up after 1 penalised restart"),
        (Cause(Kind.REQUIREMENT, jobs=("db",)), "requires db, which is to be stopped"),
        (Cause(Kind.WAITING, jobs=("a", "b")), "waiting for a, b"),
        (causes.PENALTY_OVER, "penalty over"),
        (causes.AUTO_RESTART, "restart"),
        (causes.START_TIMEOUT, "start-timeout"),
    ],
    ids=str,
)
def test_words(cause: Cause, words: str) -> None:
    """A cause reads as the log and the events have it."""
    assert str(cause) == text(cause) == words


def test_the_past_of_a_stop() -> None:
    """What was about to happen reads so once it has happened."""
    assert text(Cause(Kind.REQUIREMENT, jobs=("db",)), past=True) == "requires db, which was to be stopped"


@pytest.mark.parametrize("length", [1, 69, 70, 71, 72, 100, 100_000])
def test_a_chain_is_told_as_far_as_it_is_of_use(length: int) -> None:
    """The text of a chain is cut after 2,000 characters; programs get its first ten links."""
    cause = loss(length)
    whole = "".join(f"requires job{n}, which is failed: " for n in reversed(range(length)[-100:])) + "exit 1"
    assert str(cause) == (whole if len(whole) <= causes.MAX_TEXT else f"{whole[: causes.MAX_TEXT]}...")

    links = 0
    link: Any = body(cause)
    while link is not None:
        link, links = link.get("because"), links + 1
    assert links == min(length, causes.MAX_LINKS) + 1


def test_the_form_for_programs_names_what_there_is() -> None:
    """A member that does not apply is missing; one that nobody knows is null."""
    assert body(causes.READY) == {"kind": "ready"}
    assert body(exited(None)) == {"kind": "exited", "status": None}
    assert body(exited(0)) == {"kind": "exited", "status": 0}
    assert body(Cause(Kind.STOP, actor=Actor())) == {"kind": "stop", "uid": None, "pid": None}
    assert body(Cause(Kind.GAVE_UP, 0, because=exited(0))) == {
        "kind": "gave-up",
        "restarts": 0,
        "because": {"kind": "exited", "status": 0},
    }


def test_the_same_end_is_one_cause() -> None:
    """Thousands of events with the same exit code share one cause."""
    assert exited(7) is exited(7)
    assert exited("SIGKILL") is exited("SIGKILL")


@pytest.mark.parametrize("module", ["explain", "machine", "ordering", "supervisor", "conditions", "waiters"])
def test_nobody_reads_the_words(module: str) -> None:
    """No decision depends on the text of a cause: the policy cuts and searches no text at all."""
    source = Path(causes.__file__).with_name(f"{module}.py").read_text()
    called = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    readers = "startswith endswith removeprefix removesuffix partition rpartition find"
    assert not called & set(readers.split())


@given(CAUSES)
def test_the_short_form_keeps_what_counts(cause: Cause) -> None:
    """It is JSON, has the kind and the subject of the cause, and otherwise lacks at most the end."""
    kept = unpack(json.loads(json.dumps(pack(cause))))
    assert (kept.kind, kept.subject, kept.actor) == (cause.kind, cause.subject, cause.actor)
    assert kept.jobs == cause.jobs[: causes.KEPT_JOBS]
    assert kept.reason == cause.reason[: causes.KEPT_TEXT]
    because = kept.because
    assert (because is None) == (cause.because is None)
    assert because is None or cause.because is None or because.kind is cause.because.kind
    assert because is None or because.because is None


@pytest.mark.parametrize("cause", [exited(0), Cause(Kind.STOP, actor=Actor(0, 7)), causes.LAUNCHED], ids=str)
def test_the_short_form_is_short(cause: Cause) -> None:
    """Ten of them are kept for each of thousands of jobs."""
    assert len(json.dumps(pack(cause))) <= len(str(cause)) + 12


def test_the_event_log_keeps_causes_when_it_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that has left the ring still has the cause that it had."""
    monkeypatch.setattr("jobmon.core.eventlog.KEPT_EVENTS", 1)
    log = EventLog({"web"})
    told = [Cause(Kind.STOP, actor=Actor(0, 7), reason="a\nb \u2028"), exited("SIGTERM"), exited(None)]
    for cause in told:
        log.add(1.0, "web", "state", State.STOPPED, 1, None, cause)

    assert [event[7] for event in log.of("web")] == told
