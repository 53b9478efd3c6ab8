"""What all tests share: locks of their own, so that nobody's measurement keeps them waiting, nor they anybody's; and
quick collections of garbage."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERF_LOCKS", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session", autouse=True)
def frozen_imports() -> None:
    """Collections of garbage leave out what was imported for the tests: a quarter of a second each."""
    gc.collect()
    gc.freeze()
