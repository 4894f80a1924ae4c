"""The commands that explain: why a job is as it is, and in which order jobs come."""

from __future__ import annotations

import sys
import time

from jobmon.cli.formatting import about, columns, escape
from jobmon.cli.output import OK, say
from jobmon.client import CommandPipe, unexpected_reply
from jobmon.lean.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from jobmon.cli.commands import Arguments, Verb

    Graph = dict[str, dict[str, Any]]

SHOWN_OF_A_NAME = 200  # characters in a picture: dot takes no string of more than 16,384, escapes and all


def run(verb: Verb, arguments: Arguments) -> int:
    """Ask, and print the answer."""
    options = arguments.options
    with CommandPipe() as daemon:
        told = daemon.why(arguments.given[0]) if verb.name == "why" else daemon.graph()
    if "--json" in options:
        say(dumps(told))
        return OK
    try:
        lines = list(_why(told) if verb.name == "why" else _graph(told, as_dot="--dot" in options))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unexpected_reply(verb.name, error) from None
    for line in lines:
        say(line)
    return OK


# ---- why -------------------------------------------------------------------------------------


def _why(told: dict[str, Any]) -> Iterator[str]:
    name = told["job"]
    yield f"{escape(name)} is {told['state']}{about(told.get('description', ''))}"
    for cause in told["causes"]:
        whose = "" if cause["job"] == name else f"{escape(cause['job'])}: "
        since = "" if cause["since"] is None else f" ({_when(cause['since'])})"
        yield f"  {whose}{escape(cause['text'])}{since}"
    if told["events"]:
        yield ""
        yield from columns([_event(event) for event in told["events"]])


def _event(event: dict[str, Any]) -> tuple[str, ...]:
    kind = event["event"]
    what = event["state"] if kind == "state" else f"{kind}, {event['state']}" if kind == "died" else kind
    pid = "" if event["pid"] is None else f"pid {event['pid']}"
    return _when(event["time"]), what, f"run {event['run']}", pid, escape(event["cause"])


def _when(moment: float) -> str:
    """Write a unix time as the log does: UTC, to the millisecond."""
    whole = int(moment)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((moment - whole) * 1000):03d}Z"


# ---- graph -----------------------------------------------------------------------------------


def _graph(graph: Graph, *, as_dot: bool) -> Iterator[str]:
    if not as_dot:
        return steps(graph)
    # dot reads UTF-8, whatever the locale is
    encoding = sys.stdout.encoding if sys.stdout is not None else ""
    return dot(graph, ascii_only=encoding.lower() not in ("utf-8", "utf8"))


def steps(graph: Graph) -> Iterator[str]:
    """The jobs in a table, in the order of their steps: each comes after what is above it there."""
    step = _steps(graph)
    rows = [("STEP", "JOB", "STATE", "REQUIRES", "AFTER")]
    for name in sorted(graph, key=lambda name: (step[name], name)):
        job = graph[name]
        after = [other for other in job["after"] if other not in job["requires"]]
        rows.append((str(step[name]), escape(name), job["state"], _names(job["requires"]), _names(after)))
    return columns(rows)


def dot(graph: Graph, *, ascii_only: bool = False) -> Iterator[str]:
    """The graph for graphviz. An arrow leads to what comes later, dashed where that is order only."""
    yield "digraph jobmon {"
    yield '    rankdir="LR"; node [shape="box"];'
    numbers = {name: f"job{number}" for number, name in enumerate(graph)}
    for name, job in graph.items():
        style = ', style="bold"' if job["ready"] else ""
        yield f'    {numbers[name]} [label="{_quoted(name, ascii_only)}\\n{job["state"]}"{style}];'
    for name, job in graph.items():
        for other in job["requires"]:
            yield f"    {numbers[other]} -> {numbers[name]};"
        for other in job["after"]:
            if other not in job["requires"]:
                yield f'    {numbers[other]} -> {numbers[name]} [style="dashed"];'
    yield "}"


def _steps(graph: Graph) -> dict[str, int]:
    """The step of each job: one more than the last of those that it comes after."""
    later: dict[str, list[str]] = {}
    missing: dict[str, int] = {}
    for name, job in graph.items():
        earlier = {*job["requires"], *job["after"]} & graph.keys()
        missing[name] = len(earlier)
        for other in earlier:
            later.setdefault(other, []).append(name)
    turns = [[name for name, count in missing.items() if not count]]
    while turns[-1]:
        turns.append([])
        for name in turns[-2]:
            for other in later.get(name, ()):
                missing[other] -= 1
                if not missing[other]:
                    turns[-1].append(other)
    step = {name: number for number, turn in enumerate(turns, 1) for name in turn}
    if len(step) < len(graph):
        raise ValueError("it has a cycle")
    return step


def _names(names: list[str]) -> str:
    return ", ".join(map(escape, names)) or "-"


def _quoted(name: str, ascii_only: bool) -> str:
    """A name within the quotes of a label: there a backslash begins a command, an ampersand a character."""
    shown = escape(name if len(name) <= SHOWN_OF_A_NAME else f"{name[:SHOWN_OF_A_NAME]}...")
    if ascii_only:
        shown = shown.encode("ascii", "backslashreplace").decode()
    return shown.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
