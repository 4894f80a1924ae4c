"""Frozen, slotted, typed records.

What `dataclasses` would do, without importing `inspect` and `re` for it: those cost every
client more than starting Python does, and the daemon a megabyte and a half.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_options):
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class _RecordType(type):
    """Turns the annotations of a class body into slots, and its values into defaults."""

    _fields: tuple[str, ...]
    _defaults: dict[str, Any]

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> _RecordType:
        own = tuple(body.get("__annotations__", ()))
        defaults = {field: body.pop(field) for field in own if field in body}
        body["__slots__"] = own
        cls = super().__new__(mcs, name, bases, body)
        parents = [base for base in bases if isinstance(base, _RecordType)]
        cls._fields = tuple(dict.fromkeys((*(f for base in parents for f in base._fields), *own)))
        cls._defaults = {k: v for base in parents for k, v in base._defaults.items()} | defaults
        return cls


class Record(metaclass=_RecordType):
    """The base of all records. Subclasses list typed fields, optionally with defaults.

    Raises:
        TypeError: a field is missing, unknown, or given twice.
        AttributeError: somebody tries to change one.
    """

    if TYPE_CHECKING:
        _fields: ClassVar[tuple[str, ...]]
        _defaults: ClassVar[dict[str, Any]]

    def __init__(self, *args: Any, **named: Any) -> None:
        fields = self._fields
        if len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {len(fields)} fields, not {len(args)}")
        put = object.__setattr__
        for field, value in zip(fields, args):
            put(self, field, value)
        if named or len(args) < len(fields):
            self._fill(fields[len(args) :], named)

    def _fill(self, fields: tuple[str, ...], named: dict[str, Any]) -> None:
        put = object.__setattr__
        defaults = self._defaults
        for field in fields:
            if field in named:
                put(self, field, named.pop(field))
            elif field in defaults:
                put(self, field, defaults[field])
            else:
                raise TypeError(f"{type(self).__name__} needs a value for {field!r}")
        if named:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(map(repr, named))}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be deleted")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field) for field in self._fields)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        inner = ", ".join(f"{f}={v!r}" for f, v in zip(self._fields, self._values()))
        return f"{type(self).__name__}({inner})"

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**(dict(zip(self._fields, self._values())) | changes))
