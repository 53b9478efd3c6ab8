"""Parts of the model, each against the machine's limits. Run with ``--perf-components``."""

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.filterwarnings("default")


def test_encoder(measure: Callable[[], None]) -> None:
    """Features in, states out."""
    measure()


def test_prefill(measure: Callable[[], None]) -> None:
    """The prompt behind given encoder states, to the logits of the first token."""
    measure()


def test_decode_step(measure: Callable[[], None]) -> None:
    """One token behind a cache of so many positions, to its logits."""
    measure()


def test_attention(measure: Callable[[], None]) -> None:
    """One attention module at its longest."""
    measure()


def test_training_step(measure: Callable[[], None]) -> None:
    """Forward and backward."""
    measure()


def test_load(measure: Callable[[], None]) -> None:
    """From a checkpoint on the disk to the first token."""
    measure()


def test_long_form(measure: Callable[[], None]) -> None:
    """Ten minutes of audio, window after window."""
    measure()
