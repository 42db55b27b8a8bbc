"""Where PyTorch is not installed: nothing is missed until it is asked for, and then by its name."""

import subprocess
import sys
import textwrap

BLOCK = """
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "torch":
                raise ModuleNotFoundError(f"No module named {name!r}", name="torch")

    sys.meta_path.insert(0, Absent())
"""


def run(body: str) -> str:
    code = textwrap.dedent(BLOCK) + textwrap.dedent(body)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_and_work_without_pytorch():
    out = run(
        """
        import bptt
        rnn = bptt.RNN.random(3, 8, 5)
        value, _ = bptt.value_and_grad(rnn, [0, 2, 1], [1, 4, 0])
        print(value > 0, "torch" in sys.modules)
        """
    )
    assert out == "True False"


def test_what_needs_pytorch_says_how_to_install_it():
    out = run(
        """
        import bptt
        rnn = bptt.RNN.random(3, 8, 5)
        def imported():
            import bptt.torch
        for action in (imported, rnn.to_torch, lambda: bptt.from_torch(None)):
            try:
                action()
            except ModuleNotFoundError as error:
                print(error.name, error)
        """
    )
    lines = out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("torch ") and line.endswith("pip install 'bptt[torch]'") for line in lines)
