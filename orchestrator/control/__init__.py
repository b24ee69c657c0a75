"""The control socket: what operators ask for, answered from the store and the running daemon.

`views` reads the store, `service` serves the methods of `ipc_protocol.control`, `server` listens.
`correlations` names conversations.
"""
