"""The gateway: the only process that listens on the network. It parses HTTP and decides nothing.

Its one line leads to the orchestrator, which answers what the gateway cannot know. The daemon
starts it as a program, `python -m orchestrator.gateway`, and imports nothing of it.

`address` reads where to listen, `listener` binds it, `__main__` is the program. `server` answers
who monitors. On an address of its own, `endpoint` answers programs that ask the models as they ask
OpenAI's: the modules `openai_…` are that interface, as functions; `streaming` sends an answer as it
comes, with a bounded `relay` before a slow client; `endpoint_server` bounds what all may take.
"""
