"""What a notebook needs so that the page asks no other machine for anything, and changes in one thread only.

Panel takes some style sheets from a content network when it runs in a notebook.  A small server on the
loopback address hands out the same files from the installed package; Panel is told of it by an environment
variable that it reads when it is imported, so nothing here imports Panel at the top.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tornado.ioloop import IOLoop

_server: ThreadingHTTPServer | None = None
_page = False


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class _Files(SimpleHTTPRequestHandler):
    """Panel's files, read-only, without a line in the notebook for each."""

    def translate_path(self, path: str) -> str:
        # /1.9.4/dist/css/... -> <panel>/dist/css/...
        return super().translate_path("/" + "/".join(path.lstrip("/").split("/")[2:]))

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def serve_files() -> str:
    """Start the server of Panel's files, once; its address."""
    global _server
    if _server is None:
        found = importlib.util.find_spec("panel")
        assert found is not None and found.origin is not None
        handler = functools.partial(_Files, directory=str(Path(found.origin).parent / "dist"))
        _server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=_server.serve_forever, name="panel-files", daemon=True).start()
    return f"http://127.0.0.1:{_server.server_port}/"


def stay_here() -> None:
    """In a notebook, have Panel take its files from this machine; call it before Panel is imported elsewhere."""
    if in_notebook() and "panel" not in sys.modules:
        os.environ.setdefault("PANEL_CDN_ROOT", serve_files())


def prepare() -> None:
    """Make Panel ready for a notebook without a network; call it before Panel is imported elsewhere."""
    global _page
    stay_here()
    import panel as pn
    import panel_material_ui  # noqa: F401  (its bundle is put into the notebook by the extension)

    pn.extension("tabulator", inline=True)
    answer_in_this_thread()
    _page = True


def answer_in_this_thread() -> None:
    """Let what a browser sends to the page be answered in the thread that runs the cells, one message at a time.

    JupyterLab from 4.4 on has ipykernel 7 answer them in a thread beside it.  Each message to the browser goes out
    in three parts, and those of two threads would mix: the browser can read neither message.
    """
    from pyviz_comms import JupyterComm

    answer = JupyterComm._handle_msg
    if getattr(answer, "in_one_thread", False):
        return
    loop, here = IOLoop.current(), threading.get_ident()

    @functools.wraps(answer)
    def in_turn(self: Any, message: Any) -> None:
        if threading.get_ident() == here:
            answer(self, message)
        else:
            loop.add_callback(answer, self, message)

    in_turn.in_one_thread = True  # type: ignore[attr-defined]
    JupyterComm._handle_msg = in_turn


def has_page() -> bool:
    """Whether the page's scripts, BokehJS among them, have been put into the notebook."""
    return _page


def cell() -> tuple[str, int]:
    """The cell that is being run, and which run of the kernel's it is; nothing and 0 outside of a notebook.

    Not every front end says which cell it is: then the name is empty.
    """
    if not in_notebook():
        return "", 0
    shell = sys.modules["IPython"].get_ipython()
    message = shell.kernel.get_parent() or {}
    return str(message.get("metadata", {}).get("cellId", "")), int(shell.execution_count)
