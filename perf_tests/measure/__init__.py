"""What is measured of a case, one file each: memory, exact counters, time; and the order of it."""
