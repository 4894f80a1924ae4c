"""Who belongs to whom, where there are no cgroups: each process below the daemon is attributed to a
run, or to nobody. Signals nobody, decides nothing.

A run is over when nobody of it lives, and its next run must not start before. /proc can show who lives. It
cannot simply show that nobody does: between the listing of the directory and the reading of an entry a
process may fork and exit, so its entry is gone and its child was not listed yet. `Tree.is_empty` says that
nobody is left only if all of this holds:

- The scan is complete: everybody was read, and then everybody whose number was given out since, until no
  number was given out during a pass (see `kernel.scan`).
- The attribution is sure. A process that is executing a program has no environment for a moment, and one
  that is ending has none for good. While a process has neither environment nor arguments it may belong to
  any run, so the look proves nothing. (After a hundred such looks it counts as a process without them.)
- No member was found that has died since. It may have had a child after the scan had passed, so another
  look follows. A question costs three looks at most.
- Where the kernel does not say which number it gave out last, two looks in a row found nobody.

Everything else, an unfinished scan too, counts as "somebody may live": the run stays, and a later look
decides. Errors are on the side of a run that takes too long to end.

A member stays a member while it lives, by pid and start time, whatever becomes of its parents, its session or
its environment: nothing is to be proved twice.
"""

from __future__ import annotations

import os
import time

from jobmon.linux.kernel import procfs
from jobmon.linux.kernel.scan import Scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol

    from jobmon.linux.kernel.procfs import Stat

    class Leader(Protocol):
        """The first process of a run."""

        @property
        def pid(self) -> int:
            """Its number."""

        @property
        def dead(self) -> bool:
            """Whether it was reaped."""

        def has_session(self, fact: Stat) -> bool:
            """Whether a process that shows its number as session is in the session that it made."""

        def has_session_still(self, ticks: int) -> None:
            """Note that the session was there at this time, in clock ticks since boot."""

    class Family(Protocol):
        """A run whose members are wanted."""

        @property
        def key(self) -> bytes:
            """What the marker of its processes says."""

        @property
        def leader(self) -> Leader:
            """Its first process."""

    Owner = Family | int | str

_Key = tuple[int, int]  # (pid, start time): names a process for good

PAUSE = 5.0  # seconds between two tellings of strays: some fork and exit all the time
LOOKS = 3  # how many scans one question may cost
ROOM = 1000  # so many processes may be known before those who are gone are looked for
DOUBTS = 100  # so many looks may not tell whether a process has an environment before it has none


class News:
    """The strays that have not been told yet."""

    def __init__(self) -> None:
        self._from = 0.0
        self._told: set[_Key] = set()

    def of(self, strays: list[Stat]) -> list[Stat]:
        """All of them, if one is new, and the last telling is some time ago."""
        if not strays or time.monotonic() < self._from:
            return []
        keys = {(fact.pid, fact.starttime) for fact in strays}
        if keys <= self._told:
            return []
        new = [fact for fact in strays if (fact.pid, fact.starttime) not in self._told]
        self._from = time.monotonic() + PAUSE
        self._told = keys
        return new


class Adopted:
    """The orphans that have come to the daemon, each with what it was found to belong to. Kept until an
    orphan is reaped, so its number is its own as long as it is here."""

    def __init__(self) -> None:
        self._owners: dict[int, Owner] = {}
        self._of: dict[Owner, set[int]] = {}

    def __contains__(self, pid: int) -> bool:
        return pid in self._owners

    def put(self, pid: int, owner: Owner) -> None:
        """Note whose it is."""
        self.drop(pid)
        self._owners[pid] = owner
        self._of.setdefault(owner, set()).add(pid)

    def drop(self, pid: int) -> None:
        """It is reaped, or must be looked at anew."""
        if pid in self._owners:
            owner = self._owners.pop(pid)
            self._of[owner].discard(pid)
            if not self._of[owner]:
                del self._of[owner]

    def of(self, owner: Owner) -> tuple[int, ...]:
        """All that belong to it."""
        return tuple(self._of.get(owner, ()))


