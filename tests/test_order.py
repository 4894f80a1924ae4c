"""The graph of `after` and `requires`, beside the simplest thing that can be said of it.

Reachability is the closure of the edges, made by brute force; of an order only what it promises is asked.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobmon.core.graph import Order, cycles
from jobmon.core.spec import JobSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Edges = Mapping[str, Iterable[str]]

NAMES = "abcdefg"
SETTINGS = settings(max_examples=200, derandomize=True, database=None, deadline=None)
LONG = 20_000  # jobs in a row: far beyond what recursion, or a square, would bear

# For each job the numbers of those it requires, and of those it comes after.
Numbers = list[tuple[set[int], set[int]]]
some = st.sets(st.integers(0, len(NAMES) - 1), max_size=3)
numbers = st.lists(st.tuples(some, some), max_size=len(NAMES))
names = st.lists(st.sampled_from(NAMES), max_size=10)


def specs_of(drawn: Numbers, *, circles: bool) -> list[JobSpec]:
    """Jobs in any order of their names; without circles each edge leads to an earlier one."""
    specs = []
    for number, edges in enumerate(drawn):
        limit = len(drawn) if circles else number
        requires, after = (tuple(NAMES[one] for one in sorted(ends) if one < limit) for ends in edges)
        specs.append(JobSpec(NAMES[number], "true", requires=requires, after=after))
    return sorted(specs, key=lambda spec: (ord(spec.name) * 5) % 7)


acyclic = numbers.map(lambda drawn: specs_of(drawn, circles=False))
any_graph = numbers.map(lambda drawn: specs_of(drawn, circles=True))


# ---- the naive model ----------------------------------------------------------------------------


def reach(edges: Edges) -> dict[str, set[str]]:
    """Where one can get from each name, in one step or more."""
    found = {name: set(ends) for name, ends in edges.items()}
    for _ in NAMES:
        for name, ends in found.items():
            found[name] = ends.union(*(found.get(end, ()) for end in ends))
    return found


def requires(specs: Iterable[JobSpec]) -> dict[str, tuple[str, ...]]:
    """What each job requires."""
    return {spec.name: spec.requires for spec in specs}


def after(specs: Iterable[JobSpec]) -> dict[str, tuple[str, ...]]:
    """What each job comes after: what it requires is part of it."""
    return {spec.name: (*spec.requires, *spec.after) for spec in specs}


def backwards(edges: Edges) -> dict[str, set[str]]:
    """The same edges, in the other direction."""
    found: dict[str, set[str]] = {}
    for name, ends in edges.items():
        for end in ends:
            found.setdefault(end, set()).add(name)
    return found


def in_order(found: list[str], edges: Edges) -> bool:
    """Whether each name stands behind all that it can reach, as far as that is there at all."""
    ways = reach(edges)
    return not any(later in ways.get(name, ()) for at, name in enumerate(found) for later in found[at + 1 :])


# ---- the order ----------------------------------------------------------------------------------


@SETTINGS
@given(any_graph)
def test_the_edges_are_those_of_the_jobs(specs: list[JobSpec]) -> None:
    """Both directions say the same, each edge once, and of a job without edges nothing is kept."""
    order = Order(specs)

    for edges, expected in ((order.requires, requires(specs)), (order.after, after(specs))):
        assert edges == {name: tuple(dict.fromkeys(ends)) for name, ends in expected.items() if ends}
    for edges, expected in ((order.required_by, requires(specs)), (order.before, after(specs))):
        assert {name: set(ends) for name, ends in edges.items()} == backwards(expected)
        assert all(len(ends) == len(set(ends)) for ends in edges.values())


@SETTINGS
@given(any_graph, st.sampled_from(NAMES))
def test_who_is_needed(specs: list[JobSpec], name: str) -> None:
    """All that a job requires, through however many others; itself not, not even in a circle."""
    found = Order(specs).needs(name)

    assert len(found) == len(set(found))
    assert set(found) == reach(requires(specs)).get(name, set()) - {name}


@SETTINGS
@given(acyclic, st.sampled_from(NAMES))
def test_the_deepest_first(specs: list[JobSpec], name: str) -> None:
    """What is needed comes in the order in which it can be started; who needs it, in that of stopping."""
    order = Order(specs)

    assert in_order(list(order.needs(name)), requires(specs))
    assert in_order(order.needed_by(name), backwards(requires(specs)))


@SETTINGS
@given(any_graph, st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES)))
def test_who_needs_it(specs: list[JobSpec], name: str, counts: set[str]) -> None:
    """All that require a job, directly or through such as count; what does not hides what is behind it."""
    found = Order(specs).needed_by(name, counts.__contains__)
    edges = backwards(requires(specs))
    counting = {one: {end for end in ends if end in counts} for one, ends in edges.items()}

    assert len(found) == len(set(found))
    assert set(found) == reach(counting).get(name, set()) - {name}


@SETTINGS
@given(acyclic, names)
def test_sorting(specs: list[JobSpec], wanted: list[str]) -> None:
    """Each name once, and behind those that it comes after, also by way of one that is not asked for."""
    found = Order(specs).sort(wanted)

    assert sorted(found) == sorted(set(wanted))
    assert in_order(found, after(specs))


@SETTINGS
@given(acyclic, names)
def test_what_is_in_order_stays_as_it_is(specs: list[JobSpec], wanted: list[str]) -> None:
    """Who has given names in an order that is possible finds them in that order."""
    order = Order(specs)
    found = order.sort(wanted)

    assert order.sort(found) == found
    if in_order(list(dict.fromkeys(wanted)), after(specs)):
        assert found == list(dict.fromkeys(wanted))


@SETTINGS
@given(any_graph, names)
def test_a_circle_does_no_harm(specs: list[JobSpec], wanted: list[str]) -> None:
    """The configuration refuses circles; whoever asks all the same gets each name once."""
    assert sorted(Order(specs).sort(wanted)) == sorted(set(wanted))


# ---- circles --------------------------------------------------------------------------------------


@SETTINGS
@example([JobSpec("a", "true", requires=("a",))])
@given(any_graph)
def test_a_circle_is_found_and_is_one(specs: list[JobSpec]) -> None:
    """There is one just when some job can reach itself; what is shown are ways round that exist, and no
    name is in two of them."""
    edges = after(specs)
    found = cycles(edges)
    assert bool(found) == any(name in ends for name, ends in reach(edges).items())

    names = [name for way in found for name in way[1:]]
    assert len(set(names)) == len(names)
    for way in found:
        assert way[0] == way[-1]
        assert all(end in edges[name] for name, end in pairwise(way))


@SETTINGS
@given(any_graph)
def test_every_knot_of_circles_is_told(specs: list[JobSpec]) -> None:
    """Jobs that can all reach each other hold one at least: circles that are apart are all there."""
    edges = after(specs)
    ways = reach(edges)
    told = {name for way in cycles(edges) for name in way}

    for name, ends in ways.items():
        if name in ends:
            knot = {other for other in ends if name in ways.get(other, set())}
            assert knot & told


@SETTINGS
@given(acyclic)
def test_where_there_is_none_none_is_found(specs: list[JobSpec]) -> None:
    """What many come after, by many ways, is no circle."""
    assert cycles(after(specs)) == []


def test_a_circle_of_names_without_edges_of_their_own() -> None:
    """Names that lead nowhere, or are nobody's key, are no trouble."""
    assert cycles({"a": ("b", "ghost"), "b": ()}) == []
    assert cycles({"a": ("ghost", "b"), "b": ("c",), "c": ("b",)}) == [("c", "b", "c")]


