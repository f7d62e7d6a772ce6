"""What users install: one wheel for every system, outside the checkout, in an environment of its own."""

from __future__ import annotations

import ast
import email
import email.message
import importlib.util
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitgen import __version__
from bitgen.compile import ziglang
from bitgen.measure.install_checks import EXTRAS

REPO = Path(__file__).resolve().parent.parent
LARGEST = 15_000_000
"""Bytes of the wheel; the model that ships has a third of it."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as `python -m build` does: so that is whole too."""
    out = tmp_path_factory.mktemp("dist")
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(REPO)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def read(wheel: Path, name: str) -> str:
    """A file of the wheel's .dist-info."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"bitgen-{__version__}.dist-info/{name}").decode()


def metadata(wheel: Path) -> email.message.Message:
    return email.message_from_string(read(wheel, "METADATA"))


def required(wheel: Path) -> set[str]:
    """The packages that are always installed."""
    needs = [need for need in metadata(wheel).get_all("Requires-Dist", []) if "extra ==" not in need]
    return {re.split(r"[^\w-]", need)[0].lower().replace("_", "-") for need in needs}


def test_one_wheel_serves_every_system(wheel: Path) -> None:
    """It holds no machine code: kernels are compiled where they run."""
    assert wheel.name == f"bitgen-{__version__}-py3-none-any.whl"
    about = email.message_from_string(read(wheel, "WHEEL"))
    assert about["Root-Is-Purelib"] == "true" and about["Tag"] == "py3-none-any"
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".so", ".pyd", ".dll", ".dylib", ".o", ".a", ".exe", ".bgpk"))]
    tops = {name.split("/")[0] for name in names}
    assert tops == {"bitgen", f"bitgen-{__version__}.dist-info"}
    assert wheel.stat().st_size < LARGEST


def test_the_wheel_carries_every_file(wheel: Path) -> None:
    """Modules, templates, runtime, presets with their plans, the model that ships, and the mark of typed packages."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("templates", "presets", "runtime"):
        for file in (REPO / folder).rglob("*"):
            if file.is_file():
                assert f"bitgen/_data/{file.relative_to(REPO).as_posix()}" in names
    modules = {path.relative_to(REPO).as_posix() for path in (REPO / "bitgen").rglob("*.py")}
    assert modules <= names and "bitgen/py.typed" in names
    assert {"bitgen/models/stories.gguf", "bitgen/models/MODEL_CARD.md"} <= names
    kinds = {"bitgen/_data/presets/models/2B4T.yaml", "bitgen/_data/presets/plans/avx2.json"}
    assert kinds <= names and f"bitgen-{__version__}.dist-info/licenses/LICENSE" in names


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    said = metadata(wheel)
    assert said["Name"] == "bitgen" and said["Version"] == __version__ and said["Requires-Python"] == ">=3.10"
    assert read(wheel, "entry_points.txt").split() == ["[console_scripts]", "bitgen", "=", "bitgen.cli:main"]
    assert set(said.get_all("Provides-Extra")) == {*EXTRAS, "clang", "docs", "test", "train"}
    (clang,) = [need for need in said.get_all("Requires-Dist") if "'clang'" in need]
    low, high = (f"{op}{version}" for op, version in ((">=", ziglang.OLDEST), ("<", ziglang.BELOW)))
    assert clang.startswith("ziglang") and low in clang and high in clang  # what the first run would fetch


def test_an_editable_installation_is_the_checkout_alone(tmp_path: Path) -> None:
    """No file of it lies in site-packages/bitgen, where it would stand before the package, and grow stale."""
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(REPO))
    (built,) = builder.build(directory=str(tmp_path), versions=["editable"])
    names = [name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name]
    assert len(names) == 1 and names[0].endswith(".pth")


OPTIONAL = {"lm_eval", "matplotlib", "tqdm", "torch", "transformers", "llama_cpp", "litespark_inference"}
"""What is imported only where an extra or another engine is asked for."""
NAMES = {"markdown_it": "markdown-it-py", "yaml": "pyyaml"}
"""Module -> package, where it has another name."""


def imported() -> Iterator[str]:
    """Modules of others that bitgen imports."""
    for path in (REPO / "bitgen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names or [node.module or ""] if isinstance(node, ast.Import | ast.ImportFrom) else []:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in ("bitgen", "markupsafe"):  # jinja2 brings it
                    yield top


def test_it_requires_what_it_imports_and_nothing_else(wheel: Path) -> None:
    """So neither a compiler nor another engine's package is installed for all."""
    needed = {NAMES.get(name, name).replace("_", "-") for name in set(imported()) - OPTIONAL}
    assert required(wheel) == needed


@pytest.mark.skipif(not importlib.util.find_spec("pip"), reason="pip is not installed")
def test_the_main_job_runs_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """Installed by pip in a fresh environment that borrows the dependencies of this one but not the checkout."""
    venv.create(tmp_path / "env", with_pip=False)
    scripts = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install", "--no-index", "--no-deps"]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = next((tmp_path / "env").rglob("site-packages"))
    (site / "borrowed.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    environment = {**os.environ, "BITGEN_CACHE": str(tmp_path / "cache"), "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONPATH", None)

    def bitgen(*args: str) -> str:
        out = subprocess.run(
            [scripts / "bitgen", *args], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
        )
        assert out.returncode == 0, out.stderr
        return out.stdout

    assert __version__ in bitgen("--version")
    assert "Once upon a time" in bitgen("run", "-p", "Once upon a time", "-n", "8", "--seed", "1")
    where = [scripts / "python", "-c", "import bitgen; print(bitgen.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert Path(found.stdout.strip()).is_relative_to(site)