class Tree:
    """The processes below the daemon, each attributed to a run or to nobody. One scan serves
    everybody until `forget`, which the loop calls every turn.

    Attributed by, in this order: descent from a member; the session of a leader that lives; having been
    a member before; the marker in the environment; the session of a leader that is dead, as far as the
    number is certainly still its own. Numbers come after the marker because they are given out again.

    A stray is nobody's: an orphan with a session of its own and a cleared environment, or with the marker
    of a run that is over. What a smaller kill-scope let go has its marker too, and is no stray.
    """

    def __init__(self, marker: str) -> None:
        self._prefix = f"JOBMON_RUN={marker}:".encode()
        self._runs: dict[bytes, Family] = {}
        self._by_pid: dict[int, Family] = {}
        self._outlived: set[Family] = set()  # their leaders are dead
        self._leaders: set[int] = set()
        self._lenient: set[bytes] = set()  # jobs that may leave something behind
        self._seen: dict[_Key, Family] = {}
        self._claims: set[_Key] = set()  # members for their marker alone, and what descends from those
        self._markers: dict[_Key, bytes] = {}
        self._doubts: dict[_Key, int] = {}
        self._news = News()
        self.adopted = Adopted()
        self._orphans: frozenset[int] | None = None
        self._scan: Scan | None = None
        self._unfinished: Scan | None = None  # goes on with the next look
        self._owners: dict[int, Family | None] = {}  # who is below us, in this scan
        self._members: dict[Family, list[Stat]] = {}
        self._strays: list[Stat] = []
        self._is_sure = False
        self._room = ROOM
        self._me = os.getpid()

    def add(self, family: Family) -> None:
        """A run whose members are wanted."""
        self._runs[family.key] = self._by_pid[family.leader.pid] = family
        self.forget()

    def remove(self, family: Family) -> None:
        """A run that is over."""
        if self._runs.pop(family.key, None) is None:
            return  # it was removed before
        self._outlived.discard(family)
        if self._by_pid.get(family.leader.pid) is family:
            del self._by_pid[family.leader.pid]
        for pid in self.adopted.of(family):
            self.adopted.drop(pid)

    def let_go(self, job: str) -> None:
        """Note that runs of this job may leave processes that are to stay."""
        self._lenient.add(job.encode())

    def add_leader(self, pid: int) -> None:
        """A child of ours that is no orphan."""
        self._leaders.add(pid)

    def remove_leader(self, pid: int) -> None:
        """A leader was reaped: whoever has its number from now on is somebody else."""
        self._leaders.discard(pid)
        if pid in self._by_pid:
            self._outlived.add(self._by_pid[pid])
        for scan in (self._scan, self._unfinished):
            if scan is not None:
                scan.table.pop(pid, None)

    def forget(self) -> None:
        """What was seen is old."""
        self._scan = self._orphans = None

    def list_anew(self) -> None:
        """Orphans may have come since they were listed: a leader has died that lived then."""
        self._orphans = None

    def reaped(self, pid: int) -> None:
        """An orphan was reaped. Its children have come to us, perhaps since orphans were listed."""
        self.adopted.drop(pid)
        self._orphans = None

    def look_at_nobody(self) -> None:
        """Begin a scan that shows nobody but those who are taken in."""
        self._begin(Scan(of_all=False))

    def reap_orphan(self, pid: int) -> None:
        """Reap a child that is no leader, if it is dead."""
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None:
                return
        except ChildProcessError:
            pass  # it was reaped since it was listed
        self.reaped(pid)

    def reap_orphans(self, until: float) -> bool:
        """Reap our dead children but leaders, until then (CLOCK_MONOTONIC) at most; whether that was all."""
        while time.monotonic() < until:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return True
            if info is None or info.si_pid in self._leaders:
                return True  # a leader's own event is about to reap it
            os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)
            self.reaped(info.si_pid)
        return False

    def take_in_orphans(self, until: float) -> bool:
        """Add our new children to what was seen, the youngest first, and reap those who have died; until
        then (CLOCK_MONOTONIC) at most. Whether it could be told of each whose it is."""
        self._is_sure = True
        table = self._looked().table
        fresh = []
        begin = procfs.ticks()
        for pid in reversed(self._children()):
            if pid in self._leaders:
                continue
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None:
                self.reaped(pid)
                continue
            fact = procfs.stat(pid)
            if fact is not None and (pid not in table or table[pid].starttime != fact.starttime):
                table[pid] = fact
                fresh.append(fact)
            if time.monotonic() > until:
                break
        self._attribute(fresh, begin)
        return self._is_sure

    def alive(self) -> Iterator[Stat]:
        """Everything that lives."""
        return (fact for fact in self._looked().table.values() if fact.state not in procfs.DEAD)

    @property
    def is_looking(self) -> bool:
        """Whether the next look goes on with a scan for which one turn was not enough."""
        return self._unfinished is not None

    def has_looked_at_all(self) -> bool:
        """Whether the present scan has come to everybody who lived when it began."""
        return self._looked().listed

    def members(self, family: Family) -> list[Stat]:
        """The living members of a run, its leader too."""
        self._looked()
        return self._members.get(family, [])

    def strays(self) -> list[Stat]:
        """What lives below the daemon and is nobody's."""
        self._looked()
        return self._strays

    def new_strays(self) -> list[Stat]:
        """The strays of the last look that were not told before. Looks at nothing by itself."""
        return [] if self._scan is None else self._news.of(self._strays)

    def trusted(self, members: list[Stat], others: Iterable[int] = ()) -> list[int]:
        """Those who may speak for their run, of these members: more than the marker shows that they belong to
        it, or they have no other user than root, the daemon, those members, and the `others` of the run."""
        sure = [fact.pid for fact in members if (fact.pid, fact.starttime) not in self._claims]
        if len(sure) == len(members):
            return sure
        users = {0, os.geteuid()}
        for pid in (*sure, *others):
            users |= procfs.users(pid)
        claims = [fact.pid for fact in members if (fact.pid, fact.starttime) in self._claims]
        return sure + [pid for pid in claims if users >= (procfs.users(pid) or {-1})]

    def is_empty(self, find: Callable[[], list[Stat]]) -> bool:
        """Whether nobody lives of those whom `find` finds by the present scan. Only said when it is so:
        a look that may have missed somebody, or could not tell whose somebody is, shows nothing."""
        clean = 0
        for _ in range(LOOKS):
            members = find()
            if any(fact.still_lives(fact.pid) for fact in members) or not self._is_complete():
                return False
            clean = 0 if members else clean + 1
            if clean and (clean > 1 or self._looked().certain):
                return True
            self.forget()  # who was there has died since, and may have had children
        return False

    def orphaned(self) -> bool:
        """Whether the daemon may have children that are no leaders. Cheap."""
        return bool(self.orphans())

    def orphans(self) -> frozenset[int]:
        """The children that are no leaders, zombies too. One listing serves until `forget`; it is made twice,
        because the kernel may leave out a child while another one exits (proc(5))."""
        if self._orphans is None:
            listings = {self._listed(), self._listed()}
            if max(listing.count(b" ") for listing in listings) <= len(self._leaders):
                self._orphans = frozenset()
            else:
                pids = frozenset(int(pid) for listing in listings for pid in listing.split())
                self._orphans = pids - self._leaders
        return self._orphans

    def brood(self, pid: int, until: float) -> list[int]:
        """The children of a process, as many as can be had until then (CLOCK_MONOTONIC)."""
        found = procfs.brood(pid, until)
        return procfs.children(pid, self._looked().table) if found is None else found

    def _children(self) -> list[int]:
        return list(map(int, self._listed().split()))

    def _listed(self) -> bytes:
        """Our children's numbers, each with a space behind it."""
        try:
            with open(procfs.open_file(f"/proc/self/task/{self._me}/children"), "rb") as file:
                return file.read()
        except OSError:  # CONFIG_PROC_CHILDREN is optional
            return b"".join(b"%d " % pid for pid in procfs.children(self._me))

    # ---- the look ---------------------------------------------------------------------------

    def _is_complete(self) -> bool:
        return self._looked().complete and self._is_sure

    def _looked(self) -> Scan:
        if self._scan is not None:
            return self._scan
        scan = self._unfinished
        if scan is None:
            scan = Scan()
        else:
            scan.go_on()
        self._unfinished = None if scan.over else scan
        self._begin(scan)
        self._attribute(scan.table.values(), scan.begin)
        if scan.listed:
            self._prune(scan.table)
        else:
            self._recall(scan)
        return scan

    def _recall(self, scan: Scan) -> None:
        """Who was a member before is one, though the scan has not come to it, or to its parents, yet."""
        for pid, start in list(self._seen):
            fact = scan.table.get(pid) or procfs.stat(pid)
            if pid not in self._owners and fact is not None and fact.starttime == start:
                self._place(fact, self._me)

    def _begin(self, scan: Scan) -> None:
        self._scan = scan
        self._owners = {self._me: None}
        self._members = {}
        self._strays = []
        self._is_sure = True

    def _attribute(self, fresh: Iterable[Stat], begin: int) -> None:
        """Attribute processes, parents first. They were looked at after `begin` (clock ticks since boot)."""
        below: dict[int, list[Stat]] = {}
        for fact in fresh:
            below.setdefault(fact.ppid, []).append(fact)
            if self._outlived:
                self._witness(fact, begin)
        pending = [parent for parent in below if parent in self._owners]
        while pending:
            parent = pending.pop()
            pending += [fact.pid for fact in below.pop(parent, ()) if self._place(fact, parent)]

    def _witness(self, fact: Stat, begin: int) -> None:
        """A number is given to nobody else while somebody of the run has it as session."""
        family = self._by_pid.get(fact.session)
        if family not in self._outlived or family is None:
            return
        if self._seen.get((fact.pid, fact.starttime)) is family or family.leader.has_session(fact):
            family.leader.has_session_still(begin)

    def _place(self, fact: Stat, parent: int) -> bool:
        """Put it where it belongs; False when it, and what is below it, concerns nobody."""
        is_dead = fact.state in procfs.DEAD
        owner = self._inherited(fact, parent) or self.owner(fact)
        if owner is None and (fact.pid in self._leaders or (not is_dead and self.is_let_go(fact))):
            return False
        self._owners[fact.pid] = owner
        if is_dead:
            return True
        if owner is not None:
            self._members.setdefault(owner, []).append(fact)
            self._seen[fact.pid, fact.starttime] = owner
        elif self.is_doubtful(fact):
            self._is_sure = False
        else:
            self._strays.append(fact)
        return True

    def _inherited(self, fact: Stat, parent: int) -> Family | None:
        """Whose it is as a child of its parent. One that is younger has only got the number of its parent."""
        owner = self._owners[parent]
        if owner is None or self._scan is None:
            return owner
        elder = self._scan.table.get(parent)
        if elder is not None and elder.starttime > fact.starttime:
            return None
        if elder is not None and (elder.pid, elder.starttime) in self._claims:
            self._claims.add((fact.pid, fact.starttime))
        return owner

    def _prune(self, table: dict[int, Stat]) -> None:
        """Who is gone need not be known any more."""
        runs = set(self._by_pid.values())
        self._seen = {key: owner for key, owner in self._seen.items() if owner in runs and _is_in(table, key)}
        self._claims = {key for key in self._claims if _is_in(table, key)}
        self._markers = {key: value for key, value in self._markers.items() if _is_in(table, key)}
        self._doubts = {key: count for key, count in self._doubts.items() if _is_in(table, key)}

    def _shed(self) -> None:
        """Forget who is gone, where no scan does it."""
        if max(len(self._seen), len(self._markers)) < self._room:
            return
        pids = {pid for known in (self._seen, self._markers) for pid, _ in known}
        self._prune({pid: fact for pid in pids if (fact := procfs.stat(pid)) is not None})
        self._room = max(ROOM, 2 * len(self._seen), 2 * len(self._markers))

    # ---- evidence ---------------------------------------------------------------------------

    def owner(self, fact: Stat) -> Family | None:
        """The run that a process belongs to by itself, whoever its parent is."""
        of_session = self._by_pid.get(fact.session)
        for family in (self._by_pid.get(fact.pid), of_session):
            if family is not None and not family.leader.dead:
                return family
        key = (fact.pid, fact.starttime)
        known = self._seen.get(key)
        if known is not None and self._runs.get(known.key) is known:
            return known
        marker = b"" if fact.state in procfs.DEAD else self._marker(fact)  # the dead have none
        if marker in self._runs:
            self._claims.add(key)
            return self._runs[marker]
        if not marker and of_session is not None and of_session.leader.has_session(fact):
            return of_session
        return None

    def remember(self, fact: Stat, family: Family, *, claim: bool = False) -> None:
        """A process was found to belong to a run; `claim`: only because its ancestor has the marker."""
        self._seen[fact.pid, fact.starttime] = family
        if claim:
            self._claims.add((fact.pid, fact.starttime))
        self._shed()

    def is_claim(self, fact: Stat) -> bool:
        """Whether the marker alone, its own or an ancestor's, shows whose it is."""
        return (fact.pid, fact.starttime) in self._claims

    def is_let_go(self, fact: Stat) -> bool:
        """Whether its marker says that it may outlive its run."""
        return self._marker(fact).rpartition(b":")[0] in self._lenient

    def _marker(self, fact: Stat) -> bytes:
        """What its environment says: "JOB:RUN", b"" for nothing (or for another daemon's)."""
        key = (fact.pid, fact.starttime)
        known = self._markers.get(key)
        if known is None and fact.state == "D":
            return b""  # who hangs in the kernel may hold what it takes to read that
        if known is None:
            environ = procfs.environ(fact.pid)
            known = _marker_in(environ or b"", self._prefix)
            if environ or (environ is None and _is_hidden(fact.pid)):  # else it has none at this moment
                self._markers[key] = known
                self._shed()
        return known

    def is_doubtful(self, fact: Stat) -> bool:
        """Whether it cannot be told yet whose it is. Who is just executing a program has no environment for a
        moment, and who is just ending none for good: he may have left a child that was not looked at."""
        key = (fact.pid, fact.starttime)
        if self._markers.get(key) is not None:
            return False
        if fact.state != "D" and _has_no_environment(fact.pid):
            return False
        if not fact.still_lives(fact.pid):
            return True
        self._doubts[key] = self._doubts.get(key, 0) + 1
        return self._doubts[key] < DOUBTS


def _has_no_environment(pid: int) -> bool:
    """Whether a program was executed with an empty one. It was not, if it was only about to be."""
    image = procfs.image(pid)
    return bool(image) and not procfs.environ(pid) and procfs.image(pid) == image


def _is_hidden(pid: int) -> bool:
    """Whether a process does not let us see its environment. One that is ending has none (ESRCH)."""
    try:
        os.close(procfs.open_file(f"/proc/{pid}/environ"))
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _is_in(table: dict[int, Stat], key: tuple[int, int]) -> bool:
    fact = table.get(key[0])
    return fact is not None and fact.starttime == key[1]


def _marker_in(environ: bytes, prefix: bytes) -> bytes:
    start = 0 if environ.startswith(prefix) else environ.find(b"\0" + prefix) + 1
    if not start and not environ.startswith(prefix):
        return b""
    return environ[start + len(prefix) :].partition(b"\0")[0]
