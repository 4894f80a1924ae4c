"""Which job comes before which: the graph that `after` and `requires` make. No I/O, no states.

`after` is order alone; `requires` is order and need. Edges lead from a job to those it comes after.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jobmon.core.spec import JobSpec


class Order:
    """The edges in both directions. A name may be that of no job (any more)."""

    def __init__(self, specs: Iterable[JobSpec]) -> None:
        ordered = [spec for spec in specs if spec.requires or spec.after]
        self.requires: dict[str, tuple[str, ...]] = {s.name: s.requires for s in ordered if s.requires}
        self.after: dict[str, tuple[str, ...]] = {
            s.name: tuple(dict.fromkeys((*s.requires, *s.after))) for s in ordered
        }
        self.required_by = _reversed(self.requires)
        self.before = _reversed(self.after)

    def needs(self, *names: str) -> dict[str, str]:
        """All that jobs require, directly or not, the deepest first, each with one that requires it; what
        was asked for itself not."""
        found = _deepest_first(names, self.requires)
        return {name: by for name, by in found.items() if by is not None}

    def needed_by(self, name: str, counts: Callable[[str], bool] = lambda _: True) -> list[str]:
        """All that require a job, directly or through jobs that count, the outermost first; itself not."""
        return list(self.with_dependents((name,), counts))[:-1]

    def with_dependents(self, names: Iterable[str], counts: Callable[[str], bool]) -> dict[str, str | None]:
        """The names and all that require one of them, directly or through jobs that count, the outermost
        first: each with one that it requires, the names themselves with None."""
        return _deepest_first(names, self.required_by, counts)

    def sort(self, names: Iterable[str]) -> list[str]:
        """The names, each after those of them that it comes after; repeated ones once."""
        wanted = dict.fromkeys(names)
        return [name for name in _deepest_first(wanted, self.after) if name in wanted]


def cycles(edges: Mapping[str, Iterable[str]]) -> list[tuple[str, ...]]:
    """Circles, each as the names on its way with the first once more at the end: the step from the first
    to the second is what closes it. Of circles that share a name one is there."""
    found: list[tuple[str, ...]] = []
    done: set[str] = set()
    for start in edges:
        if start not in done:
            _walk(start, edges, done, found)
    return found


def _walk(
    start: str, edges: Mapping[str, Iterable[str]], done: set[str], found: list[tuple[str, ...]]
) -> None:
    """Depth first from `start`. A step back to a name on the way closes a circle."""
    path = [start]
    places = {start: 0}
    marks = [-1]  # of each place on the way, the last one up to it whose name is taken by a circle
    stack = [iter(edges[start])]
    while stack:
        following = next((each for each in stack[-1] if each not in done), None)
        if following is None:
            stack.pop()
            marks.pop()
            name = path.pop()
            del places[name]
            done.add(name)
        elif following not in places:
            places[following] = len(path)
            path.append(following)
            marks.append(marks[-1])
            stack.append(iter(edges.get(following, ())))
        elif marks[-1] < places[following]:
            way = path[places[following] :]
            found.append((path[-1], *way))
            marks[places[following] :] = range(places[following], len(path))


def _reversed(edges: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, others in edges.items():
        for other in others:
            found.setdefault(other, []).append(name)
    return {name: tuple(names) for name, names in found.items()}


def _deepest_first(
    names: Iterable[str],
    edges: Mapping[str, tuple[str, ...]],
    counts: Callable[[str], bool] = lambda _: True,
) -> dict[str, str | None]:
    """Depth first from the names, so that what is further along the edges comes before what leads there.
    Each is found with the one that led there, a name itself with None."""
    found: dict[str, str | None] = {}
    seen: dict[str, str | None] = {}
    roots = dict.fromkeys(names)
    for root in roots:
        if root in seen:
            continue
        seen[root] = None
        stack = [(root, iter(edges.get(root, ())))]
        while stack:
            current, rest = stack[-1]
            following = next((each for each in rest if each not in seen and counts(each)), None)
            if following is None:
                stack.pop()
                found[current] = None if current in roots else seen[current]
            else:
                seen[following] = current
                stack.append((following, iter(edges.get(following, ()))))
    return found
