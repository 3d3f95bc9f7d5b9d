"""The house's order: imports point one way, and the command line comes up without torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xmplug

ROOT = Path(xmplug.__file__).parent
# A room may import from itself and from rooms before it; rooms in one tuple may see each other.
ORDER = [
    ("errors",),
    ("recipe", "hookspecs"),
    ("plugins",),
    ("mixing",),
    ("config",),
    ("interfaces", "ops", "data"),
    ("metrics", "calibration", "combination"),
    ("components", "model", "optim"),
    ("inference",),
    ("saving", "preflight"),
    ("training", "evaluation"),
    ("refinement",),
    ("api",),
    ("comparison",),
    ("report",),
    ("testing",),
    ("template",),
    ("cli",),
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Rooms of xmplug that a module imports, those for type checking left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    package = ("xmplug", *path.relative_to(ROOT).parts[:-1])
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only:
            base = package[: len(package) - node.level + 1] if node.level else ()
            target = (*base, *(node.module.split(".") if node.module else ()))
            if target[:1] == ("xmplug",):
                rooms |= {target[1]} if len(target) > 1 else {alias.name for alias in node.names}
    return rooms & RANK.keys()


@pytest.mark.parametrize("path", [p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem != "__init__"], ids=str)
def test_imports_point_one_way(path: Path) -> None:
    assert _room(path) in RANK, f"{path.name} has no place in the order of imports"
    later = {room for room in _imports(path) if RANK[room] > RANK[_room(path)]}
    assert not later, f"{path.relative_to(ROOT)} imports {later}, which come after it"


PLUGINS = [path for top in (ROOT.parent / "plugins", ROOT / "template") for path in sorted(top.rglob("xmplug_*/*.py"))]


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.name)
def test_plugins_import_public_rooms_only(path: Path) -> None:
    public = {"xmplug", "xmplug.components", "xmplug.interfaces", "xmplug.ops", "xmplug.data", "xmplug.testing"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0].startswith("xmplug"):
                allowed = name in public or name.startswith("xmplug.components.")
                assert allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    "code",
    [
        "import xmplug.cli",
        "from xmplug.plugins import Plugins; assert Plugins().load().recipes.find('attentionxml')",
        "import sys; sys.argv = ['xmplug', 'train', '--plugin', 'attentionxml', '--help']\n"
        "from xmplug.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv = ['xmplug', 'compare', '--help']\n"
        "from xmplug.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv = ['xmplug', 'config', '--plugin', 'attentionxml']\nfrom xmplug.cli import main\nmain()",
        "import sys; sys.argv = ['xmplug', 'config', '--plugin', 'treaderxml']\nfrom xmplug.cli import main\nmain()",
    ],
    ids=["cli", "plugins", "train --help", "compare --help", "config", "config of treaderxml"],
)
def test_comes_up_without_torch(code: str) -> None:
    check = (
        "\nimport sys\nheavy = {'torch', 'numpy', 'scipy', 'gensim', 'tokenizers', 'faiss', 'matplotlib'}"
        "\nheavy &= set(sys.modules)"
        "\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
