"""What stands where there is nothing to show: what went wrong, and what to do instead."""

from __future__ import annotations

from html import escape

from explorer.errors import DataError, ExplorerError
from explorer.sources import ZOO, ZOO_DATA
from explorer.views import theme

CSS = (
    theme.CARD
    + """
:host { padding: 18px 22px; font-size: 13.5px; line-height: 21px; max-width: 760px; }
h2 { font-size: 16px; font-weight: 600; margin: 0 0 6px; } p { margin: 8px 0 0; }
pre { margin: 6px 0 0; padding: 8px 10px; border-radius: 5px; background: var(--wash); overflow-x: auto;
  font-size: 12.5px; }
"""
)


def instead(error: ExplorerError) -> str:
    """How to come to a page after all, as HTML: with what ships, or with one's own network."""
    about = "images" if isinstance(error, DataError) else "network"
    first = next(iter(ZOO))
    lines = (
        f"python -m explorer serve --model {first}",
        "python -m explorer serve --model path/to/file.py:factory --checkpoint weights.safetensors --data folder",
    )
    return (
        f"<h2>Nothing to show yet: the {about} could not be used</h2>"
        "<p>Mend what the message above says, or start again with something that ships, or with your own:</p>"
        f"<pre>{escape(chr(10).join(lines))}</pre>"
        f"<p>Networks that ship: {escape(', '.join(ZOO))}. Images that ship: {escape(', '.join(ZOO_DATA))}. "
        "Folders of images need a folder for each class, or none for agreement with the float network.</p>"
    )
