"""A session of pytest: its journal, locks, limits of time, saving, and what people see."""
