"""The package itself: who may import whom, what is public, and what stays out."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import explorer

ROOT = Path(explorer.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PACKAGES = sorted({file.parent for file in FILES if file.name == "__init__.py"})

# A layer imports from layers of smaller rank; those of one rank leave each other alone, but for the ones below.
RANKS = [
    {"errors", "hand", "compiled"},
    {"plainyaml"},
    {"formats"},
    {"calibrate"},
    {"scheme"},
    {"recipe"},
    {"concise"},
    {"tensor"},
    {"graph"},
    {"cost"},
    {"study"},
    {"sources", "jobs"},
    {"workers"},
    {"subject"},
    {"session"},
    {"cli", "views"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
PAGES_ONLY = {"panel", "panel_material_ui", "bokeh", "holoviews", "param"}


def layer(file: Path) -> str:
    """The layer a file belongs to: its folder in the package, or its own name; '' for the front door."""
    inside = file.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else {"__init__": ""}.get(inside.stem, inside.stem)


def imports(file: Path, deferred: bool = True) -> list[tuple[str, bool]]:
    """Every module that a file imports, and whether only inside a function or for type checking."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in later) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are written in full"
            module = node.module or ""
            # "from explorer import cost" imports a layer as well as a name.
            names = [f"explorer.{alias.name}" for alias in node.names] if module == "explorer" else [module]
            found += [(name, id(node) in later) for name in names]
    return [entry for entry in found if deferred or not entry[1]]


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT.parent))


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_arrows(file: Path) -> None:
    """A file imports only from layers before its own."""
    own = layer(file)
    if not own:
        return
    assert own in RANK, f"the layer {own!r} has no place among the layers"
    for name, later in imports(file):
        parts = name.split(".")
        if parts[0] != "explorer" or len(parts) < 2 or parts[1] == own:
            continue
        if later and own in ("session", "cli") and parts[1] == "views":
            continue  # session.panel() and `serve` open the page, when asked
        if later and file == ROOT / "study" / "shown.py" and parts[1] == "views":
            continue  # so does a result that is asked what it looks like
        assert parts[1] in RANK, f"{own} imports {name}, which has no place among the layers"
        assert RANK[parts[1]] < RANK[own], f"{own} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_pages_are_made_in_views_only(file: Path) -> None:
    if layer(file) == "views":
        return
    for name, later in imports(file):
        allowed = later and layer(file) in ("cli", "session")  # `serve` and `session.panel()` when asked
        assert name.split(".")[0] not in PAGES_ONLY or allowed, f"{file.name} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_threads_are_started_in_jobs_only(file: Path) -> None:
    """A lock may be held anywhere; a thread that computes comes from one place."""
    text = file.read_text(encoding="utf-8")
    # In a notebook a thread of http.server hands out the page's files; it computes nothing.
    if layer(file) != "jobs" and file != ROOT / "views" / "notebook.py":
        assert "Thread(" not in text and "ThreadPoolExecutor" not in text and "multiprocessing" not in text


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_executors_come_from_outside(file: Path) -> None:
    """Who computes is decided by whoever makes a session; one file knows Dask, and imports it when asked to."""
    for name, later in imports(file):
        package = name.split(".")[0]
        assert package != "concurrent" or layer(file) in ("workers", "subject", "session"), (
            f"{file} imports {name}"
        )
        assert package not in ("dask", "distributed") or (later and file == ROOT / "workers" / "cluster.py")


def test_importing_the_package_imports_no_page() -> None:
    code = (
        "import sys, explorer; "
        f"print([m for m in sys.modules if m.split('.')[0] in {PAGES_ONLY | {'torchvision', 'matplotlib', 'numba'}!r}])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT.parent
    )
    assert (found.stdout.strip(), found.stderr) == ("[]", "")


def case(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, each in alphabetical order."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("package", PACKAGES, ids=ids)
def test_public_names_are_sorted_and_there(package: Path) -> None:
    """What a package offers is listed, in order, complete and importable."""
    name = ".".join(package.relative_to(ROOT.parent).parts)
    if name.startswith("explorer.views"):
        pytest.importorskip("panel")
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    given = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("explorer")
        for alias in node.names
    }
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    if not given - used:
        return  # nothing is handed on: what is imported is used here
    module = importlib.import_module(name)
    listed = list(module.__all__)
    assert listed == sorted(set(listed), key=case), "not in order, or twice"
    assert all(hasattr(module, public) for public in listed)
    own = {
        n.name
        for n in tree.body
        if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
    }
    tables = {
        n.target.id
        for n in tree.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.target.id.isupper()
    }
    inherited = {public for public in given if public in listed}
    assert own | tables | inherited == set(listed), "what is listed and what is defined differ"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_every_file_says_what_it_is(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef) and file.name == "zoo.py":
                continue  # the networks are those of the papers that the file names
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_every_module_can_be_imported_by_itself() -> None:
    """No order of imports matters: a fresh interpreter takes each layer first."""
    names = [m.name for m in pkgutil.iter_modules([str(ROOT)]) if m.name not in ("__main__", "views")]
    code = "\n".join(f"import explorer.{name}" for name in reversed(names))
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT.parent
    )
    assert found.returncode == 0, found.stderr


def test_errors_form_the_tree_that_is_drawn() -> None:
    errors = importlib.import_module("explorer.errors")
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }
    drawn = errors.__doc__ or ""
    for name, kind in classes.items():
        assert issubclass(kind, errors.ExplorerError) and issubclass(kind, ValueError)
        assert name in drawn and kind.__doc__
    assert errors.nearest("zzzzqqq", ["int8"]) == ""
    assert errors.unknown("format", "x", [f"f{i}" for i in range(20)]).count(",") == 12
