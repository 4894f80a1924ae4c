"""Writes the layers, the state table and its diagram into docs/architecture.md, from the code itself.

Run as a program it rewrites the marked blocks; a test holds the file equal to what it would write.
"""

from __future__ import annotations

import ast
import functools
import os
from typing import TYPE_CHECKING

from jobmodel import READY, WORDS, Case, Edge, explore

from jobmon.core import events
from jobmon.core.events import LEAVING, State
from jobmon.core.machine import TABLE, Job
from jobmon.core.spec import JobSpec, Restart

if TYPE_CHECKING:
    from collections.abc import Iterable

TOP = os.path.join(os.path.dirname(__file__), os.pardir)
DOCUMENT = os.path.join(TOP, "docs", "architecture.md")
COLUMNS = (
    *(State.STOPPED, State.WAITING, State.STARTING, State.RUNNING),
    *(State.STOPPING, State.KILLING, State.BACKOFF),
)
CASES = (Case(Restart.NEVER, READY, 60.0), Case(Restart.ON_FAILURE))  # together they go every way


def layers_markdown() -> str:
    """The modules of each folder, downmost first, each with the first sentence of its docstring."""
    lines = ["| folder | module | what it is |", "| --- | --- | --- |"]
    for folder in _folders():
        for path in _paths(folder):
            name = os.path.basename(path)
            lines.append(f"| {folder} | [{name}](../jobmon/{path}) | {_role(path)} |")
    return "\n".join(lines)


def _folders() -> list[str]:
    """The folders in the order of tests/test_house.py, which is read: to import it needs pytest."""
    with open(os.path.join(TOP, "tests", "test_house.py"), encoding="utf-8") as file:
        for node in ast.parse(file.read()).body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MAY_USE":
                assert isinstance(node.value, ast.Dict)
                return [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
    raise LookupError("tests/test_house.py has no MAY_USE")


_TOP_LEVEL = {"base": ("__init__.py", "errors.py"), "client": ("link.py", "client.py", "transport.py")}


def _paths(folder: str) -> list[str]:
    """The files of a folder, relative to the package, its own description first."""
    if folder in _TOP_LEVEL:
        return list(_TOP_LEVEL[folder])
    place = folder.replace(".", "/")
    names = sorted(name for name in os.listdir(os.path.join(TOP, "jobmon", place)) if name.endswith(".py"))
    return [f"{place}/{name}" for name in names] + (["__main__.py"] if folder == "cli" else [])


def _role(path: str) -> str:
    with open(os.path.join(TOP, "jobmon", path), encoding="utf-8") as file:
        said = ast.get_docstring(ast.parse(file.read())) or ""
    return " ".join(said.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def table_markdown() -> str:
    """TABLE as a markdown table, each cell in its own words."""
    heads = ["stopped, exited, failed", *(state.value for state in COLUMNS[1:])]
    rows = []
    for kind, row in TABLE.items():
        rows.append([WORDS[kind], *(str(row[state].__doc__) for state in COLUMNS)])
        if kind is events.Stop:
            rows.append(["stop now", *map(_stop_now, COLUMNS)])
    lines = [["input", *heads], ["---"] * (1 + len(heads)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _stop_now(state: State) -> str:
    """`now` is an argument of the row above; what it changes is seen by doing it."""
    job = Job(JobSpec("job", "true"))
    job.state = state
    job.next = events.Next.DECIDE if state in LEAVING else None
    actions = job.step(events.Stop(now=True), 0.0)
    if any(isinstance(action, events.Kill) for action in actions):
        return "kill(STOP)"
    return str(TABLE[events.Stop][state].__doc__)


def diagram_mermaid() -> str:
    """The ways between the states as a mermaid diagram, from all that can happen to a job."""
    labels: dict[tuple[State, State], set[str]] = {}
    for edge in _edges():
        if edge.before is not edge.after:
            labels.setdefault((edge.before, edge.after), set()).add(edge.label)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> stopped"]
    lines += [
        f"    {before.value} --> {after.value}: {_joined(labels[before, after])}"
        for before, after in _pairs(labels)
    ]
    return "\n".join([*lines, "```"])


@functools.cache
def _edges() -> set[Edge]:
    return set().union(*(explore(case).edges for case in CASES))


def _pairs(found: Iterable[tuple[State, State]]) -> list[tuple[State, State]]:
    order = list(State)
    return sorted(found, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))


def _joined(labels: set[str]) -> str:
    order = list(WORDS.values())
    return ", ".join(sorted(labels, key=lambda label: (order.index(label.removesuffix(" now")), label)))


def blocks() -> dict[str, str]:
    """What stands between the markers of each name."""
    return {"LAYERS": layers_markdown(), "TABLE": table_markdown(), "DIAGRAM": diagram_mermaid()}


def written(text: str) -> str:
    """The document with its blocks as they should be.

    Raises:
        ValueError: a marker is missing.
    """
    for name, block in blocks().items():
        begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
        head, rest = text.split(begin)
        _, tail = rest.split(end)
        text = f"{head}{begin}\n{block}\n{end}{tail}"
    return text


def main() -> None:
    """Rewrite the document."""
    with open(DOCUMENT, encoding="utf-8") as file:
        text = written(file.read())
    with open(DOCUMENT, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
