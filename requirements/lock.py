"""Make the lists of this folder from their short sources, or check that they match them.

    python requirements/lock.py                        apply changes of the sources, keep every other version
    python requirements/lock.py --upgrade              the newest version of everything that the sources leave open
    python requirements/lock.py --upgrade-package NAME … of one
    python requirements/lock.py --check                write nothing; exit code 1 and a diff if a list is outdated

Every line carries the SHA-256 of the files that pip may install for it: the wheels for x86-64 and ARM Linux, or the
source archive where there is no wheel. Only torch and torchvision of the CPU lists have none (torch.txt): they come
from another index.

Wrong requirements of packages are corrected under [tool.uv] in pyproject.toml. The resolver is uv, which reads the
packages' metadata only: seconds and a few megabytes. pip's `--dry-run` downloads every wheel whose metadata the index
does not serve apart, CUDA's gigabytes among them.
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
# torch and torchvision are in torch.txt, and their CPU builds need nothing of CUDA.
CUDA = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")


@dataclass(frozen=True, slots=True)
class List:
    """One list: its heading, its sources, and the lists that are installed before it."""

    name: str
    about: str
    sources: tuple[str, ...]
    after: tuple[List, ...] = ()
    without: re.Pattern[str] = re.compile("")
    options: tuple[str, ...] = ()
    platforms: tuple[str, ...] = (X86, ARM)

    @property
    def path(self) -> Path:
        """The list's file."""
        return HERE / self.name

    def all_sources(self) -> tuple[str, ...]:
        """Return its sources after those of the lists before it."""
        return tuple(dict.fromkeys((*(each for before in self.after for each in before.all_sources()), *self.sources)))

    def installed_before(self) -> set[str]:
        """Return the names in the lists before it."""
        return {name for other in self.after for name in (*other.pins(), *other.installed_before())}

    def text(self) -> str:
        """Return the list's present text, empty without one."""
        return self.path.read_text("utf-8") if self.path.exists() else ""

    def pins(self) -> dict[str, str]:
        """Return the present versions by name."""
        return pins_of(self.text())


VIRTUALENV = List("virtualenv.txt", "What makes .venv where python3 has no venv module.", ("virtualenv.in",))
BUILD = List("build.txt", "What builds this package and those that have no wheel.", ("build.in",))
CHAT = List(
    "cpu-chat.txt",
    "What chatting needs: the bot, the ledger and the CPU engine, without torch and torchvision (torch.txt).",
    (PYPROJECT, "chat.in", "torch.txt"),
    after=(BUILD,),
    without=CUDA,
)
TRAINING = List("cpu-training.txt", "What retraining adds.", ("training.in",), (CHAT,), CUDA)
DEV = List(
    "dev.txt",
    "What the tests and checks add.",
    ("lmdeploy.in", "dev.in"),
    (CHAT, TRAINING),
    CUDA,
    # lmdeploy's Python part with the CPU's torch, which is newer than it requires.
    ("--overrides", "torch.txt", "--excludes", "lmdeploy-without.in"),
    (X86,),
)
BROWSER = List("browser.txt", "What drives a Chromium, for its tests and `make pictures`.", ("browser.in",))
SBOM = List("sbom.txt", "What writes the bill of materials, for `make sbom`.", ("sbom.in",))
GPU = List(
    "gpu.txt",
    "Everything for a GPU: bot, lmdeploy, trainer.",
    (PYPROJECT, "chat.in", "training.in", "lmdeploy.in", "gpu.in"),
    after=(BUILD,),
    platforms=(X86,),  # lmdeploy has wheels for no other
)
DEEPSPEED = List("deepspeed.txt", "What training.deepspeed adds.", ("deepspeed.in",), (GPU,), platforms=(X86,))
RAY = List("ray.txt", "What Ray adds, in an environment laid over .venv.", ("ray.in",), (CHAT, TRAINING), CUDA)
LISTS = (VIRTUALENV, BUILD, CHAT, TRAINING, DEV, BROWSER, SBOM, GPU, DEEPSPEED, RAY)


def pins_of(text: str) -> dict[str, str]:
    """Return name → version of the lines `name==version`."""
    return dict(re.findall(r"^([a-z0-9][^=\s]*)==([^\s\\]+)", text, re.MULTILINE))


def hashes_of(text: str) -> dict[str, list[str]]:
    """Return `name==version` → its hashes."""
    blocks = re.findall(r"^([a-z0-9]\S+)((?: \\\n\s+--hash=sha256:\w+)*)$", text, re.MULTILINE)
    return {pin: re.findall(r"sha256:(\w+)", hashes) for pin, hashes in blocks}


def compiled(output: Path, python: str, platform: str, *arguments: str) -> str:
    """Run `uv pip compile` into `output` and return what it wrote. Exits if nothing resolves."""
    line = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
        # Named, or uv searches the machine for an interpreter of that version.
        *("--python", sys.executable, "--python-version", python, "--python-platform", platform),
        *("--output-file", str(output), *arguments),
    ]
    result = subprocess.run(line, cwd=HERE, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(arguments)} does not resolve for Python {python}:\n{result.stderr}")
    return output.read_text("utf-8")


def resolve(each: List, python: str, preferred: dict[str, str], *options: str) -> dict[str, str]:
    """Return the pins that the list adds to those before it, at the `preferred` versions where they fit."""
    with tempfile.TemporaryDirectory() as folder:
        # uv keeps the versions that it finds in its output file.
        output = Path(folder) / "list.txt"
        output.write_text("".join(f"{name}=={version}\n" for name, version in preferred.items()), "utf-8")
        resolved = pins_of(compiled(output, python, X86, *each.options, *options, *each.all_sources()))
    before = each.installed_before()
    return {k: v for k, v in resolved.items() if k not in before and not each.without.fullmatch(k)}


def look_up_hashes(pins: dict[str, str], platforms: tuple[str, ...]) -> dict[str, list[str]]:
    """Return `name==version` → the hashes of its wheels for `PYTHONS` on the platforms, else of its source archive."""
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
    head = f"# {each.about}\n# Made by lock.py from {', '.join(each.sources)}; installed with --no-deps.\n"
    lines = (
        " \\\n    --hash=sha256:".join([f"{name}=={version}", *hashes.get(f"{name}=={version}", ["missing"])])
        for name, version in sorted(pins.items())
    )
    return head + "".join(f"{line}\n" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the lists, or with --check compare them. Returns the exit code."""
    check = arguments == ["--check"]
    wrong = 0
    for each in LISTS:
        # The tests' list is also installed into a .venv for a GPU, so both must name the same versions.
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
                names = (f"requirements/{each.name}", f"what its sources need on Python {python}")
                sys.stdout.writelines(unified_diff(present.splitlines(True), text.splitlines(True), *names))
    if wrong:
        sys.stdout.write("The lists do not match their sources: run `make lock`.\n")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
