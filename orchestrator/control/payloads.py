"""A payload as people read it: text where it is text. Pure."""

import codecs

from ipc_protocol.bus import Payload


def readable(beginning: bytes, size_bytes: int) -> Payload:
    """The payload of `size_bytes`, or the `beginning` that is there of it."""
    cut = len(beginning) < size_bytes
    try:
        # A character that the cut goes through is left out.
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning, final=not cut)
    except UnicodeDecodeError:
        return Payload(size_bytes=size_bytes, data=beginning, cut=cut)
    return Payload(size_bytes=size_bytes, text=text, cut=cut)
