"""Order between real jobs, judged by the event log: who is launched when, who goes before whom."""

from __future__ import annotations

import os

import kit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., kit.Daemon]

WAITS = "exec sleep 1000000"


def test_requirements_come_up_first_and_each_waits_for_the_last(daemon: Make) -> None:
    """What waits: migrate is launched when db is ready, web when migrate has succeeded, and not before."""
    jobs = {
        "db": {"command": f"read line < go; echo >&3; exec 3>&-; {WAITS}", "ready": {"fd": 3}},
        "migrate": {"command": "exit 0", "type": "oneshot", "requires": ["db"]},
        "web": {"command": WAITS, "requires": ["db", "migrate"]},
    }
    one = daemon({"jobs": jobs})
    os.mkfifo(one.path("go"))
    pipe, watch = one.pipe(), one.watch()
    pipe.start("web", wait=False)
    assert {job.job: job.state for job in pipe.status() if job.job != "db"} == {
        "migrate": "waiting",
        "web": "waiting",
    }

    with open(one.path("go"), "w", encoding="utf-8") as gate:
        gate.write("go\n")
    watch.until("web", "running")
    assert [event.job for event in watch.seen if event.event == "launched"] == ["db", "migrate", "web"]
    assert pipe.status("migrate")[0].state == "exited"


def test_stopping_a_requirement_stops_first_what_requires_it(daemon: Make) -> None:
    """With stop db, web is gone before db is asked to go; restart db brings web back."""
    one = daemon({"jobs": {"db": {"command": WAITS}, "web": {"command": WAITS, "requires": ["db"]}}})
    pipe, watch = one.pipe(), one.watch()
    pipe.start("web")
    pipe.restart("db")
    launched = watch.find(lambda event: (event.job, event.event, event.run) == ("web", "launched", 2))
    assert launched.state == "starting"
    pipe.wait("web", condition="ready")
    pipe.stop("db")
    before = len(watch.seen)
    watch.until("db", "stopped")
    assert [event.job for event in watch.seen[before:] if event.event == "died"] == ["web", "db"]
    assert {job.state for job in pipe.status()} == {"stopped"}


def test_the_end_goes_backwards(daemon: Make) -> None:
    """A shutdown ends web before what it comes after."""
    one = daemon(
        {
            "jobs": {
                "cache": {"command": WAITS, "autostart": True},
                "web": {"command": WAITS, "after": ["cache"], "autostart": True},
            }
        }
    )
    watch = one.watch()
    one.pipe().terminate()
    watch.find(lambda event: event.event == "terminated")
    assert [event.job for event in watch.seen if event.event == "died"] == ["web", "cache"]


def test_a_requirement_that_is_given_up_fails_what_waits_for_it(daemon: Make) -> None:
    """The reason names the requirement and its end."""
    jobs = {
        "db": {"command": "exit 7", "ready": {"fd": 3}},
        "web": {"command": WAITS, "requires": ["db"]},
    }
    one = daemon({"jobs": jobs})
    code, _, err = one.run_cli("start", "web")
    assert code == 1
    assert "requires db, which is failed: exit 7" in err
