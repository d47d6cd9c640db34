"""Settings that all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _few_threads():
    """Two threads: what a small machine has, so that results do not depend on where the tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)
