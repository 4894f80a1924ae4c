"""The runs that are to be launched, in the order of their turns: what an operator waits for goes first.

A thousand jobs that crash and are started again keep no operator waiting; nor do operators who never
stop asking keep the others down, for each few turns of theirs one is the others'.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.core.events import Spawn

TURNS = 4  # of so many in a row, the last is for what nobody waits for


class Births:
    """One run of each job at most. False when none is left."""

    def __init__(self) -> None:
        self._asked: dict[str, Spawn] = {}
        self._others: dict[str, Spawn] = {}
        self._in_a_row = 0

    def __bool__(self) -> bool:
        return bool(self._asked or self._others)

    def add(self, action: Spawn) -> None:
        """A run is to be launched, after those that were added before it."""
        (self._asked if action.asked else self._others)[action.job] = action

    def call_off(self, job: str, run: int) -> bool:
        """Whether this run was to be launched: it is not any more."""
        for queue in (self._asked, self._others):
            if job in queue and queue[job].run == run:
                del queue[job]
                return True
        return False

    def take(self) -> Spawn:
        """Whose turn it is."""
        turn_of_others = self._others and self._in_a_row + 1 >= TURNS
        queue = self._asked if self._asked and not turn_of_others else self._others
        self._in_a_row = self._in_a_row + 1 if queue is self._asked else 0
        return queue.pop(next(iter(queue)))
