"""What lean/ offers in the place of the standard library behaves as the original does."""

from __future__ import annotations

import copy
import dataclasses
import enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmon.lean.enums import Enum
from jobmon.lean.records import Record

RecordType: Any = type(Record)
EnumType: Any = type(Enum)
FIELDS = ("a", "b", "c", "d")
VALUES = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=2) | st.tuples(st.integers(0, 1))


def raised(function: Any, *args: Any, **named: Any) -> type[BaseException] | None:
    """The kind of exception that a call raises, if it does; what is frozen says AttributeError."""
    try:
        function(*args, **named)
    except (TypeError, AttributeError) as error:
        return TypeError if isinstance(error, TypeError) else AttributeError
    return None


# ---- records ---------------------------------------------------------------------------------


def pair(defaults: dict[str, Any], count: int, parents: tuple[type, type] = (Record, object)) -> Any:
    """A Record and a frozen dataclass with the first `count` fields, those in `defaults` at their end."""
    names = FIELDS[:count]
    body = {"__annotations__": dict.fromkeys(names, "Any"), **defaults}
    record = RecordType("Same", (parents[0],), dict(body))
    original: Any = dataclasses.dataclass(frozen=True)(type("Same", (parents[1],), dict(body)))
    return record, original


@st.composite
def pairs(draw: st.DrawFn) -> Any:
    """A Record and the dataclass of the same annotations."""
    count = draw(st.integers(0, len(FIELDS)))
    first = draw(st.integers(0, count))
    return pair({name: draw(VALUES) for name in FIELDS[first:count]}, count)


CALLS = st.tuples(
    st.lists(VALUES, max_size=len(FIELDS) + 1), st.dictionaries(st.sampled_from((*FIELDS, "other")), VALUES)
)


def fields(instance: Any) -> dict[str, Any]:
    """The fields that an instance has, with their values."""
    return {name: getattr(instance, name) for name in FIELDS if hasattr(instance, name)}


@given(pairs(), CALLS)
def test_a_record_is_made_as_a_dataclass(made: Any, call: Any) -> None:
    """The same arguments give the same fields and the same repr, or are a TypeError in both."""
    record, original = made
    args, named = call
    assert raised(record, *args, **named) == raised(original, *args, **named)
    if raised(record, *args, **named) is None:
        mine, other = record(*args, **named), original(*args, **named)
        assert fields(mine) == fields(other)
        assert repr(mine) == repr(other)


@given(pairs(), CALLS, CALLS)
def test_records_are_compared_as_dataclasses(made: Any, one: Any, other: Any) -> None:
    """Two are equal, and may stand for each other in a dict, when their kind and all fields are equal."""
    record, original = made
    if raised(record, *one[0], **one[1]) is None and raised(record, *other[0], **other[1]) is None:
        left, right = record(*one[0], **one[1]), record(*other[0], **other[1])
        equal = original(*one[0], **one[1]) == original(*other[0], **other[1])
        assert (left == right) == equal
        assert (left != right) != equal
        assert len({left, right}) == (1 if equal else 2)
        assert left != tuple(fields(left).values())


@given(pairs(), CALLS, st.dictionaries(st.sampled_from((*FIELDS, "other")), VALUES))
def test_a_record_is_replaced_as_a_dataclass(made: Any, call: Any, changes: dict[str, Any]) -> None:
    """A copy has the changed fields, and an unknown field is a TypeError; the first stays as it was."""
    record, original = made
    args, named = call
    if raised(record, *args, **named) is None:
        mine, other = record(*args, **named), original(*args, **named)
        before = fields(mine)
        assert raised(mine.replace, **changes) == raised(dataclasses.replace, other, **changes)
        if raised(mine.replace, **changes) is None:
            assert fields(mine.replace(**changes)) == fields(dataclasses.replace(other, **changes))
        assert fields(mine) == before


