"""Who waits for what: the whole of the design's section 8 as tables, over the real supervisor.

No kernel and no clock: every row tells a story of one job, word by word, each word a turn of the loop.
The cells are what the design says, not what the code does.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from jobmon.core import conditions, eventlog, events
from jobmon.core.eventlog import EventLog
from jobmon.core.events import Reply, State
from jobmon.core.spec import FdReadiness, JobSpec, JobType, Restart
from jobmon.core.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from jobmon.core.eventlog import Event

READY = FdReadiness(3)
STEADY = 5.0  # the seconds of "stable"
COLUMNS = ("changed", "running", "ready", "restarted", "stable", "stopped", "exited", "settled")

# The jobs that rows are about: `web` ends for good when it ends, `pool` is always started again, `frail`
# too but for so long only, `task` is ready when it has succeeded, `app` requires `db`; a and b are for more
# than one.
JOBS = (
    JobSpec("web", "true", ready=READY, start_timeout=60.0),
    JobSpec("pool", "true", ready=READY, restart=Restart.ALWAYS),
    JobSpec("frail", "true", ready=READY, restart=Restart.ALWAYS, max_restarts=0),
    JobSpec("task", "true", type=JobType.ONESHOT),
    JobSpec("db", "true", ready=READY),
    JobSpec("app", "true", ready=READY, requires=("db",)),
    JobSpec("a", "true", ready=READY),
    JobSpec("b", "true", ready=READY),
)

# The three kinds of baseline, each a letter of a cell: `wait`, `wait -- CMD`, `wait --since TOKEN`. The first
# two begin to wait at the bar, and what they say is what they have said by the end of the row; the third
# comes at the end, with the token of the bar.
#     H  it has held            F  it has failed, at once          -  it still waits          x  no such job
MATRIX = """
what has happened | what happens then          changed running ready restarted stable stopped exited settled

web: |                                           ---     F--    F--     ---     F--     HHH    FFF     HHH
web: start nofile |                              ---     F--    F--     ---     F--     HHH    FFF     HHH
web: up down |                                   ---     F--    F--     ---     F--     HHH    HHH     HHH
web: up exit0 |                                  ---     F--    F--     ---     F--     HHH    HHH     HHH
web: up exit7 |                                  ---     F--    F--     ---     F--     HHH    HHH     HHH
app: start |                                     ---     ---    ---     ---     ---     ---    FFF     ---
app: db.up up exit7 db.down start |              ---     ---    ---     ---     ---     ---    HHH     ---
web: start |                                     ---     ---    ---     ---     ---     ---    ---     ---
web: start launch |                              ---     HHH    ---     ---     ---     ---    ---     ---
web: up |                                        ---     HHH    HHH     ---     ---     ---    ---     HHH
web: up 5s |                                     ---     HHH    HHH     ---     H-H     ---    ---     HHH
web: up stop |                                   ---     ---    ---     ---     ---     ---    ---     ---
web: up stop patience |                          ---     ---    ---     ---     ---     ---    ---     ---
web: up restart |                                ---     ---    ---     ---     ---     ---    ---     ---
web: up remove |                                 ---     ---    ---     ---     ---     ---    ---     ---
web: up orphans |                                ---     ---    ---     ---     ---     ---    ---     ---
web: up terminate |                              ---     FFF    FFF     FFF     FFF     ---    ---     ---
web: terminate |                                 FFF     FFF    FFF     FFF     FFF     HHH    FFF     HHH
pool: up exit7 |                                 ---     ---    ---     ---     ---     ---    HHH     ---
pool: start nofile |                             ---     ---    ---     ---     ---     ---    FFF     ---
frail: up exit7 again launch exit7 |             ---     F--    F--     ---     F--     HHH    HHH     HHH
task: start launch |                             ---     HHH    ---     ---     ---     ---    ---     ---
task: start launch exit0 |                       ---     F--    HHH     ---     ---     HHH    HHH     HHH
task: start launch exit0 5s |                    ---     F--    HHH     ---     H-H     HHH    HHH     HHH
task: start launch exit7 |                       ---     F--    F--     ---     F--     HHH    HHH     HHH

web: | start                                     ---     F--    F--     ---     F--     HH-    FF-     HH-
web: | start launch                              HHH     FHH    F--     ---     F--     HH-    FF-     HH-
web: | up                                        HHH     FHH    FHH     HHH     F--     HH-    FF-     HHH
web: | up 5s                                     HHH     FHH    FHH     HHH     FHH     HH-    FF-     HHH
web: | start nofile                              ---     FFF    FFF     FFF     FFF     HHH    FFF     HHH
web: | start launch exit7                        HHH     FHF    FFF     FFF     FFF     HHH    FFH     HHH
app: | start                                     ---     F--    F--     ---     F--     HH-    FFF     HH-
app: start | db.launch db.ready launch ready     HHH     HHH    HHH     HHH     ---     ---    FF-     HHH
app: start | db.exit7                            ---     FFF    FFF     FFF     FFF     HHH    FFF     HHH
app: start | stop                                ---     F--    F--     ---     F--     HHH    FFF     HHH
app: start | remove                              FFx     FFx    FFx     FFx     FFx     HHx    FFx     HHx

