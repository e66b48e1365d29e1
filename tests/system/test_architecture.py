"""docs/architecture.md names only functions that exist, a picture's path is short, and each class has its own name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tools.count_lines import PRODUCT

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
STEPS = re.findall(r"`((?:\w+/)+\w+\.py)`\s+`([\w.]+)`", TEXT)


@pytest.mark.parametrize(("file", "name"), sorted(set(STEPS)))
def test_named_functions_exist(file: str, name: str) -> None:
    """Each function, class or method named in a step of docs/architecture.md exists in the file given there."""
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [
            each
            for each in body
            if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and each.name == part
        ]
        assert found, f"{file} has no {name}"
        body = found[0].body


def test_a_drawn_picture_passes_at_most_twenty_files() -> None:
    """The code that handles a picture, from Telegram to the engine's client and back, spans at most 20 files.

    The picture store is not counted.
    """
    journey = TEXT.partition("### A picture with a question")[2].partition("###")[0]
    assert 10 < len(set(re.findall(r"`((?:bot|inference)/[\w/]+\.py)`", journey))) <= 20


def test_every_module_is_listed() -> None:
    """The list of modules in docs/architecture.md matches the modules' docstrings."""
    ended = subprocess.run([sys.executable, "-m", "tools.file_map", "--check"], cwd=ROOT, check=False)
    assert ended.returncode == 0


def test_every_class_has_its_own_name() -> None:
    """No two modules of the product define a public class of the same name.

    The checkpoint of internvl2-tiny links to modules of the product and is not counted.
    """
    defined = defaultdict[str, list[str]](list)
    for package in PRODUCT:
        for file in sorted((ROOT / package).rglob("*.py")):
            if not file.is_symlink():
                for each in ast.parse(file.read_text(encoding="utf-8")).body:
                    if isinstance(each, ast.ClassDef) and not each.name.startswith("_"):
                        defined[each.name].append(str(file.relative_to(ROOT)))
    assert len(defined) > 300
    assert {name: files for name, files in defined.items() if len(files) > 1} == {}
