"""The store: one SQLite file that is the bus, the memory, the task list and the audit trail.

Theory of operation. Every write is a *reducer*, a function of (transaction, arguments), handed to
`Store.apply` together with the actor in whose name it runs. One thread owns the only writing
connection (`writer`). It takes all reducers that wait, runs each in a savepoint, commits once
(WAL, `synchronous=FULL`) and only then lets the callers go on: who has an answer has it on disk.
A reducer that raises takes only itself back. Triggers in the schema compare each row's owner with
`actor()`, so no code path can write what belongs to somebody else.

What a reducer did it tells by `Transaction.emit`; after the commit the changes reach those who
subscribed (`changes`). Nobody polls. Whoever reads opens a `Reader`, a connection of its own that
cannot write.

`database` is the only module that knows the SQLite library. The schema stands in `migrations/`,
`recall` is the pure part of searching memories, `memory` its SQL, `audit` the hash chain.
"""
