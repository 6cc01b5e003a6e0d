"""Settings shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No test asserts a time, so no example may fail for being slow on a busy machine.
settings.register_profile("explorer", deadline=None, print_blob=True)
settings.load_profile("explorer")

PAGES = Path(__file__).parent / "ui"


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the other cores are other workers'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pages first, and all by one worker of ``-n``: they wait where the other tests compute."""
    for item in items:
        if PAGES in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("pages"))
    items.sort(key=lambda item: PAGES not in item.path.parents)
