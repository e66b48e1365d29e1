"""Count logical lines of code by package: `python -m tools.count_lines [PATH ...]`.

A logical line is a line with at least one token of code. Comments, blank lines and docstrings do not
count, nor do files in a `checkpoint` directory. In JavaScript and SQL, a comment is recognized only at
the beginning of a line.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

PRODUCT = ("bot", "cluster", "inference", "training", "storage", "telegram_emulator", "tools")
IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
COMMENTS = {
    ".js": re.compile(r"^\s*(?://[^\n]*|/\*.*?\*/)", re.MULTILINE | re.DOTALL),
    ".sql": re.compile(r"^\s*--[^\n]*", re.MULTILINE),
}


def python_lines(source: str) -> int:
    """Return the number of logical lines in Python source code."""
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in IGNORED:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def code_lines(file: Path) -> int:
    """Return the number of logical lines in `file`."""
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return python_lines(source)
    return sum(bool(line.strip()) for line in COMMENTS[file.suffix].sub("", source).splitlines())


def main() -> None:
    """Print the number of lines of code in each package and in total."""
    paths = sys.argv[1:] or PRODUCT
    files = subprocess.run(["git", "ls-files", *paths], capture_output=True, text=True, check=True).stdout.split()
    counted = Counter[str]()
    for file in map(Path, files):
        if file.suffix in {".py", *COMMENTS} and "checkpoint/" not in str(file):
            counted[str(file.parent)] += code_lines(file)
    for package, lines in sorted(counted.items()):
        print(f"{lines:7,} {package}")
    print(f"{counted.total():7,}")


if __name__ == "__main__":
    main()
