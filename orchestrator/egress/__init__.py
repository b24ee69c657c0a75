"""Egress: the only process that dials out. It puts secrets in and decides nothing.

Its one line leads to the orchestrator, which tells it once what may be dialled and with which
secret, and then passes on what its programs ask. The daemon starts it as a program, `python -m
orchestrator.egress`, and imports nothing of it.

`headers`, `rate` and `redaction` decide and transform, without I/O; `dialler` is the HTTP client,
`service` answers the line, `__main__` is the program.
"""
