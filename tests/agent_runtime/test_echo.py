"""The brain that says what it got."""

import pytest

from agent_runtime.echo import Echo
from ipc_protocol.errors import Failure
from ipc_protocol.frames import FrameType, encode
from ipc_protocol.limits import ECHO_TOPICS_MAX, PAYLOAD_BYTES_MAX
from ipc_protocol.work import Completion, Done, Finished, Outgoing


def test_the_payload_goes_to_each_topic_in_their_order() -> None:
    assert Echo(["b", "a"]).completion(b"97 %") == Completion(
        outcome="acted",
        reason="echo",
        outputs=[Outgoing(topic="b", payload=b"97 %"), Outgoing(topic="a", payload=b"97 %")],
    )


def test_without_topics_every_message_has_the_same_completion() -> None:
    echo = Echo([])
    assert echo.completion(b"1") == Completion(outcome="acted", reason="echo")
    assert echo.completion(b"2") is echo.completion(b"1")


def test_the_largest_payload_on_the_most_topics_fits_into_a_frame() -> None:
    completion = Echo(["x" * 128] * ECHO_TOPICS_MAX).completion(bytes(PAYLOAD_BYTES_MAX))
    encode(FrameType.ITEM, 1, Done(finished=[Finished(1, completion)]))


def test_more_topics_are_refused() -> None:
    with pytest.raises(Failure, match=f"{ECHO_TOPICS_MAX} topics at most") as caught:
        Echo(["x"] * (ECHO_TOPICS_MAX + 1))
    assert caught.value.code == "request.invalid"
