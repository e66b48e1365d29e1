"""Generate the requirement lists in this folder from their short sources, or check that they match.

    python requirements/lock.py                        apply changes to the sources, keep all other versions
    python requirements/lock.py --upgrade              take the newest versions that the sources allow
    python requirements/lock.py --upgrade-package NAME upgrade one package only
    python requirements/lock.py --check                write nothing; exit code 1 and a diff if a list is outdated

Each requirement has the SHA-256 hashes of the files that pip may install for it: the wheels for x86-64 and ARM Linux,
or the source archive if there is no wheel. Only torch and torchvision for the CPU (torch.txt) have no hashes, because
they come from another index.

Incorrect requirements of packages are overridden under [tool.uv] in pyproject.toml. The resolver is uv, which reads
only the packages' metadata; this takes seconds and a few megabytes. pip's `--dry-run` downloads every wheel whose
metadata the index does not serve separately, including gigabytes of CUDA libraries.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12")
X86, ARM = "x86_64-manylinux_2_28", "aarch64-manylinux_2_28"
PYPROJECT = "../pyproject.toml"
# torch and torchvision are in torch.txt, and their CPU builds do not need CUDA.
CUDA = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")


@dataclass(frozen=True, slots=True)
class List:
    """A requirement list, with its heading, its sources, and the lists that are installed before it."""

    name: str
    about: str
    sources: tuple[str, ...]
    after: tuple[List, ...] = ()
    without: re.Pattern[str] = re.compile("")
    options: tuple[str, ...] = ()
    platforms: tuple[str, ...] = (X86, ARM)

    @property
    def path(self) -> Path:
        """The path of the list's file."""
        return HERE / self.name

    def all_sources(self) -> tuple[str, ...]:
        """Return the sources of the earlier lists, followed by those of this list."""
        return tuple(dict.fromkeys((*(each for before in self.after for each in before.all_sources()), *self.sources)))

    def installed_before(self) -> set[str]:
        """Return the names of the packages in the earlier lists."""
        return {name for other in self.after for name in (*other.pins(), *other.installed_before())}

    def text(self) -> str:
        """Return the current text of the list, or an empty string if the file does not exist."""
        return self.path.read_text("utf-8") if self.path.exists() else ""

    def pins(self) -> dict[str, str]:
        """Return the currently pinned versions, keyed by package name."""
        return pins_of(self.text())


VIRTUALENV = List("virtualenv.txt", "Packages that create .venv if python3 has no venv module.", ("virtualenv.in",))
BUILD = List("build.txt", "Packages that build this package and those without wheels.", ("build.in",))
CHAT = List(
    "cpu-chat.txt",
    "Packages for chatting: the bot, the ledger and the CPU engine, without torch and torchvision (torch.txt).",
    (PYPROJECT, "chat.in", "torch.txt"),
    after=(BUILD,),
    without=CUDA,
)
TRAINING = List("cpu-training.txt", "Additional packages for retraining.", ("training.in",), (CHAT,), CUDA)
DEV = List(
    "dev.txt",
    "Additional packages for the tests and checks.",
    ("lmdeploy.in", "dev.in"),
    (CHAT, TRAINING),
    CUDA,
    # The Python part of lmdeploy runs with the CPU build of torch, which is newer than lmdeploy permits.
    ("--overrides", "torch.txt", "--excludes", "lmdeploy-without.in"),
    (X86,),
)
BROWSER = List(
    "browser.txt", "Packages that control Chromium, for the tests of web pages and `make pictures`.", ("browser.in",)
)
SBOM = List("sbom.txt", "Packages that write the bill of materials, for `make sbom`.", ("sbom.in",))
GPU = List(
    "gpu.txt",
    "All packages for a GPU: bot, lmdeploy and trainer.",
    (PYPROJECT, "chat.in", "training.in", "lmdeploy.in", "gpu.in"),
    after=(BUILD,),
    platforms=(X86,),  # lmdeploy has wheels for no other platform
)
DEEPSPEED = List(
    "deepspeed.txt", "Additional packages for training.deepspeed.", ("deepspeed.in",), (GPU,), platforms=(X86,)
)
RAY = List(
    "ray.txt", "Additional packages for Ray, in an environment on top of .venv.", ("ray.in",), (CHAT, TRAINING), CUDA
)
LISTS = (VIRTUALENV, BUILD, CHAT, TRAINING, DEV, BROWSER, SBOM, GPU, DEEPSPEED, RAY)