web: start launch | ready                        ---     HHH    HHH     ---     ---     ---    ---     HHH
web: start launch | down                         HHH     HH-    F--     ---     F--     HHH    HHH     HHH
web: start launch | late gone                    HHH     HHF    FFF     FFF     FFF     HHH    HHH     HHH
web: start launch | exit0                        HHH     HHF    FFF     FFF     FFF     HHH    HHH     HHH
web: start launch | remove gone                  HHx     HHx    FFx     FFx     FFx     HHx    HHx     HHx
web: start launch | terminate                    ---     HHF    FFF     FFF     FFF     ---    ---     ---

web: up | 2s                                     ---     HHH    HHH     ---     ---     ---    ---     HHH
web: up | 5s                                     ---     HHH    HHH     ---     HHH     ---    ---     HHH
web: up 3s | 2s                                  ---     HHH    HHH     ---     H-H     ---    ---     HHH
web: up | stop                                   ---     HH-    HH-     ---     ---     ---    ---     HH-
web: up | down                                   HHH     HH-    HH-     ---     F--     HHH    HHH     HHH
web: up | stop patience gone                     HHH     HH-    HH-     ---     F--     HHH    HHH     HHH
web: up | exit0                                  HHH     HHF    HHF     FFF     FFF     HHH    HHH     HHH
web: up | exit7                                  HHH     HHF    HHF     FFF     FFF     HHH    HHH     HHH
web: up | orphans                                ---     HH-    HH-     ---     ---     ---    ---     HH-
web: up | orphans gone                           HHH     HHF    HHF     FFF     FFF     HHH    HHH     HHH
web: up | restart                                ---     HH-    HH-     ---     ---     ---    ---     HH-
web: up | restart gone                           HHH     HH-    HH-     ---     F--     ---    HHH     HH-
web: up | restart gone launch                    HHH     HHH    HH-     ---     F--     ---    HHH     HH-
web: up | restart gone launch ready              HHH     HHH    HHH     HHH     F--     ---    HHH     HHH
web: up | restart gone launch exit7              HHH     HHF    HHF     FFF     FFF     HHH    HHH     HHH
web: up | exit7 up                               HHH     HHH    HHH     FFH     FFF     HH-    HHH     HHH
web: up | remove                                 ---     HH-    HH-     ---     ---     ---    ---     HH-
web: up | remove gone                            HHx     HHx    HHx     FFx     FFx     HHx    HHx     HHx
web: up remove | gone                            HHx     FFx    FFx     FFx     FFx     HHx    HHx     HHx
web: up exit7 | remove                           FFx     FFx    FFx     FFx     FFx     HHx    HHx     HHx
web: | terminate                                 FFF     FFF    FFF     FFF     FFF     HHH    FFF     HHH
web: up exit7 | terminate                        FFF     FFF    FFF     FFF     FFF     HHH    HHH     HHH

pool: up | exit7                                 HHH     HH-    HH-     ---     FFF     ---    HHH     HH-
pool: up | exit7 again                           HHH     HH-    HH-     ---     FFF     ---    HHH     HH-
pool: up | exit7 again launch                    HHH     HHH    HH-     ---     FFF     ---    HHH     HH-
pool: up | exit7 again launch ready              HHH     HHH    HHH     HHH     FFF     ---    HHH     HHH
pool: up exit7 | again launch ready              HHH     HHH    HHH     HHH     ---     ---    HH-     HHH
pool: up exit7 | stop                            ---     F--    F--     ---     F--     HHH    HHH     HHH
pool: up exit7 | terminate                       FFF     FFF    FFF     FFF     FFF     HHH    HHH     HHH
pool: up exit7 | remove                          FFx     FFx    FFx     FFx     FFx     HHx    HHx     HHx
pool: | start nofile                             ---     F--    F--     ---     F--     HH-    FFF     HH-
pool: start nofile | again launch ready          HHH     HHH    HHH     HHH     ---     ---    FF-     HHH
frail: start launch exit7 | again launch exit7   HHH     HHF    FFF     FFF     FFF     HHH    HHH     HHH

