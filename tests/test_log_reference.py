"""docs/log.md has every message that the daemon can write."""

from __future__ import annotations

import ast
import os
import re

import kit

TOP = os.path.dirname(kit.HERE)
WRITERS = ("write", "limited")


def messages() -> set[str]:
    """The texts that stand where a line of the log is written: constants, and names that hold one."""
    found: set[str] = set()
    for here, _, names in os.walk(os.path.join(TOP, "jobmon")):
        for name in names:
            if name.endswith(".py"):
                with open(os.path.join(here, name), encoding="utf-8") as file:
                    found |= written(ast.parse(file.read()))
    return found


def written(tree: ast.Module) -> set[str]:
    """The messages of one module. A line has a level first, and a level is a name in capitals."""
    found = set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if not (isinstance(call.func, ast.Attribute | ast.Name) and len(call.args) > 1):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
            if name in WRITERS and is_level(call.args[0]):
                found |= {text for text in texts(call.args[1], function) if " " in text or ":" in text}
    return found


def is_level(node: ast.expr) -> bool:
    """Whether this is the level of a line: INFO, logfile.ERROR, or a variable of that name."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.isupper() or name == "level"


def texts(node: ast.expr, function: ast.FunctionDef) -> set[str]:
    """The constants that an expression may be; of a local name all that is assigned to it."""
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.IfExp):
        return texts(node.body, function) | texts(node.orelse, function)
    if isinstance(node, ast.Name):
        found = (each for each in ast.walk(function) if isinstance(each, ast.Assign))
        values = (each.value for each in found if ast.unparse(each.targets[0]) == node.id)
        return {str(value.value) for value in values if isinstance(value, ast.Constant)}
    return set()


def reference() -> set[str]:
    """The messages that stand in the tables of docs/log.md."""
    with open(os.path.join(TOP, "docs", "log.md"), encoding="utf-8") as file:
        return set(re.findall(r"^\| `([^`]+)` \|", file.read(), re.MULTILINE))


def test_every_message_is_explained() -> None:
    """An operator finds each line of the log in the reference."""
    assert sorted(messages() - reference()) == []


def test_the_reading_of_the_sources_finds_messages() -> None:
    """The test above looks at something: constants, texts in a variable, and either branch of a choice."""
    found = messages()

    assert {"state changed", "cannot reopen the log", "reload: nothing has changed"} <= found
    assert "another daemon runs this configuration under another path" in found
