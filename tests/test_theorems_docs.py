"""docs/theorems.md: its Python runs as it stands, its commands work, and it speaks of every statement."""

import doctest
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bptt import theorems
from bptt.cli import app

PAGE = (Path(__file__).parents[1] / "docs" / "theorems.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = sorted(set(re.findall(r"`bptt (theorems --explain \S+)`", PAGE)))


def test_the_session_prints_what_the_page_says():
    # every example has to run: a block without one would be untested text
    assert all(">>> " in block for block in BLOCKS) and PAGE.count("```") == 2 * (len(BLOCKS) + 1)
    session = doctest.DocTestParser().get_doctest("\n".join(BLOCKS), {}, "docs/theorems.md", "docs/theorems.md", 0)
    report: list[str] = []
    failed, run = doctest.DocTestRunner().run(session, out=report.append)
    assert run > 50
    assert not failed, "".join(report)


def test_each_statement_has_its_section_and_its_command():
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    names = [statement.name for statement in theorems.STATEMENTS]
    assert sections[-len(names) :] == names
    assert {theorems.statement(command.split()[-1]).name for command in COMMANDS} == set(names)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(command):
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output
    assert theorems.statement(command.split()[-1]).why in re.sub(r"^  ", "", result.output, flags=re.MULTILINE)
