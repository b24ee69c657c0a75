"""The bus: who gets which message, how a delivery goes through its life, when an answer is due.

Theory of operation. A message is published on a topic; each subscriber gets a *delivery* of it, all
or none. A delivery is leased by its agent's worker, journals what it learns, and ends in one
completion, whose transaction also publishes what follows from it. Deliveries of one conversation
are counted: when the last one closes, the conductor is given all answers and composes the reply.

What decides is pure: `topics` (which pattern matches), `routing` (who may publish, who receives),
and the tables of states in `delivery` and `conversation`. What writes are reducers for
`orchestrator.store`: `registration`, `publishing`, `leasing`, `journal`, `completion`, `attention`,
`tasks`, `observations`. They share `rows` (a delivery or conversation, read and moved through its
table), `posting` (a message and its deliveries), `settlement` (what follows when a delivery closes)
and `deadletters`.

A reducer that serves a publisher or a worker is applied in that one's name and checks what it may
do; it writes the bus's own rows with `acting_as(BUS)`. The others are applied as `BUS`; in any
other name the ownership triggers refuse them.
"""
