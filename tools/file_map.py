"""Update the list of modules in docs/architecture.md: `python -m tools.file_map [--check]`.

The list is generated from the modules' docstrings and placed between two markers in the document.
"""

import argparse
import ast
import subprocess
import sys
from itertools import groupby
from pathlib import Path

from tools.count_lines import PRODUCT

DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"
BEGIN, END = "<!-- modules -->\n", "<!-- end of modules -->\n"


def summary(file: str) -> str:
    """Return the first line of a module's docstring, without the final full stop."""
    docstring = ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].removesuffix(".")


def listing() -> str:
    """Return the modules of every package as Markdown, with one table for each package."""
    found = subprocess.run(["git", "ls-files", *PRODUCT], capture_output=True, text=True, check=True).stdout.split()
    files = sorted(found, key=lambda file: (file.rpartition("/")[0], file))
    parts = list[str]()
    for package, members in groupby(files, key=lambda file: file.rpartition("/")[0]):
        modules = [each for each in members if each.endswith(".py") and "checkpoint/" not in each]
        if not modules:
            continue
        about = [summary(each) for each in modules if each.endswith("/__init__.py")]
        rows = [f"| `{Path(each).name}` | {summary(each)} |" for each in modules if not each.endswith("/__init__.py")]
        table = ["| module | subject |", "| --- | --- |", *rows, ""] if rows else []
        parts.append("\n".join([f"### {package}/\n", *(f"{each}.\n" for each in about), *table]))
    return "\n".join(parts)


def main() -> None:
    """Update the list in the document or, with `--check`, exit with status 1 if the list is out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the list is not up to date")
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    updated = f"{before}{BEGIN}\n{listing()}\n{END}{after}"
    if parser.parse_args().check:
        if updated != text:
            sys.exit("The list of modules in docs/architecture.md is out of date: run python -m tools.file_map")
    else:
        DOCUMENT.write_text(updated, encoding="utf-8")


if __name__ == "__main__":
    main()
