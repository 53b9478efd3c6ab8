"""pytest plugin for the tests' own runs of the suite: a case runs in a process of its own, as with pytest-forked."""

import os

import pytest
from _pytest.runner import runtestprotocol


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    child = os.fork()
    if child == 0:
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        os._exit(any(report.failed for report in reports))
    _, status = os.waitpid(child, 0)
    for when in ("setup", "call", "teardown"):
        call = pytest.CallInfo.from_call(lambda: None, when)
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        report.outcome = "failed" if status else "passed"
        item.ihook.pytest_runtest_logreport(report=report)
    return True