task: | start launch exit0                       HHH     FHF    FHH     HHH     F--     HHH    FFH     HHH
task: | start launch exit0 5s                    HHH     FHF    FHH     HHH     FHH     HHH    FFH     HHH
task: | start launch exit7                       HHH     FHF    FFF     FFF     FFF     HHH    FFH     HHH
task: start launch exit0 | start launch          HHH     FHH    HH-     ---     ---     HH-    HH-     HH-
task: start launch exit0 | start launch exit0    HHH     FHF    HHH     HHH     ---     HHH    HHH     HHH
task: start launch exit0 | start launch exit0 5s HHH     FHF    HHH     HHH     HHH     HHH    HHH     HHH
task: start launch exit0 | 5s                    ---     F--    HHH     ---     HHH     HHH    HHH     HHH
"""

# `start`, `stop` and `restart` with --wait COND: the first word after the bar is the command that asks. What
# it asks for is a new run (or the end of this one), so the present one does not count, nor its death. It may
# have to wait for its turn: `app` goes before `db`.
COMMANDS = """
what has happened | what is asked for, and then changed running ready restarted stable stopped exited settled

web: | start                                       -       -      -       -       -       -      -       -
web: | start launch                                H       H      -       -       -       -      -       -
web: | start launch ready                          H       H      H       H       -       -      -       H
web: | start launch ready 5s                       H       H      H       H       H       -      -       H
web: | start launch ready exit7                    H       H      H       H       F       H      H       H
web: | start launch exit7                          H       H      F       F       F       H      H       H
web: | start nofile                                F       F      F       F       F       H      F       H
web: up exit0 | start launch                       H       H      -       -       -       -      -       -
web: up exit0 | start launch exit0                 H       H      F       F       F       H      H       H
pool: | start nofile                               -       -      -       -       -       -      F       -
pool: | start nofile again launch ready            H       H      H       H       -       -      F       H
task: | start launch exit0                         H       H      H       H       -       H      H       H
task: | start launch exit0 5s                      H       H      H       H       H       H      H       H

web: up | restart                                  -       -      -       -       -       -      -       -
web: up 5s | restart                               -       -      -       -       -       -      -       -
web: up | restart gone                             H       -      -       -       -       -      -       -
web: up | restart gone launch                      H       H      -       -       -       -      -       -
web: up | restart gone launch ready                H       H      H       H       -       -      -       H
web: up | restart gone launch ready 5s             H       H      H       H       H       -      -       H
web: up | restart gone launch ready exit7          H       H      H       H       F       H      H       H
web: start launch | restart gone launch exit7         H       H      F       F       F       H      H       H
web: start launch | restart gone nofile            H       F      F       F       F       H      F       H
pool: up exit7 | restart launch ready              H       H      H       H       -       -      -       H

