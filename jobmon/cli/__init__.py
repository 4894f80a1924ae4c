"""The command `jobmon`: a module for the frame (`main`), one for what prints, and one for each subject."""

from __future__ import annotations

is_program = False  # whether this process is the program `jobmon`, and does nothing else
