"""The C library's allocator, brought into one state before anything is timed."""

import torch

_MIB = 1024 * 1024


def settle_allocator() -> None:
    """Have freed blocks of up to 32 MiB stay with the process, so that rounds take no page faults for them.

    glibc gives the top of its heap back once so much of it is free, and maps what is larger than a threshold anew at
    each call; both follow the largest mapped block that was freed so far, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD
    and M_TRIM_THRESHOLD). What that was depends on what a process has loaded and counted before, so one run's rounds
    took up to 9,000 page faults of 2.3 us each, where another's took none: up to 5 % of a round of tiny.en ``single``
    on a 2-core AMD EPYC, different by process, and by implementation in it. Freeing one block of just below 32 MiB
    settles it. Where there is another C library, this changes nothing.
    """
    torch.empty(31 * _MIB, dtype=torch.uint8)
