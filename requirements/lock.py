"""Makes the lists of this folder from their short sources, or checks that they still follow from them.

    python requirements/lock.py                        take in what changed in the sources, keep every other version
    python requirements/lock.py --upgrade              the newest version of everything that the sources leave open
    python requirements/lock.py --upgrade-package NAME … of one
    python requirements/lock.py --check                write nothing; exit code 1 names what does not fit

What packages wrongly ask for is mended under [tool.uv] of pyproject.toml. The resolver is uv, which reads the packages'
metadata only: seconds and a few megabytes. pip's `--dry-run` downloads every wheel whose metadata the index does not
serve apart, CUDA's gigabytes among them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12")
PLATFORM = "x86_64-manylinux_2_28"
PYPROJECT = "../pyproject.toml"
# torch stands in torch.txt, and its CPU build needs nothing of CUDA.
CUDA = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


@dataclass(frozen=True, slots=True)
class List:
    """One list: what its first lines say, its sources, and the lists that are installed before it."""

    name: str
    about: str
    sources: tuple[str, ...]
    after: tuple[List, ...] = ()
    without: re.Pattern[str] = re.compile("")
    options: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return HERE / self.name

    def all_sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*(each for before in self.after for each in before.all_sources()), *self.sources)))

    def pins(self) -> dict[str, str]:
        return pins_of(self.path.read_text("utf-8")) if self.path.exists() else {}


CHAT = List(
    "cpu-chat.txt",
    "What chatting needs: the bot, the ledger and the CPU engine, torch apart (torch.txt).",
    (PYPROJECT, "chat.in", "torch.txt", "cpu.in"),
    without=CUDA,
)
TRAINING = List("cpu-training.txt", "What retraining adds.", ("training.in",), (CHAT,), CUDA)
DEV = List(
    "dev.txt",
    "What the tests and checks add.",
    ("lmdeploy.in", "dev.in"),
    (CHAT, TRAINING),
    CUDA,
    # lmdeploy's Python part beside the CPU's torch, which is newer than it asks for.
    ("--overrides", "torch.txt", "--overrides", "cpu.in", "--excludes", "lmdeploy-without.txt"),
)
GPU = List(
    "gpu.txt",
    "Everything for a GPU: bot, lmdeploy, trainer.",
    (PYPROJECT, "chat.in", "training.in", "lmdeploy.in", "gpu.in"),
)
DEEPSPEED = List("deepspeed.txt", "What training.deepspeed adds.", ("deepspeed.in",), (GPU,))
LISTS = (CHAT, TRAINING, DEV, GPU, DEEPSPEED)


def pins_of(text: str) -> dict[str, str]:
    """Name → version of the lines `name==version`."""
    return dict(line.split("==", 1) for line in text.splitlines() if re.match(r"[a-z0-9]", line))


def resolve(each: List, python: str, preferred: dict[str, str], *options: str) -> dict[str, str]:
    """All that the list's sources need, at the `preferred` versions where they fit. Ends the program where none do."""
    with tempfile.TemporaryDirectory() as folder:
        # uv keeps the versions that it finds in its output file.
        output = Path(folder) / "list.txt"
        output.write_text("".join(f"{name}=={version}\n" for name, version in preferred.items()), "utf-8")
        line = [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
            # Named, or uv searches the machine for an interpreter of that version.
            *("--python", sys.executable, "--python-version", python, "--python-platform", PLATFORM),
            *("--output-file", str(output), *each.options, *options, *each.all_sources()),
        ]
        result = subprocess.run(line, cwd=HERE, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(f"requirements/{each.name} does not resolve for Python {python}:\n{result.stderr}")
        return pins_of(output.read_text("utf-8"))


def listing(each: List, resolved: dict[str, str]) -> str:
    """The text of the list: what is not in a list before it, sorted."""
    before = {name for other in each.after for name in other.pins()}
    pins = {k: v for k, v in resolved.items() if k not in before and not each.without.fullmatch(k)}
    head = f"# {each.about}\n# Made by lock.py from {', '.join(each.sources)}; installed with --no-deps.\n"
    return head + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


def main(arguments: list[str]) -> int:
    """Write the lists, or with --check compare them. Returns the exit code."""
    check = arguments == ["--check"]
    wrong = 0
    for each in LISTS:
        # A .venv for a GPU gets the tests' list on top: what both name is the same.
        lists = (GPU, CHAT, TRAINING, DEV, each)
        preferred = {name: version for other in lists for name, version in other.pins().items()}
        for python in PYTHONS if check else PYTHONS[:1]:
            text = listing(each, resolve(each, python, preferred, *([] if check else arguments)))
            if not check:
                each.path.write_text(text, "utf-8")
            elif text != (present := each.path.read_text("utf-8")):
                wrong = 1
                names = (f"requirements/{each.name}", f"what its sources need on Python {python}")
                sys.stdout.writelines(unified_diff(present.splitlines(True), text.splitlines(True), *names))
    if wrong:
        sys.stdout.write("The lists do not follow from their sources: run `make lock`.\n")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
