"""docs/architecture.md shows the machine as it is."""

from __future__ import annotations

import pytest
import statedoc

from jobmon.core import events
from jobmon.core.events import State
from jobmon.core.machine import TABLE, keep


def document() -> str:
    """docs/architecture.md."""
    with open(statedoc.DOCUMENT, encoding="utf-8") as file:
        return file.read()


def test_the_document_is_what_the_machine_says() -> None:
    """Layers, table and diagram are those of the code; `make docs` writes them again."""
    assert document() == statedoc.written(document())


def test_a_changed_cell_is_seen_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document does not survive a table that it does not show."""
    monkeypatch.setitem(TABLE[events.Start], State.BACKOFF, keep)

    with pytest.raises(AssertionError):
        assert statedoc.table_markdown() in document()


def test_every_module_is_shown_with_its_role() -> None:
    """Nobody has to guess what a file of the package is for: each row of the layers says it in a sentence."""
    rows = [row.split(" | ") for row in statedoc.layers_markdown().splitlines()[2:]]

    assert "[machine.py](../jobmon/core/machine.py)" in [row[1] for row in rows]
    assert [row[1] for row in rows if len(row) != 3 or len(row[2]) < len("A role |")] == []


def test_the_diagram_shows_ways_and_no_standing_still() -> None:
    """Every state has a way in and a way out, and nothing leads to itself."""
    ways = [
        line.split(":")[0].split(" --> ") for line in statedoc.diagram_mermaid().splitlines() if "-->" in line
    ]
    names = {state.value for state in State}

    assert {end.strip() for _, end in ways} == names
    assert {start.strip() for start, _ in ways} == names | {"[*]"}
    assert all(start.strip() != end.strip() for start, end in ways)


def test_a_missing_marker_is_an_error() -> None:
    """A document without its markers is not silently left as it is."""
    with pytest.raises(ValueError, match="unpack"):
        statedoc.written("# Architecture\n")
