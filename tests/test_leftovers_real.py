"""What a killed daemon left of programs that nobody here wrote, which write over their environment: redis
and nginx get their own stop signal, and their ports are free when the next run of each begins."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

import e2e
import kit
import nasty
import pytest
import test_leftovers as common
import test_real_programs as real

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    MakeDaemon = Callable[..., kit.Daemon]

pytestmark = pytest.mark.slow
dead = common.dead


class Program:
    """A directory for a program, which a user of any number may write to, and what the program says there."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        os.chmod(self.directory, 0o777)
        self.told = kit.Fifo(f"{self.directory}/told")
        os.chmod(self.told.path, 0o666)
        (self.port,) = e2e.free_ports(1)

    def redis(self) -> dict[str, Any]:
        """A job: redis, which saves nothing and ends by SIGINT."""
        command = [real.program("redis-server", "redis-server"), "--port", str(self.port)]
        command += ["--bind", "127.0.0.1", "--save", "", "--dir", self.directory]
        return {"command": command, "stdout": self.told.path, "signal": "SIGINT"}

    def nginx(self) -> dict[str, Any]:
        """A job: nginx with a worker, which takes its time to end by SIGQUIT."""
        with open(f"{self.directory}/nginx.conf", "w", encoding="utf-8") as file:
            file.write(real.NGINX.format(port=self.port, workers=1, text="hello"))
        command = [real.program("nginx", "nginx-light"), "-p", self.directory, "-c", "nginx.conf"]
        command += ["-e", "stderr", "-g", "daemon off;"]
        return {"command": command, "stderr": self.told.path, "signal": "SIGQUIT"}

    def close(self) -> None:
        """Remove it."""
        self.told.destroy()
        shutil.rmtree(self.directory)


@pytest.fixture
def program() -> Iterator[Program]:
    """A place for a program."""
    one = Program()
    yield one
    one.close()


SAYS = {
    "redis": ("eady to accept connections", "Received SIGINT scheduling shutdown"),
    "nginx": ("start worker process ", "signal 3 (SIGQUIT) received"),
}


@pytest.mark.parametrize("name", SAYS)
@pytest.mark.parametrize("way", common.WAYS)
def test_a_real_program_gets_its_own_signal(
    daemon: MakeDaemon, dead: common.MakeDead, program: Program, way: str, name: str
) -> None:
    """It says itself which signal it got, and its next run gets the port, which two could not have."""
    begun, asked = SAYS[name]
    gone = dead(way, **getattr(program, name)())
    real.wait_line(program.told, begun)
    whole = {gone.pid, *kit.descendants_of(gone.pid)}

    heir = daemon({"jobs": {"job": gone.job}}, directory=gone.directory, **gone.options)
    real.wait_line(program.told, asked)
    real.wait_line(program.told, begun)
    assert not any(map(gone.lives, whole))
    assert heir.pipe().pid("job") not in whole
    assert "killing" not in heir.log
    assert real.listeners(program.port)


@pytest.mark.parametrize("way", [nasty.WITHOUT, common.UNPRIVILEGED])
def test_the_workers_of_a_dead_master_are_found(
    daemon: MakeDaemon, dead: common.MakeDead, program: Program, way: str
) -> None:
    """When the master has died as well, nothing but its session tells whose its workers are."""
    gone = dead(way, **program.nginx())
    real.wait_line(program.told, "start worker process ")
    (worker,) = kit.children_of(gone.pid)
    kill(gone.pid)
    assert gone.lives(worker)

    heir = daemon({"jobs": {"job": gone.job}}, directory=gone.directory, **gone.options)
    assert not gone.lives(worker)
    assert f'of a previous daemon job="job" signal="SIGQUIT" pids="{worker}"' in heir.log
    real.wait_line(program.told, "start worker process ")
    assert real.listeners(program.port)


def kill(pid: int) -> None:
    """SIGKILL to one process."""
    os.kill(pid, signal.SIGKILL)
    kit.wait_gone(pid)
