"""Where two lists of tokens part. Imports no torch."""

from collections.abc import Sequence


def find_difference(tokens: Sequence[int], reference: Sequence[int]) -> int | None:
    """The first place where ``tokens`` are not the reference's; ``None`` where they are the same."""
    pairs = enumerate(zip(tokens, reference, strict=False))
    place = next((place for place, (ours, theirs) in pairs if ours != theirs), None)
    if place is None and len(tokens) != len(reference):
        return min(len(tokens), len(reference))
    return place


def find_first_difference(batch: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> int | None:
    """The earliest place in which any entry of a batch differs."""
    places = [find_difference(ours, theirs) for ours, theirs in zip(batch, reference, strict=True)]
    return min((place for place in places if place is not None), default=None)
