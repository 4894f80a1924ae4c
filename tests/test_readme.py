"""The README is run: its configuration, its tour and its Python example do what they say."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest

import jobmon
from jobmon.cli.commands import VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATIENCE = 60
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")

pytestmark = pytest.mark.slow


def readme() -> str:
    """The text of the README."""
    with open(os.path.join(TOP, "README.md"), encoding="utf-8") as file:
        return file.read()


def block(name: str) -> str:
    """The block of code that follows the mark `<!-- test: name -->`."""
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```\n", readme(), re.DOTALL)
    assert found, f"README.md has no block marked {name}"
    return found.group(1)


class Place:
    """A directory with the README's configuration in it, and a shell that finds jobmon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # The one thing that has to differ: 8000 may be taken where the tests run.
        (directory / "shop.json").write_text(block("config").replace("8000", str(port)))
        commands = directory / "bin"
        commands.mkdir()
        (commands / "jobmon").write_text(f'#!/bin/sh\nexec {sys.executable} -m jobmon "$@"\n')
        (commands / "jobmon").chmod(0o755)
        self.environment = dict(
            os.environ,
            PATH=f"{commands}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            PYTHONPATH=os.path.dirname(os.path.dirname(jobmon.__file__)),
            TMP=str(directory),
        )
        self.environment.pop("JOBMON_PORT", None)

    def run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program in the directory, with both streams as one."""
        return subprocess.run(
            words,
            cwd=self.directory,
            env=self.environment,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place for the README's files; a daemon that is left there is ended."""
    made = Place(tmp_path)
    yield made
    if (tmp_path / "shop.control").exists():
        made.environment["JOBMON_PORT"] = f"{tmp_path}/shop.control,{tmp_path}/shop.events"
        made.run("jobmon", "terminate")


def test_the_tour_prints_what_it_says(place: Place) -> None:
    """Typed into a shell, the commands of the tour print just what stands below them."""
    script = ""
    expected = ""
    for line in block("tour").splitlines():
        if line.startswith("$ "):
            # Each command is shown as a terminal would, and one that fails does not end the tour.
            script += f"cat <<'END'\n{line}\nEND\n{line[2:]}\n"
        if line == "$ export JOBMON_PORT=$(jobmon daemon shop.json)":
            script += "jobmon listen --since 0 >events 2>&1 &\n"
        expected += line + "\n"
    done = place.run("bash", "-c", script + "wait\n")

    assert done.stdout == expected
    events = re.search(r"```text\n(.*?)```\n", readme(), re.DOTALL)
    assert events
    assert (place.directory / "events").read_text() == events.group(1)


def test_the_python_example_runs(place: Place) -> None:
    """The example does what its comments say, against a real daemon."""
    place.environment["JOBMON_PORT"] = place.run("jobmon", "daemon", "shop.json").stdout.strip()
    example = place.run(sys.executable, "-W", "error", "-", text=block("api"))
    jobs = json.loads(place.run("jobmon", "list-jobs", "--json").stdout)

    assert example.returncode == 0, example.stdout
    seen = [tuple(line.split()[:2]) for line in example.stdout.splitlines()]
    told = [pair for pair in seen if pair[-1] in ("died", "restarting", "launched")]
    assert told == [("web", "died"), ("web", "restarting"), ("web", "launched")]
    assert "wbe" in example.stdout.splitlines()[-1]
    assert jobs == {"web": False, "mailer": False}


def test_the_table_of_commands_is_complete() -> None:
    """Every verb has its row, and every option that a row names is one of that verb's."""
    rows = re.findall(r"^\| `jobmon ([\w-]+)(.*)$", readme(), re.MULTILINE)
    wrong = []
    for verb, row in rows:
        known = {name for names, _, _ in VERBS[verb].options for name in names.split()}
        wrong += [(verb, option) for option in OPTION.findall(row) if option not in known]

    assert {verb for verb, _ in rows} == set(VERBS) - {"help"}
    assert wrong == []


def test_the_first_screen_says_what_matters() -> None:
    """What it is, a configuration and the two commands stand before anything else."""
    top = "\n".join(readme().splitlines()[:50])
    wanted = ("supervises jobs", "It is for", '"command"', "make demo", "make test")
    order = [top.find(words) for words in wanted]

    assert -1 not in order
    assert order == sorted(order)
    assert top.find("\n## ") == -1 or top.find("\n## ") > order[-1]