web: up | stop                                     -       -      -       -       -       -      -       -
web: up | stop gone                                H       F      F       F       F       H      H       H
pool: up exit7 | stop                              F       F      F       F       F       H      H       H
db: up app.up | restart                            -       -      -       -       -       -      -       -
db: up app.up | restart app.gone                   -       -      -       -       -       -      -       -
db: up app.up | restart app.gone gone launch ready    H       H      H       H       -       -      -       H
db: up app.up | stop                               -       H      H       -       -       -      -       -
db: up app.up | stop app.gone gone                 H       H      H       F       F       H      H       H
"""


def rows(table: str) -> dict[str, list[str]]:
    """The rows of a table: the story, and a cell for each column."""
    lines = [line for line in table.splitlines() if ":" in line]
    split = [line.rsplit(maxsplit=len(COLUMNS)) for line in lines]
    return {" ".join(story.split()): cells for story, *cells in split}


SHORT = {"up": "start launch ready", "down": "stop gone", "renew": "gone launch ready"}


def words_of(text: str, job: str) -> Iterator[tuple[str, str]]:
    """What a text tells, and of which job: `b.start` is about another one."""
    for word in text.split():
        who, _, what = word.rpartition(".")
        for each in SHORT.get(what, what).split():
            yield each, who or job


def condition(name: str) -> tuple[str, conditions.Condition]:
    """A condition as the daemon passes it."""
    return name, conditions.condition(name, STEADY)


class World:
    """All jobs, a clock that only the story moves, and whoever waits, by name."""

    def __init__(self) -> None:
        self.supervisor = Supervisor(JOBS)
        self.now = 0.0
        self.armed: dict[Hashable, tuple[int, float]] = {}
        self.answers: dict[Hashable, Reply] = {}

    # ---- the words of a story

    def tell(self, text: str, job: str = "web") -> None:
        """Let it happen, word by word."""
        for word, who in words_of(text, job):
            self.turn(word, who)

    def turn(self, word: str, name: str) -> None:
        """One word, and everything that comes of it at once."""
        job = self.supervisor.jobs.get(name)
        run = job.run if job is not None else 0
        happens: dict[str, events.Input] = {
            "nofile": events.SpawnFailed(run, "exec", errno.ENOENT, "no such file"),
            "ready": events.Ready(run),
            "orphans": events.LeaderDied(run, 7),
            "gone": events.Exited(run, "SIGTERM"),
            "exit0": events.Exited(run, 0),
            "exit7": events.Exited(run, 7),
            "remove": events.Remove(),
        }
        if word in happens:
            self.supervisor.feed(name, happens[word], self.now)
        elif word == "launch":
            self.supervisor.feed(name, events.Launched(run, 100 + run), self.now)
            self.supervisor.feed(name, events.Spawned(run), self.now)
        elif word in ("start", "stop", "restart"):
            self.command(word, name, object(), None)
        elif word == "terminate":
            self.supervisor.terminate(self.now)
        elif word in ("again", "late", "patience"):
            assert name in self.armed, f"{name} waits for no timer"
            self.pass_until(self.armed[name][1])
        else:
            self.pass_until(self.now + float(word.removesuffix("s")))
        self.act()

    def pass_until(self, at: float) -> None:
        """Time passes; what falls due does so in its order."""
        while due := sorted((when, str(key), key) for key, (_, when) in self.armed.items() if when <= at):
            self.now, _, key = due[0]
            self.fire(key)
        self.now = at

    def fire(self, key: Hashable) -> None:
        """What is armed for `key` has come."""
        self.supervisor.timer(key, self.armed.pop(key)[0], self.now)
        self.act()

    def act(self) -> None:
        """What the supervisor wants: timers and answers are all that matters here."""
        for action in self.supervisor.take():
            if isinstance(action, events.Arm):
                self.armed[action.key] = (action.token, action.at)
            elif isinstance(action, events.Disarm):
                self.armed.pop(action.key, None)
            elif isinstance(action, Reply):
                assert action.to not in self.answers, "answered twice"
                self.answers[action.to] = action
            else:
                assert not isinstance(action, events.Impossible), action

    # ---- who waits

    def command(self, verb: str, name: str, to: Hashable, until: str | None) -> None:
        """Start, stop or restart, and wait for a condition."""
        ask = getattr(self.supervisor, verb)
        ask([name], to, self.now, until=None if until is None else condition(until))
        self.act()

    def wait(
        self,
        to: Hashable,
        until: str,
        *names: str,
        any_of: bool = False,
        since: int | None = None,
        acts: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Somebody waits, as `jobmon wait` does."""
        self.supervisor.wait(
            names or ("web",),
            to,
            self.now,
            until=condition(until),
            any_of=any_of,
            since=since,
            fresh=not acts,
            timeout=timeout,
        )
        self.act()

    def verdict(self, to: Hashable) -> str:
        """What somebody has heard, as a letter of the tables. No answer is without its reason."""
        reply = self.answers.get(to)
        if reply is None:
            return "-"
        if reply.ok:
            return "H"
        if reply.code == "no-such-job":
            return "x"
        assert reply.message
        return "F" if reply.code in ("failed", "terminating", "could-not-start") else reply.code

    def is_forgotten(self) -> bool:
        """Whether nobody waits any more and no timer of theirs is armed, once those left have gone."""
        for to in list(self.supervisor.waiters._by_asker):
            self.supervisor.drop(to)
        self.act()
        waiters = self.supervisor.waiters
        deadlines = [key for key in self.armed if not isinstance(key, str)]
        return not (waiters._by_key or waiters._by_job or deadlines)


# ---- the tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize("story", rows(MATRIX))
def test_every_condition_from_everywhere(story: str) -> None:
    """Each condition with each kind of baseline comes to what the design says."""
    job, _, words = story.partition(": ")
    before, _, after = words.partition("|")
    world = World()
    world.tell(before, job)
    token = world.supervisor.log.last
    for name in COLUMNS:
        world.wait((name, "plain"), name, job)
        world.wait((name, "acts"), name, job, acts=True)
    world.tell(after, job)
    found = [world.verdict((name, "plain")) + world.verdict((name, "acts")) for name in COLUMNS]
    for number, name in enumerate(COLUMNS):
        world.wait((name, "since"), name, job, since=token)
        found[number] += world.verdict((name, "since"))

    assert dict(zip(COLUMNS, found, strict=True)) == dict(zip(COLUMNS, rows(MATRIX)[story], strict=True))
    assert world.is_forgotten()


