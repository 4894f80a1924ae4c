"""`jobmon graph`: the order of jobs as text and for graphviz, with any names, by the real program too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree as ET

import kit
import pytest

from jobmon.cli.explain import SHOWN_OF_A_NAME, dot, steps
from jobmon.cli.formatting import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Make = Callable[..., kit.Daemon]

WEB = {"command": kit.FOR_EVER}
NEVER_READY = {**WEB, "ready": {"fd": 3}, "autostart": True}
NAMES = (
    *("", " ", "a b", "-", "back\\slash", "end \\", "\\n", "\\N \\G \\l", '"quoted"', '"', "a, b", "a -> b"),
    *("];", "{rec|ord}", "<html>", "&amp; &#65; &lt;", "new\nline", "\x1b[31m\x7f\u2028", "digraph", "[x=y]"),
    *("na\u00efve \u65e5\u672c \U0001f41d", "x" * 4000, "\x01" * 4000, "\\" * 4000, "&" * 4000),
    "\u00fc" * 2000,
)
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="needs graphviz: apt-get install graphviz")


def job(*requires: str, after: tuple[str, ...] = (), ready: bool = False) -> dict[str, Any]:
    """What the daemon says of a job."""
    return {"state": "stopped", "ready": ready, "requires": list(requires), "after": list(after)}


def complaints(stderr: str) -> list[str]:
    """What dot has against its input; a machine without fonts is another matter."""
    return [line for line in stderr.splitlines() if "stdin" in line or "UTF-8" in line or "Error" in line]


def picture(graph: dict[str, Any], **options: Any) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """What graphviz makes of a graph: the lines of each node, and the edges with their style."""
    text = "\n".join(dot(graph, **options))
    done = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, check=True)
    assert complaints(done.stderr) == []
    space = "{http://www.w3.org/2000/svg}"
    labels, edges = {}, []
    for group in ET.fromstring(done.stdout).iter(f"{space}g"):  # noqa: S314 - dot's own
        title = group.findtext(f"{space}title", "")
        if group.get("class") == "node":
            labels[title] = [one.text or "" for one in group.iter(f"{space}text")]
        elif group.get("class") == "edge":
            path = group.find(f"{space}path")
            assert path is not None
            edges.append((title, "dashed" if path.get("stroke-dasharray") else ""))
    return labels, edges


# ---- as text ------------------------------------------------------------------------------------


def table(graph: dict[str, Any]) -> list[list[str]]:
    """The cells of what is printed."""
    return [re.split("  +", line) for line in steps(graph)]


def test_the_steps() -> None:
    """Each job comes after what is above it: one step later than the last of those."""
    graph = {
        "web": job("db", after=("cache", "db")),
        "db": job(),
        "cron": job(after=("web",)),
        "cache": job("db"),
        "alone": job(),
    }

    assert table(graph) == [
        ["STEP", "JOB", "STATE", "REQUIRES", "AFTER"],
        ["1", "alone", "stopped", "-", "-"],
        ["1", "db", "stopped", "-", "-"],
        ["2", "cache", "stopped", "db", "-"],
        ["3", "web", "stopped", "db", "cache"],
        ["4", "cron", "stopped", "-", "web"],
    ]


def test_no_order() -> None:
    """Where nothing comes after anything, all is one step."""
    assert [row[:2] for row in table({"b": job(), "a": job()})][1:] == [["1", "a"], ["1", "b"]]


def test_no_jobs() -> None:
    """A daemon without jobs has a heading, as in status, and an empty picture."""
    assert table({}) == [["STEP", "JOB", "STATE", "REQUIRES", "AFTER"]]
    assert list(dot({})) == ["digraph jobmon {", '    rankdir="LR"; node [shape="box"];', "}"]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_dense_graph(backwards: bool) -> None:
    """Thirty jobs, each after all before it, are thirty steps, in whatever order they are told."""
    names = [f"job {number:02}" for number in range(30)]
    graph = {name: job(*names[:place]) for place, name in enumerate(names)}
    told = dict(reversed(graph.items())) if backwards else graph

    assert [row[:2] for row in table(told)][1:] == [
        [str(place + 1), name] for place, name in enumerate(names)
    ]


def test_a_long_chain() -> None:
    """As many jobs as there may be, one after the other: no recursion, and no time to speak of."""
    graph = {f"{number}": job(*[f"{number - 1}"][: number and 1]) for number in range(10_000)}

    assert sum(1 for _ in steps(dict(reversed(graph.items())))) == 10_001


def test_a_cycle_is_no_answer() -> None:
    """What no daemon says is not shown for ever."""
    with pytest.raises(ValueError, match="cycle"):
        steps({"a": job("b"), "b": job("a"), "c": job()})


def test_names_are_told_as_everywhere() -> None:
    """One line each, with control characters and backslashes escaped."""
    lines = list(steps({name: job() for name in NAMES}))

    assert len(lines) == len(NAMES) + 1
    assert all(line.isprintable() for line in lines)
    told = {line.partition("  ")[2].strip().rpartition("stopped")[0].strip() for line in lines[1:]}
    assert told == {escape(name).strip() for name in NAMES}


# ---- for graphviz -------------------------------------------------------------------------------


def test_the_form_for_graphviz() -> None:
    """An arrow for each need, a dashed one for order alone, bold where it is ready."""
    graph = {"db": job(ready=True), "web": job("db", after=("db", "cache")), "cache": job()}

    assert list(dot(graph)) == [
        "digraph jobmon {",
        '    rankdir="LR"; node [shape="box"];',
        '    job0 [label="db\\nstopped", style="bold"];',
        '    job1 [label="web\\nstopped"];',
        '    job2 [label="cache\\nstopped"];',
        "    job0 -> job1;",
        '    job2 -> job1 [style="dashed"];',
        "}",
    ]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_a_label_ends_where_it_should(name: str) -> None:
    """By graphviz's own rule: a string ends at the first quote without a backslash before it."""
    line = list(dot({name: job()}))[2]
    quoted = re.fullmatch(r'    job0 \[label="((?:[^"\\]|\\.)*)\\nstopped"\];', line)

    assert quoted is not None
    assert line.isprintable()
    assert len(line) < 16_384
    assert not re.search(r"&(?!amp;)", quoted[1])


