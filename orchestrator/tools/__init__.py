"""The tools that the orchestrator runs for agents: every reach of theirs beyond their own process.

`catalogue` lists them, `registry` describes and runs them, `tool` says what a tool is. `files`,
`host`, `messages`, `tasks`, `memory` and `attention` are the tools; `folder` and `openat2` keep
file work beneath the agent's work folder, `disk` and `summaries` keep answers short.

A tool checks what its agent was granted, and does nothing that needs undoing: messages and tasks
are staged, and happen when the completion commits.
"""
