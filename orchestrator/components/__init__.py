"""Components in the daemon's keeping: their files, their native code, and what each may import.

`files` keeps components by their content; `cache` keeps native code, and hands out only what it
made itself; `compiling` has a component compiled by a confined process; `granting` says what a
configuration lacks for a component; `private` is how they read and write files. On them rest
`versions`, which is what drivers ask, and the commands that build and try a component.

No module here understands a component or runs one: that takes the WebAssembly library, which
belongs to the programs that the zygote forks.
"""
