"""What users are told when something cannot be done, and the exit code of it."""

COULD_NOT_JUDGE = 2


class BadInputError(ValueError):
    """The user asked for something that cannot be done; the message is one line that says what to do."""
