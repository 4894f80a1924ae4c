"""What of a run lives outside of its cgroup: processes that have migrated to another one (cgroups(7)).

Nobody leaves a cgroup by forking, but who may write to another cgroup can move there, and is moved by
su -l, sshd and cron (pam_systemd), or by systemd-run --scope. Such a process is found below the leader as
long as that lives, and below an orphan that has come to the daemon afterwards: so a run whose cgroup is
empty has ended if none of the orphans is its. Each orphan is judged once, and again when the run ends in
whose cgroup it was, so that a death costs no look at all processes. Signals nobody; reaps orphans that it
finds dead.
"""

from __future__ import annotations

import time

from jobmon.linux.kernel import procfs
from jobmon.linux.processes.tracker import News

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobmon.linux.kernel.cgroup import Cgroup
    from jobmon.linux.kernel.procfs import Stat
    from jobmon.linux.processes.tracker import Family, Owner, Tree

LOOK_SECONDS = 0.02  # how long one turn may judge orphans
WALK_SECONDS = 0.02  # how long one question may look for descendants
STRAY, LET_GO = "stray", "let go"  # what is no run's: unknown, and known to be left by a smaller kill-scope


class Migrants:
    """The orphans are judged by the evidence of `tree`, once in each turn of the loop at most."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._adopted = tree.adopted
        self._some: Cgroup | None = None
        self._judged: frozenset[int] | None = None
        self._is_complete = True
        self._news = News()

    def settle(self, cgroup: Cgroup) -> None:
        """There is a run in this cgroup."""
        self._some = cgroup

    def may_have(self, family: Family, its: Cgroup) -> bool:
        """Whether something of a run may live, of which the leader is dead and the cgroup empty. An orphan
        of it that has died may have left a child since orphans were listed: ask again, when it is reaped."""
        if not self._judge():
            return True
        for pid in self._adopted.of(its.serial):
            fact = self._living(pid)
            if fact is not None:  # it was in there, and no longer is
                self._tree.remember(fact, family)
            self._adopted.put(pid, family)
        known = self._adopted.of(family)
        for pid in known:
            if self._living(pid) is None:
                self._tree.reap_orphan(pid)
        return bool(known)

    def of(self, family: Family, its: Cgroup, inside: list[int]) -> list[Stat]:
        """The living processes of a run that are not `inside` its cgroup, the leader too."""
        self._judge()
        roots = [*self._adopted.of(family), *self._adopted.of(its.serial), *inside]
        if not family.leader.dead:
            roots.append(family.leader.pid)
        within = set(inside)
        facts = []
        for pid, root in self._descend(roots):
            fact = self._living(pid) if pid not in within else None
            if fact is not None:
                facts.append(fact)
                self._tree.remember(fact, family, claim=root not in within and self._is_claim(root))
        return facts

    def strays(self) -> list[Stat]:
        """What lives below the daemon, in none of its cgroups, and is nobody's."""
        self._judge()
        return self._strays()

    def new_strays(self) -> list[Stat]:
        """Those that were not told before. Judges nobody by itself."""
        return self._news.of(self._strays())

    def _strays(self) -> list[Stat]:
        found = (self._living(pid) for pid, _ in self._descend(self._adopted.of(STRAY)))
        return [fact for fact in found if fact is not None]

    def _judge(self) -> bool:
        """Judge the orphans that are new; whether all are judged."""
        orphans = self._tree.orphans()
        if orphans is self._judged:
            return self._is_complete
        self._judged = orphans
        self._is_complete = True
        until = time.monotonic() + LOOK_SECONDS
        for pid in orphans:
            if pid not in self._adopted:
                self._is_complete = self._judge_one(pid) and self._is_complete
                if time.monotonic() > until:
                    self._is_complete = False
                    break
        return self._is_complete

    def _judge_one(self, pid: int) -> bool:
        """Whether it could be told whose it is."""
        fact = self._living(pid)
        if fact is None:
            self._tree.reap_orphan(pid)
            return False  # what it has left may have come since orphans were listed
        owner: Owner = self._tree.owner(fact) or (0 if self._some is None else self._some.number_of(pid))
        if not owner:
            if self._tree.is_doubtful(fact):
                return False
            owner = LET_GO if self._tree.is_let_go(fact) else STRAY
        self._adopted.put(pid, owner)
        return True

    def _descend(self, roots: Iterable[int]) -> Iterable[tuple[int, int]]:
        """Each of these processes and what descends from it, with the root by which it was found."""
        until = time.monotonic() + WALK_SECONDS
        pending = [(pid, pid) for pid in roots]
        known = {pid for pid, _ in pending}
        while pending and time.monotonic() < until:
            pid, root = pending.pop()
            yield pid, root
            for child in self._tree.brood(pid, until):
                if child not in known:
                    known.add(child)
                    pending.append((child, root))

    def _is_claim(self, root: int) -> bool:
        fact = procfs.stat(root)
        return fact is not None and self._tree.is_claim(fact)

    def _living(self, pid: int) -> Stat | None:
        fact = procfs.stat(pid)
        return None if fact is None or fact.state in procfs.DEAD else fact