def test_circles_that_are_apart() -> None:
    """Each is there, whatever leads from one to the other; of two through one name the first is."""
    assert cycles({"a": ("b",), "b": ("a", "c"), "c": ("d",), "d": ("c",), "e": ("e",)}) == [
        ("b", "a", "b"),
        ("d", "c", "d"),
        ("e", "e"),
    ]
    assert cycles({"a": ("b", "c"), "b": ("a",), "c": ("a",)}) == [("b", "a", "b")]


# ---- many -----------------------------------------------------------------------------------------


def needs_in(shape: str, number: int) -> tuple[str, ...]:
    """What a job of many requires, by its number: the one before, the first, the two before."""
    ends = {"chain": (number - 1,), "fan": (0,), "ladder": (number - 1, number - 2)}[shape]
    return tuple(dict.fromkeys(str(max(0, end)) for end in ends if number))


@pytest.mark.parametrize("shape", ["chain", "fan", "ladder"])
def test_many_jobs(shape: str) -> None:
    """Thousands in a row, or on one, need no deep stack, and no time that anybody would notice."""
    specs = [JobSpec(str(number), "true", requires=needs_in(shape, number)) for number in range(LONG)]
    order = Order(specs)
    forwards = [spec.name for spec in specs]
    found = order.sort(reversed(forwards))
    place = {name: at for at, name in enumerate(found)}

    assert sorted(found) == sorted(forwards)
    assert all(place[need] < place[spec.name] for spec in specs for need in spec.requires)
    assert set(order.needed_by("0")) == set(forwards[1:])
    assert len(order.needs(forwards[-1])) == (1 if shape == "fan" else LONG - 1)
    assert cycles(order.after) == []
    assert len(cycles({**order.after, "0": (forwards[-1],)})) == 1


@SETTINGS
@given(acyclic, st.sets(st.sampled_from(NAMES)))
def test_who_is_needed_by_several(specs: list[JobSpec], names: set[str]) -> None:
    """What any of them requires, each with one that does; they themselves not."""
    edges = requires(specs)
    found = Order(specs).needs(*names)

    assert set(found) == {need for name in names for need in reach(edges).get(name, set())} - names
    assert all(need in edges[by] and by in {*found, *names} for need, by in found.items())
