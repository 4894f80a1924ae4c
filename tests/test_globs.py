"""Globs: the findings of the standard library, and an error for each directory that it may not look into."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
from pathlib import Path

import kit
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobmon.linux.kernel import globs

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
NOBODY = 65534

FILES = """
a.json b.json .hidden.json b[1].json jobs/x.json jobs/.x.json old/x.json .git/x.json old/deep/y.json
""".split()
PATTERNS = """
* *.json .* ?.json [ab].json [!a]* b[[]1].json jobs/ */ */x.json jobs/* **/x.json **/*.json */*/y.json a.json
no.json */no.json [ [a .*/x.json link.json link* to-jobs/* */* ./a.json jobs/../a.json
""".split()


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A directory with files, links to a file, a directory and nothing."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "link.json").symlink_to("nowhere")
    (tmp_path / "to-jobs").symlink_to("jobs")
    return str(tmp_path)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_finds_what_the_standard_library_finds(place: str, pattern: str) -> None:
    """Hidden files, links, directories and odd patterns included."""
    assert sorted(globs.find(f"{place}/{pattern}")) == sorted(glob.glob(f"{place}/{pattern}"))


@given(st.text("ab-!]", max_size=6), st.text("ab-!]*?[", max_size=8))
@example("]", "[]]")
@example("-", "[a-]")
@example("aab", "*a*b")
@example("b", "[!a]")
@example("b", "[a-c]")
@example("[a", "[a")
def test_a_pattern_means_what_it_always_meant(name: str, pattern: str) -> None:
    """Stars, question marks, classes and ranges match as those of fnmatch do."""
    assert globs.matches(name, globs._tokens(pattern)) == fnmatch.fnmatchcase(name, pattern)


def test_many_stars_cost_little() -> None:
    """No pattern takes more steps than its length times the name's."""
    assert not globs.matches("a" * 3000, globs._tokens("*a" * 500 + "b"))


@pytest.mark.parametrize("pattern", ["no/*", "no/such/*.json", "no/x.json", "no/*/x.json"])
def test_a_directory_that_is_not_there_is_told(place: str, pattern: str) -> None:
    """It is named, up to the first wildcard."""
    with pytest.raises(FileNotFoundError) as caught:
        globs.find(f"{place}/{pattern}")

    assert caught.value.filename == f"{place}/{pattern.partition('/*')[0].removesuffix('/x.json')}"


@pytest.mark.parametrize(
    ("link", "pattern", "number"),
    [
        ("loop", "loop/*", errno.ELOOP),
        ("loop", "loop/x.json", errno.ELOOP),
        ("loop", "*/x.json", errno.ELOOP),
        ("file", "a.json/*", errno.ENOTDIR),
        ("file", "a.json/", errno.ENOTDIR),
        ("file", "a.json/x.json", errno.ENOTDIR),
        ("file", "a.json/*/x.json", errno.ENOTDIR),
    ],
)
def test_what_is_no_directory_is_an_error(place: str, link: str, pattern: str, number: int) -> None:
    """A link that leads round in a circle, a file in the place of a directory."""
    os.symlink(link, os.path.join(place, link))
    with pytest.raises(OSError, match=place) as caught:
        globs.find(f"{place}/{pattern}")

    assert caught.value.errno == number


@as_root
@pytest.mark.parametrize("pattern", ["shut/*", "shut/x.json", "*/x.json", "shut/in/*", "**/x.json"])
def test_what_may_not_be_looked_into_is_an_error(place: str, pattern: str) -> None:
    """Wherever on the way it is; the standard library finds nothing there."""
    os.makedirs(f"{place}/shut/in")
    for directory in (Path(place), *Path(place).parents):
        os.chmod(directory, os.stat(directory).st_mode | 0o055)
    os.chmod(f"{place}/shut", 0)

    def look() -> str:
        os.setuid(NOBODY)
        try:
            return str(globs.find(f"{place}/{pattern}"))
        except PermissionError as error:
            return str(error.filename)

    assert kit.in_child(look).startswith(f"{place}/shut")
