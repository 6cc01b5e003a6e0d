"""What tests and benchmarks of the page share: a server that comes up, Chromium's flags, the range in the histogram."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-quic",
]  # fmt: skip
# In pixels of the window: the ends of the range that the histogram's tensor keeps, its middle, and which ends move.
KEPT = """() => {
    const found = []
    const walk = view => {
        const kept = view.frame && view.model.center.find(model => model.inverted)
        if (kept) {
            const box = view.el.getBoundingClientRect(), inner = view.frame.bbox, at = view.frame.x_scale
            const place = value => box.left + at.compute(value)
            found.push({y: box.top + (inner.top + inner.bottom) / 2, low: place(kept.left), zero: place(0),
                        high: place(kept.right), left: kept.left, right: kept.right, edges: kept.resizable})
        }
        for (const child of view.child_views || []) walk(child)
    }
    for (const view of Bokeh.index.roots || Object.values(Bokeh.index)) walk(view)
    return found[0]
}"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"The server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(url, timeout=60).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"Nothing answers at {url}:\n{log.read_text()[-3000:]}")
