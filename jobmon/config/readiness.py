"""The ways in which a job may show that it is ready: from JSON to one record of the spec for each.

Addresses and URLs are taken apart here, once, so that a probe has nothing to parse. Hosts are numbers or
localhost: to look a name up could make the daemon wait.
"""
# ruff: noqa: D102, ARG002 - the contract of read() and schema() stands in ValueType, with all their arguments

from __future__ import annotations

from jobmon.config.values import TEXT, Command, Flag, Number, ValidationError, ValueType
from jobmon.core import spec
from jobmon.lean.cpython import AF_INET, AF_INET6, inet_pton

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jobmon.config.values import Context, Schema, Step

    Addresses = tuple[tuple[str, int], ...]

LOCALHOST = ("127.0.0.1", "::1")

# As near as a pattern comes to what `addresses` takes.
_HOST = r"(localhost|([0-9]{1,3}\.){3}[0-9]{1,3}|\[[0-9A-Fa-f:.]+\])?"
_ADDRESS = rf"{_HOST}:[0-9]{{1,5}}"


class Ready(ValueType):
    """How a job shows that it is ready: one way, with how often and how long a probe tries."""

    expects = 'an object that names one way, as {"tcp": "127.0.0.1:8080"}, or null'
    words = "object"

    def __init__(self, seconds: ValueType) -> None:
        self._ways: dict[str, ValueType] = {
            "notify": _Yes(),
            "fd": _Way(Number(3, 255, "a number of a descriptor", whole=True), spec.FdReadiness),
            "exec": _Way(Command(), spec.ExecReadiness),
            "tcp": _Way(_Address(), spec.TcpReadiness),
            "http": _Url(),
            "log": _Way(_Pattern(), spec.LogReadiness),
        }
        self._more: dict[str, ValueType] = {"interval": seconds, "timeout": seconds, "owned": Flag()}

    def read(self, value: Any, context: Context) -> spec.Readiness | None:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.not_this(value)
        found: dict[str, Any] = {}
        problems: list[tuple[tuple[Step, ...], str]] = []
        for name, content in value.items():
            kind = self._ways.get(name) or self._more.get(name)
            try:
                if kind is None:
                    raise ValidationError(f"unknown key; a way to be ready can have {', '.join(self._all())}")
                found[name] = kind.read(content, context)
            except ValidationError as error:
                problems += [((name, *steps), message) for steps, message in error.problems]
        ways = [name for name in self._ways if name in value]
        if len(ways) != 1 and not problems:
            what = f"names {' and '.join(ways)}" if ways else "names no way"
            problems.append(((), f"{what}: must name just one of {', '.join(self._ways)}"))
        if "owned" in found and "tcp" not in found and not problems:
            problems.append((("owned",), "can only be said of tcp"))
        if problems:
            raise ValidationError.inside(problems)
        how: spec.Readiness = found.pop(ways[0])
        return how.replace(**{name: each for name, each in found.items() if hasattr(how, name)})

    def _all(self) -> list[str]:
        return [*self._ways, *self._more]

    def schema(self) -> Schema:
        kinds = {**self._ways, **self._more}
        way = {
            "type": "object",
            "properties": {name: kind.schema() for name, kind in kinds.items()},
            "additionalProperties": False,
            "oneOf": [{"required": [name]} for name in self._ways],
        }
        return {"anyOf": [{"type": "null"}, way]}


class _Way(ValueType):
    """A way whose record holds just the value."""

    def __init__(self, kind: ValueType, record: Callable[[Any], spec.Readiness]) -> None:
        self._kind = kind
        self._record = record

    def read(self, value: Any, context: Context) -> spec.Readiness:
        return self._record(self._kind.read(value, context))

    def schema(self) -> Schema:
        return self._kind.schema()


class _Yes(ValueType):
    expects = "true"

    def read(self, value: Any, context: Context) -> spec.Readiness:
        if value is not True:
            raise self.not_this(value)
        return spec.NotifyReadiness()

    def schema(self) -> Schema:
        return {"type": "boolean", "enum": [True]}


class _Address(ValueType):
    expects = 'an address and a port, as "127.0.0.1:8080", "[::1]:8080" or "localhost:8080"'

    def read(self, value: Any, context: Context) -> Addresses:
        found = addresses(value) if isinstance(value, str) else None
        if found is None:
            raise self.not_this(value)
        return found

    def schema(self) -> Schema:
        return {"type": "string", "pattern": rf"^{_ADDRESS}$"}


class _Url(ValueType):
    expects = 'a URL without a name to look up, as "http://127.0.0.1:8080/health"'

    def read(self, value: Any, context: Context) -> spec.Readiness:
        how = _parse_url(value) if isinstance(value, str) else None
        if how is None:
            raise self.not_this(value)
        return how

    def schema(self) -> Schema:
        return {"type": "string", "pattern": rf"^http://({_ADDRESS}|{_HOST})(/[!-~]*)?$"}


class _Pattern(ValueType):
    expects = 'a regular expression, as "ready to accept"'

    def read(self, value: Any, context: Context) -> str:
        import re

        if not isinstance(value, str) or not value:
            raise self.not_this(value)
        try:
            re.compile(TEXT.read(value, context).encode())
        except (re.error, OverflowError, RecursionError) as error:
            raise ValidationError(f"is not a regular expression: {error}") from None
        return value

    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^[^\\u0000]+$"}


def addresses(text: str) -> Addresses | None:
    """Where to connect to for HOST:PORT or [HOST]:PORT, in this order; None if it is no such address."""
    host, colon, port = text.rpartition(":")
    if not (colon and len(port) <= 5 and port.isascii() and port.isdecimal() and 0 < int(port) <= 65535):
        return None
    if host in ("", "localhost"):
        return tuple((number, int(port)) for number in LOCALHOST)
    is_ipv6 = host.startswith("[") and host.endswith("]")
    number = host[1:-1] if is_ipv6 else host
    try:
        inet_pton(AF_INET6 if is_ipv6 else AF_INET, number)
    except (OSError, ValueError):  # ValueError: a NUL, or half a character
        return None
    return ((number, int(port)),)


def _parse_url(text: str) -> spec.HttpReadiness | None:
    """http://HOST[:PORT]/PATH, less its fragment, which is the client's; None if it is no such URL."""
    if not text.startswith("http://") or not text.isascii() or any(char <= " " for char in text):
        return None
    place, slash, rest = text.removeprefix("http://").partition("/")
    found, host = addresses(place), place.rpartition(":")[0]
    if found is None:
        found, host = addresses(f"{place}:80"), place
    if found is None:
        return None
    port, host, path = found[0][1], host or "localhost", slash + rest.partition("#")[0]
    return spec.HttpReadiness(host if port == 80 else f"{host}:{port}", path or "/", found)
