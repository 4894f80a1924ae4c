"""The policy: what jobs are, what becomes of them, and why. No I/O, no clock: both are arguments."""
