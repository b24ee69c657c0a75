"""The worker's own user: where the daemon is root, every agent runs under a uid of its own.

It comes before the user namespace, because only then is the uid outside the namespace another one:
whatever the namespace fails to hold back meets a user who owns nothing.
"""

import os

from agent_runtime.sandbox.report import LayerReport, LayerUnavailable

LAYER = "identity"


def assume_identity(uid: int | None, gid: int | None) -> LayerReport:
    """Give up root for good. For an ordinary user there is nothing to give up."""
    if os.geteuid() != 0:
        detail = f"runs as uid {os.geteuid()}, the daemon's own"
        return LayerReport(LAYER, "not-applicable", detail)
    if uid is None or gid is None:
        return LayerReport(
            LAYER,
            "missing",
            "runs as root outside its namespaces",
            "give the agent a uid and a gid",
        )
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise LayerUnavailable.of(
            LAYER,
            f"becoming uid {uid}",
            error,
            "start the daemon with CAP_SETUID and CAP_SETGID where that uid exists (a container "
            "maps a range of them), or as an ordinary user",
        ) from error
    return LayerReport(LAYER, "enforced", f"uid {uid}, gid {gid}, no other groups")