@pytest.mark.parametrize("story", rows(COMMANDS))
def test_every_condition_after_a_command(story: str) -> None:
    """A command with --wait COND is answered for what it has asked for, not for what was there before."""
    job, _, words = story.partition(": ")
    before, _, after = words.partition("|")
    verb, _, then = after.strip().partition(" ")
    found = []
    for name in COLUMNS:
        world = World()
        world.tell(before, job)
        world.command(verb, job, "me", name)
        world.tell(then, job)
        found.append(world.verdict("me"))
        assert world.is_forgotten()

    assert dict(zip(COLUMNS, found, strict=True)) == dict(zip(COLUMNS, rows(COMMANDS)[story], strict=True))


def every_story() -> list[tuple[str, list[tuple[str, str]]]]:
    """The stories of the matrix without their bars: a job, and what happens to whom."""
    found = {}
    for story in rows(MATRIX):
        job, _, text = story.partition(": ")
        words = list(words_of(text.replace("|", ""), job))
        found[job, tuple(words)] = words
    return [(job, words) for (job, _), words in found.items()]


@pytest.mark.parametrize("name", COLUMNS)
def test_no_turn_is_missed(name: str) -> None:
    """Between whichever two turns it begins, a wait says in the very turn what somebody who asked with its
    token after every single turn would be told first."""
    for job, words in every_story():
        for begin in range(len(words) + 1):
            waits_between(name, job, words, begin)


def waits_between(name: str, job: str, words: list[tuple[str, str]], begin: int) -> None:
    """One who begins to wait after `begin` words, beside one who asks after each of the others."""
    world = World()
    token = -1
    for word, who in words[:begin]:
        token = world.supervisor.log.last
        world.turn(word, who)
    if token == world.supervisor.log.last:
        return  # nothing was told of this turn: a token means one before
    token = world.supervisor.log.last
    seen = world.supervisor.jobs.get(job)
    if seen is None or (seen.state is State.STARTING and seen.pid is None):
        return  # it is removed; or has a run that no event has told of yet, which to a token is a later one
    world.wait("armed", name, job, acts=True)
    for turn, (word, who) in enumerate((("", job), *words[begin:])):
        if word:
            world.turn(word, who)
        told = world.verdict("armed")
        world.wait(turn, name, job, since=token)
        asked = world.verdict(turn)
        if asked == "x":
            return  # it is removed: the matrix says what that comes to
        assert told == asked, (job, words[:begin], words[begin : begin + turn])
        if asked != "-":
            return


# ---- several jobs -------------------------------------------------------------------------------

# What ready comes to, first for one job and then for another; what that is for both, and for any of them.
STORIES = {"H": "up", "F": "start nofile", "-": "start launch"}
SEVERAL = """
one other   all any

H   H        H   H
H   F        F   H
H   -        -   H
F   F        F   F
F   -        F   -
-   H        -   H
-   F        F   -
-   -        -   -
"""


@pytest.mark.parametrize("armed", [True, False], ids=["armed", "since"])
@pytest.mark.parametrize("line", SEVERAL.strip().splitlines()[2:])
@pytest.mark.parametrize("order", ["a b", "b a"])
def test_all_and_any(line: str, order: str, armed: bool) -> None:
    """All fail with the first that fails; any hold with the first that holds, and fail with the last."""
    *letters, of_all, of_any = line.split()
    world = World()
    if armed:
        world.wait("all", "ready", "a", "b", acts=True)
        world.wait("any", "ready", "a", "b", acts=True, any_of=True)
    for letter, name in zip(letters, order.split(), strict=True):
        world.tell(STORIES[letter], name)
    if not armed:
        world.wait("all", "ready", "a", "b", since=0)
        world.wait("any", "ready", "a", "b", since=0, any_of=True)

    assert (world.verdict("all"), world.verdict("any")) == (of_all, of_any)
    assert world.is_forgotten()


@pytest.mark.parametrize(
    ("name", "before", "story"),
    [
        ("running", "", "a.up a.stop b.up a.gone a.start a.launch"),
        ("ready", "", "a.up a.stop b.up a.gone a.up"),
        ("restarted", "a.up b.up", "a.restart a.renew a.restart b.restart b.renew a.renew"),
        ("stable", "", "a.up 3s b.up 3s 2s"),
        ("stopped", "a.up b.up", "a.down a.up b.down a.down"),
        ("settled", "a.start b.start", "a.launch a.ready a.stop b.launch b.ready a.gone"),
    ],
)
def test_all_at_the_same_moment(name: str, before: str, story: str) -> None:
    """What has held for each, one after the other, holds for both with the last word only."""
    world = World()
    world.tell(before)
    world.wait("me", name, "a", "b", since=world.supervisor.log.last)
    for word, who in words_of(story, "web"):
        assert world.verdict("me") == "-"
        world.turn(word, who)

    assert world.verdict("me") == "H"


