"""The one protocol that every line between two agentd processes speaks, and its public clients too.

`frames` turns bytes into frames, `session` turns frames into events, `aio` is the only part that
touches a socket. `errors` holds errors as values, `limits` every bound with its reason. What is
said over the protocol is typed in `values`, `inference`, `work` and `control`; `methods` lists it.

Nothing here may read a clock, open a file or import another agentd package.
"""
