"""An engine whose model runs elsewhere, behind OpenAI's interface: the queue is here, and the
tokens come through egress.

`engine` serves the protocol, `turns` decides who is asked next, `exchange` carries one request
through, `messages` and `sse` read and write what is said, `schema` checks typed answers, `retries`
says when to ask again.
"""
