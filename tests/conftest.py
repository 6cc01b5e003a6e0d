"""Settings shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
    """Pages first: they wait where the other tests compute."""
    items.sort(key=lambda item: PAGES not in item.path.parents)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All pages by one of ``-n`` workers, with one browser, and each other file by whoever is free."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "pages" if nodeid.startswith("tests/ui/") else nodeid.split("::")[0]

    return Scheduling(config, log)