def test_a_change_is_kept_until_the_others_have_changed_too() -> None:
    """That it changed once since the baseline stays true, so edges need no common moment."""
    world = World()
    for to, name in (("changed", "changed"), ("exited", "exited")):
        world.tell("a.up b.up" if to == "changed" else "")
        world.wait(to, name, "a", "b")
    world.tell("a.exit7 a.up")
    assert (world.verdict("changed"), world.verdict("exited")) == ("-", "-")

    world.tell("b.exit0")
    assert (world.verdict("changed"), world.verdict("exited")) == ("H", "H")
    assert {r.job: r.status for r in world.answers["exited"].results} == {"a": 7, "b": 0}


def test_any_is_stable_with_the_first() -> None:
    """Each has a time of its own, and it is the earliest that counts, whichever job it is of."""
    for first, second in ("ab", "ba"):
        world = World()
        world.tell(f"{first}.up 3s {second}.up")
        world.wait("me", "stable", "a", "b", any_of=True)
        world.tell("1s")
        assert world.verdict("me") == "-"
        world.tell("1s")
        assert [result.job for result in world.answers["me"].results] == [first]


def test_a_time_that_means_nothing_any_more_is_forgotten() -> None:
    """Who waits for `stable` of a job that goes down has no timer any more."""
    world = World()
    world.tell("up")
    world.wait("me", "stable", acts=True)
    world.tell("2s stop")
    assert [key for key in world.armed if not isinstance(key, str)] == []

    world.tell("patience")
    assert world.verdict("me") == "-"


def test_the_run_that_is_being_launched_is_no_later_one() -> None:
    """Whoever comes between a start and the process that it is for waits for another run."""
    world = World()
    world.tell("start")
    world.wait("me", "restarted")
    world.tell("launch ready")
    assert world.verdict("me") == "-"

    world.tell("restart renew")
    assert world.verdict("me") == "H"


def test_the_answer_names_those_it_is_about() -> None:
    """All of them when it holds for all, the one that it holds for, the one that it was in vain for."""
    world = World()
    world.wait("all", "ready", "a", "b", acts=True)
    world.wait("any", "ready", "a", "b", acts=True, any_of=True)
    world.wait("fails", "ready", "a", "web", acts=True)
    world.tell("a.up b.up web.start web.nofile")

    named = {to: [result.job for result in world.answers[to].results] for to in ("all", "any", "fails")}
    assert named == {"all": ["a", "b"], "any": ["a"], "fails": ["web"]}


def test_a_job_that_is_named_twice_is_one() -> None:
    """It is waited for, and answered, once."""
    world = World()
    world.wait("me", "ready", "a", "a", acts=True)
    world.tell("a.up")

    assert [result.job for result in world.answers["me"].results] == ["a"]


# ---- the time that one has ---------------------------------------------------------------------


@pytest.mark.parametrize("any_of", [False, True], ids=["all", "any"])
@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "exited"])
def test_a_timeout(name: str, any_of: bool) -> None:
    """At its time, not before it, one who still waits is told so, and how the job is."""
    world = World()
    world.tell("a.up b.up a.stop b.stop")
    world.wait("me", name, "a", "b", timeout=3.0, any_of=any_of)
    world.tell("2s")
    assert world.verdict("me") == "-"

    world.tell("1s")
    assert world.verdict("me") == "timeout"
    assert world.answers["me"].message == "timed out: it is still stopping (pid 101)"
    assert world.is_forgotten()


@pytest.mark.parametrize("timeout", [0.0, 3.0])
@pytest.mark.parametrize(
    ("name", "before", "then"),
    [
        ("changed", "", "start launch"),
        ("running", "start", "launch"),
        ("ready", "start launch", "ready"),
        ("restarted", "", "up"),
        ("stopped", "up", "down"),
        ("exited", "up", "exit7"),
        ("settled", "up stop", "gone"),
    ],
)
def test_success_in_the_turn_of_the_timeout_wins(name: str, before: str, then: str, timeout: float) -> None:
    """The engine tells of everything else in a turn before its timers: what has held by then holds."""
    world = World()
    world.tell(before)
    world.wait("me", name, timeout=timeout, acts=True)
    assert world.verdict("me") == "-"
    world.now += timeout
    world.tell(then)
    world.tell("0s")

    assert world.verdict("me") == "H"
    assert world.is_forgotten()


