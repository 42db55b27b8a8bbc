"""The build: what the linked images show and need, and what a wrong configuration is told."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bptt
from bptt import _levels

PACKAGE = Path(bptt.__file__).parent
SOURCE = Path(__file__).parents[1]
MODULES = sorted(PACKAGE.glob("_*.so"))


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def configure(directory: Path, *definitions: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", SOURCE, "-B", directory, f"-DPython_EXECUTABLE={sys.executable}", *definitions]
    return subprocess.run(command, capture_output=True, text=True)


def level_of(module: Path) -> str:
    return module.name.split(".")[0].removeprefix("_kernel_")


def test_a_module_for_every_level():
    assert [level_of(module) for module in MODULES] == ["_cpu", *_levels.built()]


@pytest.mark.parametrize("module", MODULES, ids=level_of)
def test_only_the_entry_is_exported(module):
    symbols = [line.split()[-1] for line in output("nm", "-D", "--defined-only", module).splitlines()]
    assert symbols == [f"PyInit_{module.name.split('.')[0]}"]


@pytest.mark.parametrize("module", MODULES, ids=level_of)
def test_needs_nothing_beyond_the_compiler_runtime(module):
    needed = set(re.findall(r"NEEDED.*\[([\w+-]+)\.", output("readelf", "-d", module)))
    assert needed <= {"libstdc++", "libgcc_s", "libgomp", "libm", "libc", "ld-linux-x86-64"}


# What a level may not use, seen in the registers of its instructions: AVX's are 256 bits wide, AVX-512's 512 bits or
# numbered beyond 15, and its masks are k0..k7.
AVX = r"%ymm"
AVX_512 = r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]"


@pytest.mark.parametrize("module", MODULES, ids=level_of)
def test_one_instruction_set_in_one_image(module):
    code = output("objdump", "-d", "--no-show-raw-insn", module)
    used = {name for name, register in (("AVX", AVX), ("AVX-512", AVX_512)) if re.search(register, code)}
    wanted = {"v3": {"AVX"}, "v4": {"AVX", "AVX-512"}}
    assert used == wanted.get(level_of(module), set())


def test_unknown_level_names_the_known(tmp_path):
    result = configure(tmp_path, "-DBPTT_LEVELS=v3,v9")
    assert result.returncode != 0
    assert "BPTT_LEVELS names 'v9'" in result.stderr
    assert "v2;v3;v4" in result.stderr


def test_missing_test_framework_is_an_error_that_names_the_package(tmp_path):
    result = configure(tmp_path, "-DBPTT_TESTS=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_doctest=ON")
    assert result.returncode != 0
    assert "doctest-dev" in result.stderr


def test_missing_eigen_is_an_error_that_names_the_package(tmp_path):
    result = configure(tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON")
    assert result.returncode != 0
    assert "cmeel-eigen" in result.stderr


def test_the_tools_of_these_tests_are_here():
    missing = [tool for tool in ("cmake", "nm", "readelf", "objdump") if shutil.which(tool) is None]
    assert not missing, f"these tests need {missing}: Debian's cmake and binutils"
