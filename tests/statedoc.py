"""Writes the layers, the state table and its diagram into docs/architecture.md, from the code itself.

Run as a program it rewrites the marked blocks; a test holds the file equal to what it would write.
"""

from __future__ import annotations

import ast
import functools
import os
from typing import TYPE_CHECKING

from jobmodel import READY, WORDS, Case, Edge, explore

from jobmon import events
from jobmon.events import LEAVING, State
from jobmon.machine import TABLE, Job
from jobmon.spec import JobSpec, Restart

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
    """The modules of each layer, downmost first, each with the first sentence of its docstring."""
    lines = ["| layer | module | what it is |", "| --- | --- | --- |"]
    for layer, modules in _layers().items():
        paths = [path for module in modules for path in _paths(module)]
        lines += [f"| {layer} | [{path}](../jobmon/{path}) | {_role(path)} |" for path in paths]
    return "\n".join(lines)


def _layers() -> dict[str, tuple[str, ...]]:
    """The table by which tests/test_house.py judges: read and not imported, it needs what only tests have."""
    with open(os.path.join(TOP, "tests", "test_house.py"), encoding="utf-8") as file:
        for node in ast.parse(file.read()).body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LAYERS":
                assert node.value is not None
                return dict(ast.literal_eval(node.value))
    raise LookupError("tests/test_house.py has no LAYERS")


def _paths(module: str) -> list[str]:
    """The files of a module, relative to the package; of the command line, which is one subject, all."""
    path = module.replace(".", "/")
    folder = os.path.join(TOP, "jobmon", path)
    if module == "cli":
        return [f"cli/{name}" for name in sorted(os.listdir(folder)) if name.endswith(".py")]
    return [os.path.join(path, "__init__.py") if os.path.isdir(folder) else f"{path}.py"]


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
