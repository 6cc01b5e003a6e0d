"""The page in a cell of JupyterLab, with no network but this machine's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")

from playwright.sync_api import expect

from .conftest import LONG, ROOT, free_port

pytestmark = [pytest.mark.browser, pytest.mark.notebook]

CODE = """import explorer as qx
session = qx.Session(model="fashion-lenet5")
session.panel()"""


def notebook(path: Path) -> None:
    cell = {
        "cell_type": "code", "id": "first", "execution_count": None, "metadata": {}, "outputs": [],
        "source": CODE.splitlines(keepends=True),
    }  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))


def test_the_page_in_a_notebook(
    launch: Callable[..., Path], new_page: Callable[[], Any], tmp_path: Path
) -> None:
    notebook(tmp_path / "page.ipynb")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own["JUPYTERLAB_SETTINGS_DIR"] = own["JUPYTERLAB_WORKSPACES_DIR"] = str(tmp_path / "lab")
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--IdentityProvider.token=",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--ServerApp.root_dir={tmp_path}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    launch(command, f"{address}/api", cwd=ROOT, **own)
    page = new_page()
    page.goto(f"{address}/lab/tree/page.ipynb?reset")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=LONG)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=LONG)
    page.locator(".jp-Cell .cm-content").first.click()
    page.get_by_role("button", name="Run this cell and advance").first.click()
    expect(page.locator(".bk-Canvas").first).to_be_visible(timeout=LONG)
    row = page.locator(".tabulator-row").nth(2)
    expect(row).to_be_visible()
    row.locator('[tabulator-field="name"]').click()
    expect(page.locator(".head")).to_have_text("ip1", timeout=LONG)
    row.locator('[tabulator-field="w_format"]').click()
    page.locator(".tabulator-edit-list-item").get_by_text("int2", exact=True).click()
    expect(page.locator(".caption")).to_contain_text("int2 channel sym minmax", timeout=LONG)
    expect(page.locator(".card").first).to_contain_text("%", timeout=LONG)
    # A click on the map chooses a layer here as well.
    expect(page.get_by_text("most sensitive at").first).to_be_visible(timeout=LONG)
    figure = page.locator(".bk-Canvas").nth(1)
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    figure.click(position={"x": 0.6 * box["width"], "y": box["height"] - 8})
    expect(page.locator(".head")).to_have_text("ip2", timeout=LONG)
