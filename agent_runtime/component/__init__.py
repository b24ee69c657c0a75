"""Agents that are WebAssembly components: their contract, their host, their compiler.

`types`, `wit` and `contract` say what a component has to be; `shipped` reads the contract. Only
`library` imports wasmtime, and `boundary` carries values across. `host` runs one component in a
sealed worker: `grants` is what it may import of `agent-net`, `wasi` what it gets of
WASI, `ticker` its deadline. `compiler` is the body of a compiler process.
"""
