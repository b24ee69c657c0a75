"""The two stages in which a forked worker confines itself, and what a missing layer means.

Theory of operation. The trusted stage runs in the process that will fork once more: it changes who
the process is and what it can see. The sealed stage runs in that child, process 1 of the new pid
namespace: it takes away what is left. No code of the agent runs before both are through. The order
within a stage is forced: the uid before the user namespace, the mounts before the capabilities are
dropped, no-new-privileges before Landlock and seccomp, seccomp last.

A process that needs a second thread starts it within the sealed stage, at the one moment that is
right: what it must not have belongs to a thread and is inherited by those that it starts
(capabilities, no-new-privileges, Landlock), so they come before; what forbids starting one comes
after (the limit on processes, and seccomp, which is loaded for all threads there are).
"""

from collections.abc import Callable, Iterable

import msgspec

from agent_runtime.sandbox import (
    descriptors,
    identity,
    landlock,
    namespaces,
    privileges,
    report,
    rlimits,
    root,
    seccomp,
)
from agent_runtime.sandbox.report import (
    LayerReport,
    LayerUnavailable,
    SandboxMode,
    SandboxRefusal,
)

# What `strict` will not do without. Identity is among them in this sense: an agent that was given a
# uid gets it or does not start; for a daemon that is an ordinary user there is none to give.
REQUIRED_LAYERS = frozenset(
    {
        identity.LAYER,
        namespaces.LAYER,
        root.LAYER,
        rlimits.LAYER,
        privileges.LAYER,
        landlock.LAYER,
        seccomp.LAYER,
    }
)

_CGROUP = LayerReport(
    "cgroup",
    "not-applicable",
    "workers are not placed in a cgroup; memory is bounded by rlimits and the scratch space",
)


class Confinement(msgspec.Struct, frozen=True):
    """Everything about one worker's confinement, settled before it is forked."""

    mode: SandboxMode
    uid: int | None  # for a daemon that is root; None keeps the daemon's own user
    gid: int | None
    address_space_bytes_max: int
    scratch_bytes_max: int
    file_bytes_max: int
    cpu_seconds_max: int | None = None
    compiles: bool = False
    """It may make memory executable that it cannot write."""


def stage_trusted(
    confinement: Confinement, kept: Iterable[int], null_fd: int, log_fd: int
) -> tuple[LayerReport, ...]:
    """Who the process is and what it can see; the caller then forks the worker proper.

    Raises `SandboxRefusal` in strict mode.
    """
    reports = [_CGROUP]
    mode = confinement.mode
    _settle(
        reports,
        mode,
        identity.LAYER,
        lambda: identity.assume_identity(confinement.uid, confinement.gid),
    )
    _settle(reports, mode, namespaces.LAYER, namespaces.enter_namespaces)
    reports.append(descriptors.close_descriptors(kept, null_fd, log_fd))
    return tuple(reports)


def stage_sealed(
    confinement: Confinement,
    trusted: tuple[LayerReport, ...],
    start_threads: Callable[[], None],
) -> tuple[LayerReport, ...]:
    """Take away what is left. Returns both stages' reports; `SandboxRefusal` in strict mode."""
    reports = list(trusted)
    mode = confinement.mode
    has_mounts_of_its_own = any(
        one.layer == namespaces.LAYER and one.state == "enforced" for one in trusted
    )
    private_root = _settle(
        reports,
        mode,
        root.LAYER,
        lambda: _enter_private_root(has_mounts_of_its_own, confinement.scratch_bytes_max),
    )
    scratch = root.SCRATCH if private_root.state == "enforced" else None
    _settle(reports, mode, privileges.LAYER, privileges.drop_privileges)
    _settle(reports, mode, landlock.LAYER, lambda: landlock.restrict_access(scratch))
    start_threads()
    _settle(
        reports,
        mode,
        rlimits.LAYER,
        lambda: rlimits.set_rlimits(
            confinement.address_space_bytes_max,
            confinement.file_bytes_max,
            confinement.cpu_seconds_max,
        ),
    )
    _settle(
        reports,
        mode,
        seccomp.LAYER,
        lambda: seccomp.install_filter(compiles=confinement.compiles),
    )
    return tuple(reports)


def _enter_private_root(has_mounts_of_its_own: bool, scratch_bytes_max: int) -> LayerReport:
    # A daemon that is root could mount here all the same, and over the host's own tree.
    if not has_mounts_of_its_own:
        raise LayerUnavailable(
            root.LAYER, 0, "there is no mount namespace to build it in", "see `namespaces`"
        )
    return root.enter_private_root(scratch_bytes_max)


def _settle(
    reports: list[LayerReport],
    mode: SandboxMode,
    layer: str,
    apply_layer: Callable[[], LayerReport],
) -> LayerReport:
    """Apply one layer as the mode demands, and note what became of it."""
    if mode == "off":
        settled = LayerReport(
            layer, "missing", 'switched off by sandbox = "off"', 'set sandbox = "strict"'
        )
    else:
        try:
            settled = apply_layer()
        except report.LayerUnavailable as error:
            reports.append(error.report)
            if mode == "strict" and layer in REQUIRED_LAYERS:
                raise SandboxRefusal(error, tuple(reports)) from error
            return error.report
    reports.append(settled)
    return settled
