"""The documents for users speak of what there is: states, keys, commands, conditions, and each other."""

from __future__ import annotations

import json
import os
import re

import pytest

import jobmon
from jobmon.cli.commands import VERBS
from jobmon.config.keys import JOB, SUPERVISOR
from jobmon.core.events import State
from jobmon.protocol import CONDITIONS

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCS = sorted(name for name in os.listdir(os.path.join(TOP, "docs")) if name.endswith(".md"))
KEYS = {row.name for row in (*JOB, *SUPERVISOR)}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    """A document under docs/."""
    with open(os.path.join(TOP, "docs", name), encoding="utf-8") as file:
        return file.read()


def test_the_index_names_every_document() -> None:
    """A reader finds every page from the index."""
    index = read("index.md")

    assert [name for name in DOCS if name != "index.md" and f"({name}" not in index] == []


def test_every_state_is_explained() -> None:
    """The table of states has a row for each state, in the order of a life."""
    rows = re.findall(r"^\| `(\w+)` \| ", read("states.md"), re.MULTILINE)

    assert sorted(rows) == sorted(state.value for state in State)


def test_every_state_is_compared() -> None:
    """Users of supervisord and systemd find each state beside theirs."""
    table = read("states.md").partition("## For users of supervisord and systemd")[2]
    rows = re.findall(r"^\| (\w+) \| ", table, re.MULTILINE)

    assert sorted(rows[1:]) == sorted(state.value for state in State)


@pytest.mark.parametrize("name", DOCS)
def test_commands_exist(name: str) -> None:
    """Every `jobmon COMMAND` that a document shows is one."""
    text = "".join(body for kind, body in FENCE.findall(read(name)) if kind in ("console", "sh"))
    shown = set(re.findall(r"(?:^\$ |^|\(|`)jobmon ([a-z][a-z-]*)", text, re.MULTILINE))
    shown |= set(re.findall(r"`jobmon ([a-z][a-z-]+)", read(name)))

    assert shown - set(VERBS) == set()


def test_the_keys_of_the_migration_exist() -> None:
    """Every key that a table names as JobMon's is one of the configuration."""
    text = read("migrating.md")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    cells = [row[2] for row in rows if len(row) > 3]
    keys = {key for cell in cells for key in re.findall(r'"([a-z][a-z-]+)"', cell)}

    assert keys - KEYS - {"jobs", "web", "on-failure", "job", "notify", "oneshot"} == set()


def test_examples_of_the_guide_are_json() -> None:
    """What a newcomer copies is read without an error."""
    blocks = [body for kind, body in FENCE.findall(read("getting-started.md")) if kind == "json"]

    assert blocks
    for body in blocks:
        json.loads(body if body.lstrip().startswith("{") else "{" + body + "}")


def test_conditions_are_those_of_wait() -> None:
    """Conditions that documents use after --for or --wait exist."""
    used = {word for name in DOCS for word in re.findall(r"--(?:for|wait) ([a-z]+)", read(name))}

    assert used - set(CONDITIONS) == set()


def test_the_api_page_names_all_exceptions_and_methods() -> None:
    """Every public name, and every method of the two classes, stands in the reference."""
    text = read("python-api.md")
    names = {name for name in jobmon.__all__ if name[0].isupper()} - {"Event07", "EventMessage", "Snapshot"}
    methods = {name for name in vars(jobmon.CommandPipe) if not name.startswith("_")}
    internal = {"submit", "collect", "receive", "answered", "refused", "request", "fileno", "overview"}

    assert {name for name in names if name not in text} == set()
    assert {name for name in methods - internal if f"`{name}(" not in text} == set()