@pytest.mark.parametrize("late", [0.0, 0.5, 60.0])
@pytest.mark.parametrize("deadline_first", [True, False])
def test_stable_in_the_turn_of_its_timeout(deadline_first: bool, late: float) -> None:
    """Both are due in one turn, also in one that comes late: stable until the end of the time is stable."""
    world = World()
    world.tell("up")
    world.wait("me", "stable", timeout=STEADY)
    keys = sorted((key for key in world.armed if key != "web"), key=lambda key: isinstance(key, int))
    world.now += STEADY + late
    for key in reversed(keys) if deadline_first else keys:
        if key in world.armed:
            world.fire(key)

    assert world.verdict("me") == "H"
    assert world.is_forgotten()


@pytest.mark.parametrize("name", COLUMNS)
def test_no_time_at_all(name: str) -> None:
    """A timeout of 0 asks how it is: what holds holds, what fails fails, all else has timed out."""
    for story, cells in rows(MATRIX).items():
        job, _, text = story.partition(": ")
        if text.endswith("|"):
            world = World()
            world.tell(text.removesuffix("|"), job)
            if world.armed.get(job, (0, 1e9))[1] <= world.now:
                continue  # it is due to start again in this very turn
            world.wait("me", name, job, timeout=0.0)
            world.tell("0s", job)
            expected = cells[COLUMNS.index(name)][0]
            assert world.verdict("me") == (expected if expected != "-" else "timeout"), story


# ---- how a run has ended ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        ("up", "exit7", 7),
        ("up", "exit0", 0),
        ("up", "down", "SIGTERM"),
        ("up exit7", "", 7),
        ("up", "exit7 start nofile", 7),
        ("up", "orphans gone", "SIGTERM"),
        ("up", "restart exit7 launch ready", 7),
    ],
)
def test_exited_tells_how(before: str, after: str, status: int | str) -> None:
    """Whoever asks hears how the run of the baseline has ended, whatever came after it."""
    world = World()
    world.tell(before)
    world.wait("me", "exited")
    world.tell(after)
    (result,) = world.answers["me"].results

    assert (result.ended, result.status) == (True, status)


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "exited"])
def test_only_exited_tells_how(name: str) -> None:
    """No other condition has a code to give."""
    world = World()
    world.wait("me", name, acts=True)
    world.tell("up 5s exit0 start launch ready down")

    assert all(not result.ended for result in world.answers["me"].results)


# ---- who is gone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
def test_who_has_gone_leaves_nothing(name: str) -> None:
    """Nothing is said to one who has hung up, and nothing is kept of the wait: no timer either."""
    world = World()
    world.tell("a.up b.up")
    before = dict(world.armed)
    world.wait("me", name, "a", "b", timeout=1000.0)
    world.supervisor.drop("me")
    world.act()
    assert world.armed == before or "me" in world.answers

    world.tell("a.stop a.gone b.exit7 a.up 5s terminate")
    assert name in ("running", "ready", "settled") or "me" not in world.answers
    assert world.is_forgotten()


