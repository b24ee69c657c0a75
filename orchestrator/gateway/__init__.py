"""The gateway: the only process that listens on the network. It parses HTTP and decides nothing.

Its one line leads to the orchestrator, which answers what the gateway cannot know. The daemon
starts it as a program, `python -m orchestrator.gateway`, and imports nothing of it.

`address` reads where to listen, `listener` binds it, `server` answers HTTP, `__main__` is the
program.
"""
