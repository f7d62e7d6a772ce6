"""Users' programs: a script that uses every public name runs, and is what `mypy --strict` calls right."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import places
import pytest

import bitgen

SCRIPT = Path(__file__).with_name("user_script.py")
EXAMPLES = sorted(map(str, (places.REPO / "docs" / "examples").glob("*.py")))


def test_the_script_runs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_has_every_public_name() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not set(bitgen.__all__) - used
    assert (places.REPO / "bitgen" / "py.typed").is_file()


def test_the_scripts_are_typed(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """And a wrong one is not: the package says its types to others."""
    pytest.importorskip("mypy")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from bitgen import Model\n"
        "m = Model.load(head='f99')\n"
        "m.generate('a', max_tokens='5')\n"
        "m.session(cache='f64')\n"
        "t: int = m.generate_many(['a'])\n"
    )
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(cache)]
    environment = {"MYPYPATH": str(places.REPO), "PATH": ""}
    done = subprocess.run(
        [*command, str(SCRIPT), *EXAMPLES, str(wrong)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=600,
    )
    said = done.stdout.splitlines()
    assert not [line for line in said if ": error:" in line and "wrong.py" not in line], done.stdout
    for number in (2, 3, 4, 5):
        assert any(line.startswith(f"wrong.py:{number}: error:") for line in said), done.stdout + done.stderr