def test_an_event_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of the future, or one that is too old, is refused: what one has missed cannot be told."""
    monkeypatch.setattr(eventlog, "KEPT_EVENTS", 3)
    world = World()
    world.wait("future", "changed", since=1)
    assert world.verdict("future") == "bad-request"
    assert world.answers["future"].message == "event 1 has not happened yet"

    world.tell("up down")
    world.wait("past", "changed", since=0)
    world.wait("known", "changed", since=1)
    assert world.answers["past"].message == "event 0 is not known any more"
    assert world.verdict("known") == "H"


# ---- several jobs, and very many --------------------------------------------------------------


def test_any_holds_although_another_has_failed() -> None:
    """`--any` is content with one of them, also if another was given up before."""
    world = World()
    world.wait("me", "ready", "a", "b", acts=True, any_of=True)
    world.tell("a.start a.nofile b.up")

    assert world.verdict("me") == "H"


def test_any_times_out_although_another_has_failed() -> None:
    """While one may still hold, the end of the time is a timeout (124), not a failure (1)."""
    world = World()
    world.wait("me", "ready", "a", "b", acts=True, any_of=True, timeout=3.0)
    world.tell("a.start a.nofile 3s")

    assert world.verdict("me") == "timeout"


@pytest.mark.parametrize("last", ["b.exit7", "b.stop"])
def test_a_command_on_two_jobs_forgets_no_time(last: str) -> None:
    """`start a b --wait stable:5s`: what happens to b does not make one forget when a is stable."""
    world = World()
    world.supervisor.start(["a", "b"], "me", world.now, until=("stable", conditions.condition("stable", 5.0)))
    world.act()
    world.tell(f"a.launch a.ready b.launch b.ready 2s {last} 3s")
    if last == "b.stop":
        world.tell("b.gone")

    assert world.verdict("me") == "F"  # of a: stable; of b: why not


@pytest.mark.parametrize("verb", ["start", "restart"])
@pytest.mark.parametrize("end", ["a.exit7", "a.nofile", "a.stop a.gone", "a.remove a.gone", "terminate"])
def test_a_command_that_can_hold_no_more_is_answered_at_once(verb: str, end: str) -> None:
    """`restart a b --wait stable:5s`: when a cannot be stable any more, b is not waited for; it goes on."""
    world = World()
    ask = getattr(world.supervisor, verb)
    ask(["a", "b"], "me", world.now, until=("stable", conditions.condition("stable", 5.0)), timeout=60.0)
    world.act()
    world.tell(f"b.launch b.ready {'' if end == 'a.nofile' else 'a.launch a.ready'} 1s {end}")

    assert world.verdict("me") == "F"
    told = world.answers["me"]
    assert [result.job for result in told.results if result.code][:1] == ["a"]
    assert end == "terminate" or [result.job for result in told.results] == ["a"]
    assert "me" not in world.armed and not [key for key in world.armed if isinstance(key, int)]
    assert end == "terminate" or world.supervisor.jobs["b"].ready


def test_what_has_held_is_told_with_what_holds_no_more() -> None:
    """`start a b --wait running`: a was running in its time; b was given up."""
    world = World()
    world.supervisor.start(["a", "b"], "me", world.now, until=("running", conditions.CONDITIONS["running"]))
    world.act()
    world.tell("a.launch a.stop a.gone")
    assert world.verdict("me") == "-"
    world.tell("b.nofile")

    assert [(result.job, bool(result.code)) for result in world.answers["me"].results] == [
        ("a", False),
        ("b", True),
    ]


def test_who_is_up_already_does_not_end_the_wait_for_the_others() -> None:
    """`start a b --wait ready` where a is up: that is told, when b is ready."""
    world = World()
    world.tell("a.up")
    world.supervisor.start(["a", "b"], "me", world.now, until=("ready", conditions.CONDITIONS["ready"]))
    world.act()
    assert world.verdict("me") == "-"
    world.tell("b.launch b.ready")

    told = {result.job: result.code for result in world.answers["me"].results}
    assert told == {"a": "already-started", "b": ""}


def test_without_a_condition_each_job_has_its_answer() -> None:
    """`start a b`: a is given up, and what becomes of b is told nevertheless."""
    world = World()
    world.supervisor.start(["a", "b"], "me", world.now, wait=True)
    world.act()
    world.tell("a.nofile b.launch")
    assert world.verdict("me") == "-"
    world.tell("b.ready")

    told = {result.job: result.code for result in world.answers["me"].results}
    assert told == {"a": "could-not-start", "b": ""}


def test_an_answer_takes_its_timer_along() -> None:
    """Who waits for `stable` and is answered for another reason leaves no timer behind."""
    world = World()
    world.tell("up")
    world.wait("me", "stable")
    world.tell("exit7")

    assert world.verdict("me") == "F"
    assert not world.armed


def test_stopped_never_fails() -> None:
    """A job that is removed is gone and does not come back; the others are waited for."""
    world = World()
    world.tell("b.up b.stop")
    world.wait("me", "stopped", "a", "b")
    world.tell("a.remove")
    assert world.verdict("me") == "-"

    world.tell("b.gone")
    assert world.verdict("me") == "H"


def test_what_holds_already_holds_while_the_daemon_ends() -> None:
    """`wait --since TOKEN` that comes during a shutdown: what has held since the token cannot be missed."""
    world = World()
    world.tell("up")
    token = world.supervisor.log.last
    world.tell("terminate gone")
    world.wait("me", "changed", since=token)

    assert world.verdict("me") == "H"


def test_looking_at_many_jobs_is_linear() -> None:
    """One `wait` for N jobs costs N looks when it comes, not N*N."""
    names = [f"job-{number}" for number in range(100)]
    supervisor = Supervisor([JobSpec(name, "true") for name in names])
    looks = 0

    def count(job: object, since: object, now: float) -> None:
        nonlocal looks
        looks += 1

    supervisor.wait(names, "me", 0.0, until=("count", count), fresh=False)
    assert looks <= 2 * len(names)


def test_a_token_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wait --since` for N jobs goes through the events after the token once, not once for each job."""
    after, asked = EventLog.after, []

    def count(log: EventLog, seq: int) -> Iterator[Event]:
        asked.append(seq)
        return after(log, seq)

    monkeypatch.setattr(EventLog, "after", count)
    names = [f"job-{number}" for number in range(100)]
    supervisor = Supervisor([JobSpec(name, "true") for name in names])
    supervisor.wait(names, "me", 0.0, since=0)

    assert len(asked) <= 2
