"""The command line. `main` is where it starts; each group of commands is a module of its own.

`ctl` asks a running daemon over the control socket, by way of `client`; `views`, `trace_view` and
`watch_view` draw the answers. It must answer at once, so a module imports only what its own
commands need; rich, asyncio and the rest of the program are imported inside functions.
"""
