"""What the next step decodes, and for whom: the policy of the pool, in pure code.

`planner` is the whole as the decode thread sees it. `queue` says who waits and in which order,
`admission` who is given a slot, `batching` who is in the step, and `policy` has all the numbers.
Beneath are the KV cache (`slots`, `cells`, `prefixes`, `cache`, `swap`), what is learned (`pacing`
of the steps, `agents` of those who ask) and what is foreseen (`forecast`). `simulation` runs it
through an hour of arrivals.
"""
