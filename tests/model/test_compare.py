"""What the tests compare with, where it runs on a GPU alone but need not be tested there."""

import pytest
import torch

from .compare import full_precision


@pytest.mark.parametrize("allowed", [False, True])
def test_full_precision_puts_back_what_was_allowed(allowed: bool) -> None:
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    with full_precision():
        for switch in switches:
            switch.allow_tf32 = allowed
        with full_precision():
            assert not any(switch.allow_tf32 for switch in switches)
        assert all(switch.allow_tf32 is allowed for switch in switches)
