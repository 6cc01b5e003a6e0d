"""Settings shared by all tests."""

from __future__ import annotations

from hypothesis import settings

# No test asserts a time, so no example may fail for being slow on a busy machine.
settings.register_profile("explorer", deadline=None, print_blob=True)
settings.load_profile("explorer")
