"""Fixtures of the model's tests."""

import logging
from collections.abc import Iterator

import pytest
import torch
import transformers

from .tiny import Pair, make_pair

HALF_PRECISIONS = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    """Silence what Transformers logs about tiny configurations; a test that wants it asks for `caplog`."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    yield
    transformers.logging.set_verbosity(level)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def pair() -> Pair:
    """An English-only pair in float32."""
    return make_pair()


@pytest.fixture
def multilingual_pair() -> Pair:
    return make_pair(multilingual=True)


@pytest.fixture(params=HALF_PRECISIONS, ids=["float16", "bfloat16"])
def half(request: pytest.FixtureRequest) -> torch.dtype:
    """Each half precision."""
    return request.param
