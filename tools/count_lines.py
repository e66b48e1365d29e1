"""Count logical lines of code by package: `python -m tools.count_lines [PATH ...]`.

A logical line is one that holds a token of code. Comments, blank lines and docstrings do not count, nor do the files
that a checkpoint ships.
"""

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

PRODUCT = ("bot", "inference", "training", "storage", "telegram_emulator", "tools")
IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Return the number of lines of Python source that hold code."""
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in IGNORED:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> None:
    """Print the number of lines of each package, and the total."""
    paths = sys.argv[1:] or PRODUCT
    files = subprocess.run(["git", "ls-files", *paths], capture_output=True, text=True, check=True).stdout.split()
    counted = Counter[str]()
    for file in files:
        if file.endswith((".py", ".js")) and "checkpoint/" not in file:
            package = "/".join(file.split("/")[:-1])
            text = Path(file).read_text(encoding="utf-8")
            counted[package] += code_lines(text) if file.endswith(".py") else text.count("\n")
    for package, lines in sorted(counted.items()):
        sys.stdout.write(f"{lines:7,} {package}\n")
    sys.stdout.write(f"{counted.total():7,}\n")


if __name__ == "__main__":
    main()
