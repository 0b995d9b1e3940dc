"""Every test runs on one thread, from the same seeds."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: before anything that imports it

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# the same examples every time, and no clock: a busy machine is no failure
settings.register_profile("robustx", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("robustx")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test that draws without a seed of its own draws the same in any order and in any process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` say that they were left out where there is no accelerator."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an accelerator")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