@pytest.mark.parametrize("name", ["a", "other", "__class__"])
def test_a_record_is_frozen_as_a_dataclass(name: str) -> None:
    """No attribute can be set or deleted, be it a field or not."""
    for made in pair({"a": 1}, 1):
        instance = made()
        assert raised(setattr, instance, name, 2) is AttributeError
        assert raised(delattr, instance, name) is AttributeError
        assert instance.a == 1


def test_a_record_with_something_unhashable_has_no_hash() -> None:
    """As with a dataclass, it can be compared all the same."""
    for made in pair({}, 1):
        assert raised(hash, made([])) is TypeError
        assert made([]) == made([])


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_a_field_is_inherited_as_in_a_dataclass(args: list[Any]) -> None:
    """Fields of the base come first; one that is given again keeps its place and has the new default."""
    parents = pair({"b": 1}, 2)
    mine, other = pair({"b": 2, "c": 3}, 3, parents)

    assert raised(mine, *args) == raised(other, *args)
    if len(args) <= 3:
        assert repr(mine(*args)) == repr(other(*args))
        assert mine(*args) != parents[0](*args[:2])


# ---- enums -----------------------------------------------------------------------------------

MEMBERS = st.dictionaries(
    st.sampled_from(["ONE", "TWO", "B2", "A_B", "_X"]), st.integers(0, 9) | st.text(max_size=3), min_size=1
).filter(lambda members: len(set(members.values())) == len(members))


def enums(members: dict[str, Any]) -> Any:
    """Our Enum and that of the standard library with these members."""
    return EnumType("Same", (Enum,), dict(members)), enum.Enum("Same", list(members.items()))


@given(MEMBERS, st.integers(0, 12) | st.text(max_size=3))
def test_an_enum_behaves_as_the_original(members: dict[str, Any], value: Any) -> None:
    """Members, their order, names, values and texts are those of `enum`; so is making one of a value."""
    mine, original = enums(members)

    assert [(m.name, m.value, str(m), repr(m)) for m in mine] == [
        (m.name, m.value, str(m), repr(m)) for m in original
    ]
    assert len(mine) == len(original)
    if value in members.values():
        assert mine(value).name == original(value).name
    else:
        said = []
        for made in (mine, original):
            with pytest.raises(ValueError, match="is not a valid Same") as caught:
                made(value)
            said.append(str(caught.value))
        assert said[0] == said[1]


@given(MEMBERS)
def test_each_member_is_there_once(members: dict[str, Any]) -> None:
    """A member is itself only, also when it is copied or made again, and has a hash."""
    for made in enums(members):
        for member in made:
            assert made(member) is made(member.value) is getattr(made, member.name) is member
            assert copy.copy(member) is copy.deepcopy(member) is member
            assert [other for other in made if other == member] == [member]
            assert {member: 1}[member] == 1
            assert member in made
            assert member != member.value


@pytest.mark.parametrize(
    "body", [{"lower": 1}, {"Mixed": 1}, {"A": 1, "B": 1}, {"A": 1, "B": True}, {"A": []}, {"_x": 1}], ids=str
)
def test_what_an_enum_does_not_support_raises(body: dict[str, Any]) -> None:
    """A member with a name that is not upper-case would be dropped silently, an alias be another member."""
    with pytest.raises(TypeError):
        EnumType("Wrong", (Enum,), dict(body))


def test_an_enum_with_members_is_not_extended() -> None:
    """As in `enum`, because a member would belong to two classes."""
    for parent in enums({"A": 1}):
        with pytest.raises(TypeError):

            class More(parent):  # type: ignore[misc, valid-type]
                B = 2


def test_an_enum_may_have_methods() -> None:
    """Functions, properties and class methods are no members."""

    class Light(Enum):
        RED = "r"

        def double(self) -> str:
            return str(self.value) * 2

        @property
        def single(self) -> str:
            return str(self.value)

        @classmethod
        def first(cls) -> Light:
            return next(iter(cls))

    assert list(Light) == [Light.RED]
    assert (Light.RED.double(), Light.RED.single, Light.first()) == ("rr", "r", Light.RED)
