"""Which job comes before which: the graph that `after` and `requires` make. No I/O, no states.

`after` is order alone; `requires` is order and need. Edges lead from a job to those it comes after.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jobmon.spec import JobSpec


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


def cycle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """A cycle as the names on its way, the first repeated at the end; [] where there is none."""
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        on_path: set[str] = set()
        stack = [(start, iter(edges.get(start, ())))] if start not in done else []
        if stack:
            path.append(start)
            on_path.add(start)
        while stack:
            name, rest = stack[-1]
            following = next((each for each in rest if each not in done), None)
            if following is None:
                stack.pop()
                done.add(name)
                on_path.discard(path.pop())
            elif following in on_path:
                return [*path[path.index(following) :], following]
            else:
                path.append(following)
                on_path.add(following)
                stack.append((following, iter(edges.get(following, ()))))
    return []


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
