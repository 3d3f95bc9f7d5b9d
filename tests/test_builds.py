"""Every package as users get it: built, installed into an environment of its own, used, and taken away again.

Left out of `make test`, since it compiles the kernels: `make builds`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xmplug.data import synthetic_dataset

pytestmark = pytest.mark.build
pytest.importorskip("build", reason="packages are built with it: pip install build")

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(folder.name for folder in (ROOT / "plugins").glob("xmplug-*"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
QUICK = "--encoder.vectors random --encoder.vector_size 16 --training.epochs 8 --training.learning_rate 0.02"


def _call(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist and wheel of every package, the wheel made from the sdist, of copies that hold sources alone."""
    folder = tmp_path_factory.mktemp("builds")
    made = ("build", "dist", "*.egg-info", "*.so", "__pycache__", "runs", "plugins", ".git", ".venv*", ".*_cache")
    unwanted = shutil.ignore_patterns(*made)
    for name in ("xmplug", *PLUGINS):
        source = ROOT if name == "xmplug" else ROOT / "plugins" / name
        shutil.copytree(source, folder / name, ignore=unwanted)
        build = ("-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / name)
        _call(sys.executable, *build, cwd=folder, XMPLUG_BUILD="cpu")
    return folder / "dist"


def _inside(archive: Path) -> set[str]:
    """The files of an sdist, without its folder, or of a wheel."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}


def _archive(dist: Path, name: str, ending: str) -> Path:
    (found,) = dist.glob(f"{name.replace('-', '_')}-[0-9]*{ending}")
    return found


def test_what_the_core_holds(dist: Path) -> None:
    sources = {
        str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu", ".h")
    }
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "xmplug").rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc")
    }
    assert {"csrc/cpu/" in name and name.endswith(".h") for name in sources} == {True, False}
    assert any("data/bundled/debtags/train" in name for name in package) and "xmplug/report.html" in package
    sdist, wheel = _inside(_archive(dist, "xmplug", ".tar.gz")), _inside(_archive(dist, "xmplug", ".whl"))
    assert sources | package | {"README.md", "LICENSE", "pyproject.toml", "setup.py"} <= sdist
    assert not [path for path in sdist if path.startswith("tests/")]  # they run in a checkout: a part is of no use
    assert package <= wheel
    assert any(re.fullmatch(r"xmplug/_cpu\..*\.so", name) for name in wheel)
    assert {re.sub(r"-[\d.]+\.", "-.", name.split("/")[0]) for name in wheel} == {"xmplug", "xmplug-.dist-info"}


@pytest.mark.parametrize("name", PLUGINS)
def test_what_a_plugin_holds(name: str, dist: Path) -> None:
    module = name.replace("-", "_")
    folder = ROOT / "plugins" / name
    package = {str(path.relative_to(folder)) for path in (folder / module).rglob("*.py")}
    sdist, wheel = _inside(_archive(dist, name, ".tar.gz")), _inside(_archive(dist, name, ".whl"))
    assert package | {"README.md", "pyproject.toml"} <= sdist
    assert package <= wheel
    assert {re.sub(r"-[\d.]+\.", "-.", each.split("/")[0]) for each in wheel} == {module, f"{module}-.dist-info"}


class _Clean:
    """A virtual environment that has what xmplug needs, and no xmplug."""

    def __init__(self, folder: Path, dist: Path):
        self.folder, self.dist = folder, dist
        _call(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
        self.site = next((folder / "env/lib").glob("python*")) / "site-packages"
        needed = folder / "needed"
        needed.mkdir()
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(place).iterdir():
                if not re.match(r"_*(xmplug|editable|pip\b)|.*\.pth$", entry.name):
                    (needed / entry.name).symlink_to(entry)
        (self.site / "needed.pth").write_text(f"{needed}\n")
        self.before = self.files()

    def files(self) -> set[str]:
        return {
            str(path.relative_to(self.folder / "env"))
            for path in (self.folder / "env").rglob("*")
            if "__pycache__" not in path.parts and path.is_file()
        }

    def pip(self, *arguments: str | Path, **environment: str) -> None:
        """Without network: what is asked for is a file or in the folder of builds, what it needs has to be here."""
        pip = ("-m", "pip", "--disable-pip-version-check", "--python", self.folder / "env/bin/python")
        _call(sys.executable, *pip, *arguments, cwd=self.folder, **environment)

    def install(self, *names: str) -> None:
        self.pip("install", "--no-index", "--find-links", self.dist, *names)

    def xmplug(self, line: str) -> str:
        return _call(self.folder / "env/bin/xmplug", *line.split(), cwd=self.folder)

    def plugins(self) -> list[str]:
        """Those that the command lists, which all have to load."""
        lines = re.findall(r"^(\w+)  \((.*)\)  (.*)$", self.xmplug("plugins"), re.M)
        assert {state for _, _, state in lines} == {"ok"}
        return sorted(name for name, _, _ in lines)


@pytest.fixture
def clean(dist: Path, tmp_path: Path) -> Iterator[_Clean]:
    synthetic_dataset(300, 15, folder=tmp_path / "planted")
    yield _Clean(tmp_path, dist)
    shutil.rmtree(tmp_path / "env")


def test_none_some_and_all_plugins(clean: _Clean) -> None:
    clean.install("xmplug")
    assert clean.plugins() == ["core"]
    info = clean.xmplug("info")
    assert re.search(r"kernel label_attention +native cpu", info)
    assert str(clean.site) in _call(
        clean.folder / "env/bin/python", "-c", "import xmplug; print(xmplug.__file__)", cwd=clean.folder
    )
    guide = (ROOT / "plugins/README.md").read_text(encoding="utf-8").partition("## Hooks")[2]
    (clean.folder / "mine.py").write_text("\n\n".join(re.findall(r"^```python\n(.*?)^```$", guide, re.S | re.M)))
    clean.xmplug(f"train --plugin mine.py --data planted --out alone {QUICK}")
    assert "P" in clean.xmplug("evaluate alone --plugin-file mine.py")

    clean.install("xmplug-attentionxml")
    assert clean.plugins() == ["attentionxml", "core"]
    clean.xmplug(f"train --plugin attentionxml --data planted --out some {QUICK}")

    clean.install(*PLUGINS)
    assert clean.plugins() == sorted(["core", *(name.removeprefix("xmplug-") for name in PLUGINS)])
    for name in PLUGINS:
        clean.xmplug(f"config --plugin {name.removeprefix('xmplug-')}")
    clean.xmplug(f"train --plugin treaderxml --data planted --out all {QUICK}")

    clean.pip("uninstall", "--yes", "xmplug-attentionxml")
    assert "attentionxml" not in clean.plugins()
    with pytest.raises(AssertionError, match=r"needs plugin 'attentionxml'.*pip install xmplug-attentionxml==0\.1\.0"):
        clean.xmplug("evaluate some")
    clean.xmplug("evaluate all")

    clean.pip("uninstall", "--yes", *(name for name in PLUGINS if name != "xmplug-attentionxml"))
    assert clean.plugins() == ["core"]
    clean.pip("uninstall", "--yes", "xmplug")
    assert clean.files() == clean.before


def test_it_installs_from_the_sdists(clean: _Clean) -> None:
    """Where no wheel fits; without a compiler, which is asked for by XMPLUG_BUILD here, it is pure Python."""
    sdists = [_archive(clean.dist, name, ".tar.gz") for name in ("xmplug", *PLUGINS)]
    clean.pip("install", "--no-index", "--no-build-isolation", *sdists, XMPLUG_BUILD="none")
    assert len(clean.plugins()) == 1 + len(PLUGINS)
    assert "reference" in clean.xmplug("info")
    clean.xmplug(f"train --plugin attentionxml --data planted --out run {QUICK}")
