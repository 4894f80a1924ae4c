"""The command `listen`: events, a line each, as they come."""

from __future__ import annotations

import sys
from select import POLLERR, POLLHUP, POLLIN, poll

from jobmon.cli.commands import UsageError
from jobmon.cli.formatting import count, escape
from jobmon.cli.output import OK, complain, flush, say
from jobmon.client import EventStream, ends
from jobmon.lean.fastjson import dumps
from jobmon.protocol import Event07, EventMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobmon.cli.commands import Arguments, Verb

_WORDS: dict[int | str, str] = {
    0: "RUNNING",
    1: "STOPPED",
    2: "RESTARTING",
    3: "TERMINATE",
    "launched": "RUNNING",
    "died": "STOPPED",
    "restarting": "RESTARTING",
    "terminated": "TERMINATE",
}


def run(verb: Verb, arguments: Arguments) -> int:
    """Print events until enough have come, the daemon ends, or nobody reads them."""
    del verb
    if sys.stdout is None:
        return OK  # closed by the caller: nobody reads
    limit = count(arguments.given[0], "NUM_EVENTS") if arguments.given else 0
    since = _since(arguments.options.get("--since"))
    as_json = "--json" in arguments.options
    with EventStream(rich=as_json, since=since) as stream:
        if stream.snapshot is not None and stream.snapshot.missed:
            complain(f"events after {since} are lost; continuing after {stream.snapshot.seq}")
        for event in _while_read(stream):
            line = dumps(event.body()) if as_json else plain(event)
            if line is not None:
                say(line)
                flush()
                limit -= 1
            if (limit == 0 and line is not None) or sys.stdout is None:
                break
    return OK


def plain(event: Event07 | EventMessage) -> str | None:
    """The line for people; None where the event has none."""
    job, kind = (event.job_name, event.event_code) if isinstance(event, Event07) else (event.job, event.event)
    word = _WORDS.get(kind)
    if word is None or word == "TERMINATE":
        return word
    return f"{word} {escape(job)}"


def _since(text: str | None) -> int | None:
    if text is None:
        return None
    since = count(text, "--since")
    if since < 0:
        raise UsageError("--since must be the number of an event")
    return since


def _while_read(stream: EventStream) -> Iterator[Event07 | EventMessage]:
    """Events until the last; ends too when the other end of a pipe on standard output is closed."""
    out = sys.stdout.fileno()
    waiter = poll()
    waiter.register(stream.fileno(), POLLIN)
    waiter.register(out, 0)
    while True:
        event = stream.pending_event()
        if event is not None:
            yield event
            if ends(event):
                return
        elif any(fd == out and flags & (POLLERR | POLLHUP) for fd, flags in waiter.poll()):
            return
