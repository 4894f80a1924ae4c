"""The texts of JobMon beside docs/style.md: help, and the errors that the code raises or prints."""

from __future__ import annotations

import ast
import re

import pytest
from test_house import MODULES, tree

from jobmon.cli.commands import VERBS
from jobmon.cli.help import overview, page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Worst patterns, each with the words that docs/style.md wants in its place.
PATTERNS = {
    r"\b(is|are|was|were) to be\b": "must be",
    r"\bexclude each other\b": "are mutually exclusive",
    r"\bmeans? nothing\b": "cannot be used with",
    r"\bmakes? no sense\b": "is invalid, unexpected",
    r"\bthere is no (verb|command)\b": "unknown command",
    r"\bverbs?\b": "command",
    r"\b(is|are) no [a-z]+\b": "is not a",
    r"\bin vain\b|\bgone by\b|\btold apart\b|\bpatience\b|\bof (theirs|his|hers)\b": "see docs/style.md",
    r"\bwhose (it is|they are)\b|\bby the kernel's word\b|\bgo(es)? on\b": "see docs/style.md",
    r"(^|[.:;}] )(Who|What)(ever)?\b|\bwho(ever)? \w+s\b": "name the thing",
    r"!$": "no exclamation mark",
}
PRINTERS = frozenset(("complain", "say", "_point_at"))
ERRORS = re.compile("(Error|Exception|Wrong|Garbage|Unavailable|Unreachable|Lost|Timeout|Failed|Unreadable)$")


def faults(text: str) -> dict[str, str]:
    """The patterns that a text has, each with what would be better."""
    return {found[0]: better for bad, better in PATTERNS.items() if (found := re.search(bad, text))}


def name_of(node: ast.expr) -> str:
    """The last word of what is called: AddressError, spawn.failed."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def texts_of(top: ast.AST) -> Iterator[str]:
    """The texts of exceptions that are made, and of lines that are printed: what varies reads as {}."""
    for call in ast.walk(top):
        if not isinstance(call, ast.Call):
            continue
        name = name_of(call.func)
        if name in PRINTERS or ERRORS.search(name):
            for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
                yield from literals(argument)


def literals(node: ast.AST) -> Iterator[str]:
    """The string literals of an expression; an f-string is one text."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from literals(child)


@pytest.mark.parametrize("command", VERBS)
def test_help_is_in_plain_english(command: str) -> None:
    """The help of each command has none of the patterns that docs/style.md bans."""
    shown = page(VERBS[command])

    assert faults(shown) == {}


def test_the_overview_is_in_plain_english() -> None:
    """So does the list of the commands."""
    assert faults(overview()) == {}


@pytest.mark.parametrize("module", MODULES)
def test_errors_are_in_plain_english(module: str) -> None:
    """No text of an exception, and no line that a command prints, has one of the patterns."""
    found = {text: faults(text) for text in texts_of(tree(MODULES[module]))}

    assert {text: bad for text, bad in found.items() if bad} == {}


def test_refusals_of_the_protocol_are_in_plain_english() -> None:
    """Their texts are seen: the checks of a request's arguments raise them."""
    assert "must be a non-empty list of names" in set(texts_of(tree(MODULES["protocol"])))


@pytest.mark.parametrize(
    "text",
    [
        '"jobs" is to be a list',
        "--dot and --json exclude each other",
        "--timeout means nothing with --no-wait",
        "there is no verb 'strat'",
        "'soon' is no duration",
        "Who waits for it is told",
        "the command goes on, pid 12",
        "it is done!",
    ],
)
def test_the_patterns_are_found(text: str) -> None:
    """A text as it was before is refused, also inside an f-string and behind a keyword."""
    raised, printed = f"raise UsageError({text!r})", f"complain(f{'{x} ' + text!r})"
    for code in (raised, printed, f"e.LookupError(a, b={text!r})"):
        (seen,) = texts_of(ast.parse(code))
        assert faults(seen), code
