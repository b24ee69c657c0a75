"""What this machine has of what agentd needs, and how to get the rest.

`probing` finds the facts, `judging` makes findings of them, one list of checks. `cuda` knows what
llama.cpp is built with for a GPU, for the installation too, which runs before anything is
installed: it imports the standard library alone, and so does `nvidia`, which asks the machine.
"""
