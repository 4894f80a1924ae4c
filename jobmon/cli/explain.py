"""The verbs that explain: why a job is as it is, and in which order jobs come."""

from __future__ import annotations

import time

from jobmon.cli import OK, say
from jobmon.cli.text import columns, escape
from jobmon.client import CommandPipe
from jobmon.errors import RemoteProtocolError
from jobmon.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from jobmon.cli.verbs import Arguments, Verb

    Graph = dict[str, dict[str, Any]]


def run(verb: Verb, arguments: Arguments) -> int:
    """Ask, and print the answer."""
    options = arguments.options
    with CommandPipe() as daemon:
        told = daemon.why(arguments.given[0]) if verb.name == "why" else daemon.graph()
    if "--json" in options:
        say(dumps(told))
        return OK
    try:
        lines = list(_why(told) if verb.name == "why" else dot(told) if "--dot" in options else steps(told))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RemoteProtocolError(f"a reply to {verb.name} makes no sense: {error!r}") from None
    for line in lines:
        say(line)
    return OK


# ---- why -------------------------------------------------------------------------------------


def _why(told: dict[str, Any]) -> Iterator[str]:
    name = told["job"]
    yield f"{escape(name)} is {told['state']}"
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
    """A unix time as people write it here, to the millisecond."""
    whole = int(moment)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(whole))}.{int((moment - whole) * 1000):03d}"


# ---- graph -----------------------------------------------------------------------------------


def steps(graph: Graph) -> Iterator[str]:
    """The jobs in a table, in the order of their steps: each comes after what is above it there."""
    step = _steps(graph)
    rows = [("STEP", "JOB", "STATE", "REQUIRES", "AFTER")]
    for name in sorted(graph, key=lambda name: (step[name], name)):
        job = graph[name]
        after = [other for other in job["after"] if other not in job["requires"]]
        rows.append((str(step[name]), escape(name), job["state"], _names(job["requires"]), _names(after)))
    return columns(rows)


def dot(graph: Graph) -> Iterator[str]:
    """The graph for graphviz. An arrow leads to what comes later, dashed where that is order only."""
    yield "digraph jobmon {"
    yield '    rankdir="LR"; node [shape="box"];'
    numbers = {name: f"job{number}" for number, name in enumerate(graph)}
    for name, job in graph.items():
        style = ', style="bold"' if job["ready"] else ""
        yield f'    {numbers[name]} [label="{_quoted(name)}\\n{job["state"]}"{style}];'
    for name, job in graph.items():
        for other in job["requires"]:
            yield f"    {numbers[other]} -> {numbers[name]};"
        for other in job["after"]:
            if other not in job["requires"]:
                yield f'    {numbers[other]} -> {numbers[name]} [style="dashed"];'
    yield "}"


def _steps(graph: Graph) -> dict[str, int]:
    """The step of each job: one more than the last of those that it comes after."""
    step: dict[str, int] = {}
    pending = list(graph)
    while pending:
        name = pending[-1]
        earlier = {*graph[name]["requires"], *graph[name]["after"]} & graph.keys()
        missing = [other for other in earlier if other not in step]
        if missing and name not in step:
            if len(pending) > 2 * len(graph):
                raise ValueError("it has a cycle")
            pending += missing
        else:
            step.setdefault(name, 1 + max((step[other] for other in earlier), default=0))
            pending.pop()
    return step


def _names(names: list[str]) -> str:
    return ", ".join(map(escape, names)) or "-"


def _quoted(name: str) -> str:
    """A name within the quotes of a label: there a backslash begins a command."""
    return escape(name).replace("\\", "\\\\").replace('"', '\\"')
