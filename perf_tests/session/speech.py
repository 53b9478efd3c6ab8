"""The speech that a session's cases take in."""

from collections.abc import Sequence

import pytest

from perf_tests.common.errors import BadInputError
from perf_tests.matrix.cases import WINDOW_SECONDS
from perf_tests.matrix.components import WORKS, setting_of
from perf_tests.matrix.options import PLAN
from perf_tests.subjects.audio import Speech, go_offline_unless_reachable, load_speech

SPEECH = pytest.StashKey[Speech]()
LONG_FORM_CLIPS = 32


def load_speech_of(config: pytest.Config, cases: Sequence[pytest.Item]) -> None:
    """Get the speech once, before the header that names it and before any case could fail for want of it.

    Raises:
        pytest.UsageError: it cannot be had.
    """
    plan = config.stash[PLAN]
    settings = {str(item.callspec.params["setting"]) for item in cases if isinstance(item, pytest.Function)}
    count = max(setting_of(setting).batch_size for setting in settings)
    if any(setting in WORKS and WORKS[setting].seconds > WINDOW_SECONDS for setting in settings):
        count = max(count, LONG_FORM_CLIPS)
    if plan.weights == "pretrained":
        go_offline_unless_reachable()  # before the Hub's client is imported, which reads the switch then
    try:
        config.stash[SPEECH] = load_speech(plan.dataset, count)
    except BadInputError as error:
        raise pytest.UsageError(str(error)) from None
