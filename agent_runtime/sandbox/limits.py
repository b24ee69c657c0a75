"""Every number of the sandbox, each with its reason.

Memory, scratch space and CPU time differ per process and come with its `Confinement`; what stands
here is the same for all.
"""

# A worker holds its socket, three standard streams, the loop's epoll, event, wake-up and signal
# descriptors (about 10 in all); the rest are for files in the scratch space.
DESCRIPTORS_MAX = 64

# The scratch space bounds bytes by its size; without a bound on inodes a million empty files would
# take kernel memory that no size limit counts (about 1 KiB each). Half of them cost at most 2 MiB.
SCRATCH_INODES_MAX = 2048

# The private root holds one directory, the mount point of the scratch space, and is read-only
# afterwards: one inode for the root, one for that directory, and room for nothing else.
ROOT_INODES_MAX = 2
ROOT_BYTES_MAX = 4096

# Only the worker's own signals can queue up inside its pid namespace; the loop needs a handful.
SIGNALS_PENDING_MAX = 64

# The stack of the main thread. CPython's own recursion limit ends far below it; an unbounded one
# would count against the address space only when it is too late to raise MemoryError.
STACK_BYTES_MAX = 8 * 1024 * 1024

# One heap for all threads. A second thread would reserve 64 MiB of the limit on the address space
# for a heap of its own, out of which the ticker would take a few hundred bytes.
MALLOC_ARENAS_MAX = 1

# What a compiler may write. Native code is 2.2 times as large as a component that is written in
# Python; this is 4 times the largest component that a compiler reads (64 MiB).
NATIVE_CODE_BYTES_MAX = 256 * 1024 * 1024

# The kernel ends a process by its running count of CPU time, which is ahead of the one that it
# reports afterwards: by up to 0.03 s as measured. This is three times that, and a tenth of the
# least limit there can be.
CPU_SECONDS_UNREPORTED_MAX = 0.1

# A confined fork takes a few milliseconds. A host that is swapping may take a thousand times that;
# beyond it the zygote would hold up every other agent's restart for one that does not get ready.
FORK_SECONDS_MAX = 10.0

# One record on the status pipe: at most a dozen reports of a few hundred bytes each, rounded up.
# It stays below the capacity of a pipe (64 KiB), so the writer never blocks on a slow reader.
STATUS_RECORD_BYTES_MAX = 32 * 1024
assert STATUS_RECORD_BYTES_MAX < 64 * 1024