@needs_dot
def test_graphviz_takes_every_name() -> None:
    """Graphviz reads it without a word, and shows each name as the other verbs print it."""
    graph = {name: job(NAMES[0], after=(NAMES[1],)) for name in NAMES[2:]}
    labels, edges = picture({NAMES[0]: job(), NAMES[1]: job(), **graph})

    shown = [escape(name[:SHOWN_OF_A_NAME] + "..." * (len(name) > SHOWN_OF_A_NAME)) for name in NAMES]
    assert [_words(labels[f"job{number}"]) for number in range(len(NAMES))] == [
        [*filter(None, [name.strip()]), "stopped"] for name in shown
    ]
    wanted = {(f"job0->job{number}", "") for number in range(2, len(NAMES))}
    assert set(edges) == wanted | {(f"job1->job{number}", "dashed") for number in range(2, len(NAMES))}


def _words(lines: list[str]) -> list[str]:
    """The lines of a label that show something; graphviz writes spaces as ones that do not break."""
    return [line for line in (line.replace("\xa0", " ").strip() for line in lines) if line]


@needs_dot
def test_graphviz_takes_letters_as_ascii() -> None:
    """Where the output is not UTF-8, which dot expects, other letters are escaped."""
    labels, _ = picture({"\u00fc \u65e5 \U0001f41d": job()}, ascii_only=True)

    assert _words(labels["job0"]) == [r"\xfc \u65e5 \U0001f41d", "stopped"]


@needs_dot
def test_graphviz_takes_nothing() -> None:
    """No jobs are an empty picture."""
    assert picture({}) == ({}, [])


# ---- by the real program --------------------------------------------------------------------------


def test_the_graph_of_a_daemon(daemon: Make) -> None:
    """States and edges are those of the daemon: requirements as they are configured, and order."""
    jobs = {
        "web": {**WEB, "requires": ["db"], "after": ["db", "cache"]},
        "db": NEVER_READY,
        "cache": {**WEB, "autostart": True},
    }
    one = daemon({"jobs": jobs})
    one.watch(since=0).until("cache", "running")

    assert [re.split("  +", line) for line in one.run_cli("graph").out.splitlines()][1:] == [
        ["1", "cache", "running", "-", "-"],
        ["1", "db", "starting", "-", "-"],
        ["2", "web", "stopped", "db", "cache"],
    ]
    assert 'job2 [label="cache\\nrunning", style="bold"];' in one.run_cli("graph", "--dot").out
    assert one.pipe().graph()["web"] == job("db", after=("db", "cache"))


@needs_dot
@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "ascii"])
def test_the_pipe_to_dot(daemon: Make, encoding: str) -> None:
    """`jobmon graph --dot | dot -Tsvg` works with every name, whatever the locale."""
    jobs = {name: {**WEB, "after": [] if name == NAMES[0] else [NAMES[0]]} for name in NAMES}
    one = daemon({"jobs": jobs})
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m jobmon graph --dot | dot -Tsvg"],
        env={**one.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        check=True,
    )

    assert complaints(done.stderr) == []
    assert done.stdout.count('class="node"') == len(NAMES)


def test_too_much_is_said(daemon: Make) -> None:
    """It takes no names, and one form at a time."""
    one = daemon({})

    for words in (["graph", "web"], ["graph", "--dot", "--json"]):
        code, out, err = one.run_cli(*words)
        assert (code, out) == (2, "")
        assert err.startswith("jobmon: graph: ")


def test_without_a_daemon(daemon: Make) -> None:
    """69, as everywhere."""
    one = daemon({})
    code, out, err = one.run_cli("graph", env={**one.environ, "JOBMON_PORT": "/no/control,/no/event"})

    assert (code, out) == (69, "")
    assert "no daemon answers at /no/control" in err
