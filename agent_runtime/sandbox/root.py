"""The private root: an empty read-only file system in memory, with one scratch space in it.

There is no /proc, no device and no library. The host's root is detached, so no path leads back.
"""

import os

from agent_runtime.sandbox import limits, syscalls
from agent_runtime.sandbox.report import LayerReport, LayerUnavailable

LAYER = "root"
SCRATCH = "/scratch"

# Any directory that every host has will do: what is mounted on it is seen in this namespace only.
_MOUNT_POINT = "/tmp"
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC


def enter_private_root(scratch_bytes_max: int) -> LayerReport:
    """Needs the mount namespace and its capabilities; afterwards the working folder is scratch."""
    try:
        # Without this the mounts below would show up in the host's namespace where it shares them.
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        root_options = f"size={limits.ROOT_BYTES_MAX},nr_inodes={limits.ROOT_INODES_MAX},mode=0555"
        syscalls.mount("root", _MOUNT_POINT, "tmpfs", _FLAGS, root_options)
        os.chdir(_MOUNT_POINT)
        os.mkdir(SCRATCH.lstrip("/"), 0o700)  # noqa: PTH102 (relative to the mount)
        # A tmpfs of size 0 would be one without a limit.
        scratch_options = (
            f"size={max(scratch_bytes_max, 1)},nr_inodes={limits.SCRATCH_INODES_MAX},mode=0700"
        )
        syscalls.mount("scratch", SCRATCH.lstrip("/"), "tmpfs", _FLAGS, scratch_options)
        syscalls.mount(
            "root", ".", "", _FLAGS | syscalls.MS_REMOUNT | syscalls.MS_RDONLY, root_options
        )
        # The old root ends up on top of the new one at the same place, and is taken off it.
        syscalls.pivot_root(".", ".")
        syscalls.unmount(".", syscalls.MNT_DETACH)
        os.chdir(SCRATCH)
    except OSError as error:
        raise LayerUnavailable.of(
            LAYER,
            "building the private root",
            error,
            "allow the daemon mount(2) and pivot_root(2) in its own namespaces (systemd: "
            "SystemCallFilter=@mount pivot_root, no RestrictNamespaces=; containers: a seccomp and "
            "AppArmor profile that allows them)",
        ) from error
    return LayerReport(LAYER, "enforced", f"empty; {scratch_bytes_max} bytes of scratch space")
