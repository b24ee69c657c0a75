"""What publishers and workers may ask of the modelled bus, at random."""

from typing import Any, Final

from hypothesis import strategies as st
from modelled_things import URGENCIES

from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.work import (
    Completion,
    Outgoing,
    StateChange,
    TaskChange,
)
from orchestrator.bus.opening import Publish

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US


TOPICS: Final = (
    "work.a",
    "work.b.c",
    "more.a",
    "note.x",
    "late.x",
    "user.reply",
    "void.x",
    "agent.alfa",
    "agent.bravo",
    "agent.carol",
    "agent.delta",
    "agent.nobody",
    "Not a topic",
)

RARELY: Final = st.sampled_from((False, False, False, False, True))
PICK: Final = st.integers(0, 2**16)
FAULT: Final = st.sampled_from(("", "", "", "", "", "raise", "part", "full"))
RANKS: Final = st.sampled_from((None, *URGENCIES))
AGENTS: Final = st.sampled_from(("alfa", "bravo", "carol", "delta"))
PAYLOAD: Final = st.sampled_from((b"x", b"y", b"z" * 300))
PAYLOADS: Final = st.one_of(
    st.lists(PAYLOAD, min_size=1, max_size=5),
    st.just([b""] * 7),
    st.just([b"z" * (PAYLOAD_BYTES_MAX + 1)]),
)


@st.composite
def requests(draw: Any) -> Publish:
    payloads = draw(PAYLOADS)
    ids = st.lists(
        st.sampled_from([f"m{n}" for n in range(12)]),
        min_size=len(payloads),
        max_size=len(payloads),
        unique=True,
    )
    return Publish(
        topic=draw(st.sampled_from(("work.a", "work.b.c", *TOPICS))),
        payloads=payloads,
        correlation=draw(st.sampled_from((None, None, None, "c1", "c2", "c3"))),
        priority=draw(RANKS),
        expires_us=None,
        message_ids=draw(st.one_of(st.just(()), ids)),
        screened=draw(st.sampled_from((True, True, False))),
        asked=draw(st.booleans()),
    )


OUTPUTS: Final = st.one_of(
    st.just([]),
    st.lists(
        st.builds(Outgoing, topic=st.sampled_from(TOPICS), payload=PAYLOAD, priority=RANKS),
        max_size=4,
    ),
    st.just([Outgoing(topic="user.reply", payload=b"Done.")]),
    st.just([Outgoing(topic="more.a", payload=b"and more"), Outgoing(topic="work.b", payload=b"")]),
    st.just(
        [Outgoing(topic="agent.bravo", payload=b"yours"), Outgoing(topic="agent.alfa", payload=b"")]
    ),
    st.just([Outgoing(topic="work.a", payload=b"again")] * 9),
    st.just([Outgoing(topic="user.reply", payload=b"%d" % n) for n in range(66)]),
)


@st.composite
def completions(draw: Any) -> Completion:
    kind = draw(st.sampled_from(("plain", "plain", "plain", "rich", "rich", "deferred")))
    if kind == "plain":
        return Completion(outcome=draw(st.sampled_from(("acted", "ignored"))), reason="as told")
    if kind == "deferred":
        wait_us = draw(st.sampled_from((0, 60 * SECOND_US, 400 * DAY_US)))
        outputs = draw(st.sampled_from(([], [], [], [Outgoing(topic="work.a", payload=b"")])))
        return Completion(
            outcome="deferred",
            reason="later",
            until_us=1_800_000_000_000_000 + wait_us,
            outputs=outputs,
        )
    return Completion(
        outcome=draw(st.sampled_from(("acted", "ignored", "delegated", "failed"))),
        reason="as told",
        outputs=draw(OUTPUTS),
        left_out=draw(st.sampled_from((0, 0, 0, 3))),
        state=draw(
            st.lists(
                st.builds(
                    StateChange,
                    key=st.sampled_from(("k", "l")),
                    value=st.sampled_from((b"1", b"2", None, b"v" * 500)),
                ),
                max_size=2,
            )
        ),
        tasks=draw(
            st.lists(
                st.builds(
                    TaskChange,
                    id=st.sampled_from((None, None, 1, 2)),
                    title=st.sampled_from(("dig", "fill")),
                ),
                max_size=2,
            )
        ),
    )
