"""What runs inside a worker: the zygote that forks it, its sandbox, the loop and the prompts.

It imports `ipc_protocol` and nothing else of agentd. What it wants from the world it asks the
orchestrator for, over the one socket it inherits.
"""
