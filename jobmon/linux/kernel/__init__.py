"""Thin layers over single kernel interfaces. Nothing here knows a job."""
