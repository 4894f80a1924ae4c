"""Which paths lead to a file system that may not answer: by the table of mounts, without touching one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import deadfs
import kit
import pytest

from jobmon.linux.kernel.mounts import LINKS, Mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs root and /dev/fuse"
)


def beside_a_dead_one(work: Callable[[Path, Mounts], object], name: str = "dead") -> str:
    """What `work` comes to in a folder where NAME does not answer; made after the Mounts."""

    def do() -> object:
        deadfs.unshare()
        folder = Path(tempfile.mkdtemp(prefix="jobmon-", dir="/tmp"))
        mounts = Mounts()
        fs = deadfs.DeadFs(str(folder / name))
        assert not mounts.may_hang(fs.point)
        deadfs.mount(fs.fd, fs.point)
        try:
            return work(folder, mounts)
        finally:
            deadfs.unmount(fs.point)
            fs.close()
            assert not mounts.may_hang(fs.point)
            shutil.rmtree(folder)

    return kit.in_child(do)


WAYS = {
    "dead": True,
    "dead/": True,
    "dead/below/it": True,
    "./x/../dead/y": True,
    "dead/../here": True,  # the kernel goes there too
    "deadly": False,
    "here": False,
    "here/dead": False,
    "none/dead": False,
    "link": True,
    "link/below": True,
    "second/below": True,
    "up/dead": True,
    "up/here": False,
    "loop/dead": False,  # ELOOP
}


def test_a_path_is_followed_as_the_kernel_would() -> None:
    """Component by component, with symbolic links in any place, up to the file system and not into it; a
    mount that was made or ended since is noticed."""

    def look(folder: Path, mounts: Mounts) -> dict[str, bool]:
        (folder / "here").mkdir()
        (folder / "link").symlink_to(folder / "dead/far")
        (folder / "second").symlink_to("link")
        (folder / "up").symlink_to("here/..")
        (folder / "loop").symlink_to("loop")
        return {way: mounts.may_hang(f"{folder}/{way}") for way in WAYS}

    assert beside_a_dead_one(look) == str(WAYS)


def test_a_mount_point_may_have_any_name() -> None:
    """Spaces and backslashes are escaped in the table of mounts."""
    name = "a b\\c\td"

    assert beside_a_dead_one(lambda folder, mounts: mounts.may_hang(f"{folder}/{name}/x"), name) == "True"


def test_a_program_leads_where_its_interpreter_is() -> None:
    """Of a script that is run by a script too; a circle of them is no way there."""

    def look(folder: Path, mounts: Mounts) -> list[bool]:
        for name, target in (("first", "dead/sh"), ("second", "first"), ("circle", "circle"), ("sh", "here")):
            (folder / name).write_text(f"#!{folder}/{target} -x\n")
        (folder / "relative").write_text("#!sh\n")
        names = ("dead/sh", "first", "second", "circle", "sh", "relative", "none")
        return [mounts.program_may_hang(f"{folder}/{name}") for name in names]

    assert beside_a_dead_one(look) == str([True, True, True, False, False, False, False])


def test_a_binary_leads_where_its_loader_is() -> None:
    """Of what is neither a script nor a program of our own class, or does not say, nobody knows."""

    def look(folder: Path, mounts: Mounts) -> list[bool]:
        program = Path("/bin/sleep").read_bytes()
        texts = {"own": program, "static": program[:56] + bytes(8), "cut": program[:60], "plain": b"exit 0\n"}
        other = {"class": program[:4] + bytes((3 - program[4],)) + program[5:], "empty": b""}
        for name, text in {**texts, **other}.items():
            (folder / name).write_bytes(text)
        return [mounts.program_may_hang(f"{folder}/{name}") for name in (*texts, *other)]

    assert beside_a_dead_one(look) == str([False, False, True, True, True, True])


def test_too_many_links_lead_nowhere() -> None:
    """As the kernel does: more links than it follows are ELOOP, and nobody waits."""

    def look(folder: Path, mounts: Mounts) -> list[bool]:
        (folder / "0").symlink_to("dead")
        for number in range(LINKS):
            (folder / str(number + 1)).symlink_to(str(number))
        return [mounts.may_hang(f"{folder}/{number}") for number in (LINKS - 1, LINKS)]

    assert beside_a_dead_one(look) == str([True, False])
