"""The codebase itself: one version, arrows one way, light to import."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bptt

ROOT = Path(__file__).parents[1]
PYTHON = sorted((ROOT / "python" / "bptt").rglob("*.py"))
KERNEL = sorted(path for path in (ROOT / "cpp" / "kernel").iterdir() if path.suffix in (".hpp", ".cpp"))


def imports(path: Path) -> set[str]:
    """Names of the modules that a file imports, anywhere in it; `from bptt import a` counts as bptt.a."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT / "python").parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (package, node.module)))
            found.update(f"{module}.{alias.name}" if module == "bptt" else module for alias in node.names)
    return found


def test_version_stands_in_pyproject_alone():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert importlib.metadata.version("bptt") == declared
    assert f"## {declared}" in (ROOT / "CHANGELOG.md").read_text()
    others = [path for path in (*PYTHON, ROOT / "CMakeLists.txt") if declared in path.read_text()]
    assert not others


def test_reference_imports_numpy_only():
    roots = {name.split(".")[0] for name in imports(ROOT / "python" / "bptt" / "reference.py")}
    assert "numpy" in roots
    assert roots - {"numpy"} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", KERNEL, ids=lambda path: path.name)
def test_kernel_knows_no_python(path):
    included = re.findall(r"#\s*include\s*[<\"](.+?)[>\"]", path.read_text())
    assert not [name for name in included if "pybind11" in name or "Python.h" in name]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_only_the_command_line_prints(path):
    if path.name == "cli.py" or path.parent.name == "cli":
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_import_needs_numpy_only():
    code = """
import json, sys
import numpy
before = set(sys.modules)
import bptt
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    new = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert set(new) <= {"bptt", "numpy", *sys.stdlib_module_names}


def test_every_public_name_is_documented_and_exists():
    assert bptt.__all__
    undocumented = [name for name in bptt.__all__ if not getattr(bptt, name).__doc__]
    assert not undocumented
