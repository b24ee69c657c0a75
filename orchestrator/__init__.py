"""The daemon: owns the control socket, the bus, the store, and the supervision of everything else.

It never runs a model or guest code, never parses HTTP and never blocks its loop. Workers, engines,
the gateway and the compiler are programs that it starts and speaks to; it imports none of them.
"""
