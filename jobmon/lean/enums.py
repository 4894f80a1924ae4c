"""`Enum` without `enum`.

`enum` loads `functools`, `operator` and `reprlib`: half a megabyte of every daemon, and the hash of
an Enum's member is Python code in the hottest places. Here names of members are upper-case, their values
differ, and nothing else is in the body but methods: a class that is written otherwise is a TypeError.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum
else:

    def _check(name, bases, body, values) -> None:
        """Raise TypeError for what `enum` would understand, and this module would not, or otherwise."""
        if any(getattr(base, "_members", ()) for base in bases):
            raise TypeError(f"{name} cannot extend an Enum that has members")
        if len(set(values.values())) < len(values):
            raise TypeError(f"two members of {name} have the same value")
        for key, value in body.items():
            if not key.startswith("__") and not hasattr(value, "__get__"):
                raise TypeError(f"the name of {name}.{key} must be upper-case")

    class _EnumType(type):
        """Makes the values of a class body its members, each of which there is once."""

        def __new__(mcs, name, bases, body):
            values = {key: body.pop(key) for key in list(body) if key.isupper()}
            _check(name, bases, body, values)
            cls = super().__new__(mcs, name, bases, body)
            cls._members = {}
            for key, value in values.items():
                member = object.__new__(cls)
                member.name, member.value = key, value
                cls._members[value] = member
                setattr(cls, key, member)
            return cls

        def __call__(cls, value):
            if isinstance(value, cls):
                return value
            try:
                return cls._members[value]
            except KeyError:
                raise ValueError(f"{value!r} is not a valid {cls.__name__}") from None

        def __iter__(cls):
            return iter(cls._members.values())

        def __len__(cls):
            return len(cls._members)

        def __contains__(cls, value):
            return isinstance(value, cls)

    class Enum(metaclass=_EnumType):
        """As in `enum`: members are compared by identity and made from their values."""

        def __repr__(self):
            return f"<{self}: {self.value!r}>"

        def __str__(self):
            return f"{type(self).__name__}.{self.name}"

        def __copy__(self):
            return self

        def __deepcopy__(self, _memo):
            return self

        def __reduce__(self):
            return type(self), (self.value,)


__all__ = ("Enum",)
