"""The engine: one process, one model, all agents' requests in shared batches.

`queue`, `slots` and `planner` decide, `text` and `schema` transform; all five are pure. `pool`
carries their decisions out on its own thread, `llama` is the one module that touches llama.cpp,
`embedding` the one that touches wordllama, and `main` puts them on a socket.
"""
