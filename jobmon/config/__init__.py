"""From the text of a configuration to specs, or to every error in it. Loaded to read, unloaded afterwards."""

from __future__ import annotations

from jobmon.config.loader import Config, Problem, json_schema, load, reference

__all__ = ("Config", "Problem", "json_schema", "load", "reference")
