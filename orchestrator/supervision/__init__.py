"""Keeping processes alive: when to restart, when to give up, what counts as hung, how to stop.

`restart`, `child` and `hang` are pure: they decide. `processes` starts and ends programs, and
decides nothing.
"""
