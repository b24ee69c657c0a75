"""The loop of an agent: triage, act, reflect, as one pure state machine.

`machine` is its table, `state` what it remembers; `triage`, `act` and `closing` are its phases.
`decisions` holds what a model may say, `prompts` what it is asked, `budget` what that may cost.
"""

from agent_runtime.loop.machine import LOOP_VERSION, advance, effects_max, start
from agent_runtime.loop.state import State

__all__ = ["LOOP_VERSION", "State", "advance", "effects_max", "start"]
