"""How faults of a machine that runs short of something are told from other faults."""

from __future__ import annotations

import errno

# What torch (on the CPU, and on a GPU) and OpenCV say, which have no type of Python's for it.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Insufficient memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short, of the machine or of its GPU."""
    number = error.errno if isinstance(error, OSError) else None
    is_told = isinstance(error, MemoryError) or number == errno.ENOMEM
    return is_told or any(words in str(error) for words in _OUT_OF_MEMORY)


def is_disk_full(error: Exception) -> bool:
    """Whether an error says that a disk, or what a user may have of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