def pins_of(text: str) -> dict[str, str]:
    """Return the versions in the lines `name==version`, keyed by package name."""
    return dict(re.findall(r"^([a-z0-9][^=\s]*)==([^\s\\]+)", text, re.MULTILINE))


def hashes_of(text: str) -> dict[str, list[str]]:
    """Return the hashes of each requirement, keyed by `name==version`."""
    blocks = re.findall(r"^([a-z0-9]\S+)((?: \\\n\s+--hash=sha256:\w+)*)$", text, re.MULTILINE)
    return {pin: re.findall(r"sha256:(\w+)", hashes) for pin, hashes in blocks}


def compiled(output: Path, python: str, platform: str, *arguments: str) -> str:
    """Run `uv pip compile` with `output` as the output file and return its text; exit if resolution fails."""
    line = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
        # Given explicitly, because uv would otherwise search the machine for an interpreter of that version.
        *("--python", sys.executable, "--python-version", python, "--python-platform", platform),
        *("--output-file", str(output), *arguments),
    ]
    result = subprocess.run(line, cwd=HERE, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(arguments)} does not resolve for Python {python}:\n{result.stderr}")
    return output.read_text("utf-8")


def resolve(each: List, python: str, preferred: dict[str, str], *options: str) -> dict[str, str]:
    """Return the pins that a list adds to the earlier lists, with the `preferred` versions where possible."""
    with tempfile.TemporaryDirectory() as folder:
        # uv keeps the versions that it finds in its output file.
        output = Path(folder) / "list.txt"
        output.write_text("".join(f"{name}=={version}\n" for name, version in preferred.items()), "utf-8")
        resolved = pins_of(compiled(output, python, X86, *each.options, *options, *each.all_sources()))
    before = each.installed_before()
    return {k: v for k, v in resolved.items() if k not in before and not each.without.fullmatch(k)}


def look_up_hashes(pins: dict[str, str], platforms: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the hashes of each package's wheels for `PYTHONS` and the platforms, or of its source archive.

    The keys are `name==version`. The source archive is used if there are no wheels.
    """
    found: dict[str, set[str]] = {}
    sources: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "pins.txt"
        pinned.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), "utf-8")
        for python in PYTHONS:
            for platform in platforms:
                output = Path(folder) / "pylock.toml"
                text = compiled(output, python, platform, "--no-deps", "--format", "pylock.toml", str(pinned))
                for package in tomllib.loads(text).get("packages", []):
                    pin = f"{package['name']}=={package['version']}"
                    wheels = {wheel["hashes"]["sha256"] for wheel in package.get("wheels", [])}
                    found.setdefault(pin, set()).update(wheels)
                    if "sdist" in package:
                        sources.setdefault(pin, set()).add(package["sdist"]["hashes"]["sha256"])
    return {pin: sorted(wheels or sources[pin]) for pin, wheels in found.items()}


def listing(each: List, pins: dict[str, str], hashes: dict[str, list[str]]) -> str:
    """Return the text of the list, sorted by name."""
    head = f"# {each.about}\n# Generated by lock.py from {', '.join(each.sources)}; install with --no-deps.\n"
    lines = (
        " \\\n    --hash=sha256:".join([f"{name}=={version}", *hashes.get(f"{name}=={version}", ["missing"])])
        for name, version in sorted(pins.items())
    )
    return head + "".join(f"{line}\n" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the lists or, with --check, compare them, and return the exit code."""
    check = arguments == ["--check"]
    wrong = 0
    for each in LISTS:
        # The list for tests is also installed into a .venv for a GPU, so both lists must pin the same versions.
        lists = (GPU, CHAT, TRAINING, DEV, each)
        preferred = {name: version for other in lists for name, version in other.pins().items()}
        for python in PYTHONS if check else PYTHONS[:1]:
            pins = resolve(each, python, preferred, *([] if check else arguments))
            present = each.text()
            text = listing(each, pins, hashes_of(present) if check else look_up_hashes(pins, each.platforms))
            if not check:
                each.path.write_text(text, "utf-8")
            elif text != present:
                wrong = 1
                names = (f"requirements/{each.name}", f"resolved from its sources for Python {python}")
                sys.stdout.writelines(unified_diff(present.splitlines(True), text.splitlines(True), *names))
    if wrong:
        sys.stdout.write("The lists do not match their sources: run `make lock`.\n")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
