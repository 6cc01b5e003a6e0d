"""Settings shared by all tests."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

# No test asserts a time, so no example may fail for being slow on a busy machine.
settings.register_profile("explorer", deadline=None, print_blob=True)
settings.load_profile("explorer")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes side by side: each has a core.
    torch.set_num_threads(1)


# Before the processes read which tests belong together.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process at most has a browser; it begins with it, since that takes longest."""
    for item in items:
        if "/ui/" in item.path.as_posix():
            item.add_marker(pytest.mark.xdist_group("browser"))
    items.sort(key=lambda item: "/ui/" not in item.path.as_posix())
