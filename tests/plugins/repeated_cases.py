"""pytest plugin for the tests' own runs of the suite: each case twice, as pytest-repeat's `--count 2` has it."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.fixturenames.append("repetition")
    metafunc.parametrize("repetition", [1, 2], indirect=True)


@pytest.fixture
def repetition() -> None:
    pass
