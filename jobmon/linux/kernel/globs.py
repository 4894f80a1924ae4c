"""Globs over the disk: a directory that cannot be looked into is an error, not an empty one.

The patterns are those of glob(7): `*`, `?` and `[...]`; a name that begins with a dot is found only by a
pattern that does, and `**` is two stars.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    # A character, or characters between two bounds (inclusive) and whether these are the ones excluded;
    # None is a star.
    Token = str | tuple[bool, tuple[tuple[str, str], ...]] | None

_ANY = (True, ())  # `?` matches all but nothing


def find(pattern: str) -> list[str]:
    """The paths that match an absolute pattern, in any order.

    Raises:
        FileNotFoundError: the directory that the pattern names before its first wildcard is not there.
        OSError: something on the way cannot be looked at; `filename` is that.
    """
    directory, steps = _split(pattern)
    if not stat.S_ISDIR(os.stat(directory or "/").st_mode):
        raise NotADirectoryError(20, os.strerror(20), directory)
    found: Iterable[str] = [directory]
    for step in steps[:-1]:
        found = [path for place in found for path in _in(place, step) if _is_directory(path)]
    return [path for place in found for path in _last(place, steps[-1])]


def home(pattern: str) -> str:
    """The directory that a pattern names before its first wildcard."""
    return _split(pattern)[0] or "/"


def lost(pattern: str, directory: str, device: int) -> tuple[str, str]:
    """Why nothing in a directory matches a pattern any more, if nobody has removed it: words and a path, or
    nothing. `device` is the file system that the directory was on."""
    if not os.path.isdir(home(pattern)):
        return "there is no directory", home(pattern)
    try:
        now = os.stat(directory or "/").st_dev
    except OSError:
        at = directory
        while not os.path.lexists(at):
            at = os.path.dirname(at)
        return ("nothing is where this link leads:", at) if os.path.islink(at) else ("", "")
    return ("another file system than before is at", directory) if now != device else ("", "")


def _split(pattern: str) -> tuple[str, list[list[Token]]]:
    """The directory before the first wildcard, and the steps below it: at least one."""
    *names, last = pattern.split("/")
    steps = [_tokens(name) for name in names if name]
    count = next((at for at, step in enumerate(steps) if _literal(step) is None), len(steps))
    directory = "".join(f"/{_literal(step)}" for step in steps[:count])
    return directory, [*steps[count:], _tokens(last)]


def _last(place: str, step: list[Token]) -> Iterator[str]:
    if step:
        yield from _in(place, step)
    elif _is_directory(place or "/"):  # the pattern ends with a slash
        yield f"{place}/"


def _in(place: str, step: list[Token]) -> Iterator[str]:
    """The paths in a directory that match one step. Raises OSError."""
    name = _literal(step)
    if name is not None:
        if _is_there(f"{place}/{name}"):
            yield f"{place}/{name}"
        return
    hidden = step[0] == "."
    with os.scandir(place or "/") as entries:
        for entry in entries:
            if (hidden or not entry.name.startswith(".")) and matches(entry.name, step):
                yield f"{place}/{entry.name}"


def _is_there(path: str) -> bool:
    """Is there such a name, be it a link to nothing?"""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False  # a link to nothing


# ---- patterns ---------------------------------------------------------------------------------


def matches(name: str, tokens: list[Token]) -> bool:
    """Does a pattern match all of a name? Goes back to the last star only: an earlier one need not take
    more, because it took as little as it could."""
    at = after_star = resume = 0
    starred = False
    step = 0
    while at < len(name):
        token = tokens[step] if step < len(tokens) else ""
        if token is None:
            starred, after_star, resume = True, step + 1, at
            step += 1
        elif token and _fits(name[at], token):
            at, step = at + 1, step + 1
        elif starred:
            resume += 1
            at, step = resume, after_star
        else:
            return False
    return all(token is None for token in tokens[step:])


def _fits(char: str, token: str | tuple[bool, tuple[tuple[str, str], ...]]) -> bool:
    if isinstance(token, str):
        return char == token
    excluded, ranges = token
    return any(low <= char <= high for low, high in ranges) != excluded


def _literal(tokens: list[Token]) -> str | None:
    """The one name that these tokens match; None for a pattern."""
    return "".join(map(str, tokens)) if all(isinstance(token, str) for token in tokens) else None


def _tokens(pattern: str) -> list[Token]:
    tokens: list[Token] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        end = pattern.find("]", at + 2 + (pattern[at + 1 : at + 2] == "!")) if char == "[" else -1
        if char == "*":
            tokens.append(None)
        elif char == "?":
            tokens.append(_ANY)
        elif end > 0:
            tokens.append(_class(pattern[at + 1 : end]))
            at = end
        else:
            tokens.append(char)
        at += 1
    return tokens


def _class(content: str) -> Token:
    """The characters between brackets; a single one is that character."""
    if len(content) == 1:
        return content
    excluded = content.startswith("!")
    at = int(excluded)
    ranges = []
    while at < len(content):
        high = at + 2 if content[at + 1 : at + 2] == "-" and at + 2 < len(content) else at
        ranges.append((content[at], content[high]))
        at = high + 1
    return excluded, tuple(ranges)
