"""How this process holds memory: the one place where the allocator is told.

glibc gives large buffers back to the system after each operator and asks for fresh pages at the next;
on the CPU those page faults cost more than the arithmetic.  Keeping freed pages made the shipped networks
1.1 to 2.8 times faster.  glibc also gives threads pools of their own, each of which would keep the most that
its threads have ever held: of ten sessions that evaluate in turn, ten times one's memory.  So there are two.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_KEPT = 1 << 30
_POOLS = 2
_done = False


def keep_pages() -> None:
    """Let the allocator keep freed pages; does nothing on systems without glibc's ``mallopt``."""
    global _done
    if _done or not sys.platform.startswith("linux"):
        return
    _done = True
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    # The user's own settings win.
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    if "MALLOC_TOP_PAD_" not in os.environ:
        mallopt(_M_TOP_PAD, 1 << 26)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, _POOLS)


def free_bytes() -> int:
    """Memory that this machine could still give, bytes; 4 GiB where it does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30


def resident_bytes() -> int:
    """Memory that this process holds now; the most it has ever held on systems without ``/proc``."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
