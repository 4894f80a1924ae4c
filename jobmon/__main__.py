"""`python -m jobmon` is `jobmon`."""

from __future__ import annotations

from jobmon.cli.main import program

if __name__ == "__main__":
    program()
