"""Installation picks the right build of torch, and installs no other package without a hash.

The package indexes are served from this machine, with the smallest possible wheels.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
PINS = dict(re.findall(r"^(torch\w*)==(\S+)$", (REQUIREMENTS / "torch.txt").read_text("utf-8"), re.MULTILINE))
CUDA = ("nvidia-cublas", "1.0")


def put_wheel(index: Path, name: str, version: str, *requires: str) -> None:
    """Write a wheel that contains only metadata, and an index page that lists the wheel."""
    folder = index / name
    folder.mkdir(parents=True)
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{stem}.dist-info/METADATA", metadata + "".join(f"Requires-Dist: {each}\n" for each in requires)
        )
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{stem}-py3-none-any.whl">{stem}</a>', encoding="utf-8")


@pytest.fixture
def indexes(tmp_path: Path) -> Iterator[str]:
    """Serve package indexes with CUDA builds at `/default` and CPU builds at `/cpu`, and yield the base URL."""
    for name, version in PINS.items():
        put_wheel(tmp_path / "cpu", name, f"{version}+cpu")
        put_wheel(tmp_path / "default", name, version, *([f"{CUDA[0]}=={CUDA[1]}"] if name == "torch" else []))
    put_wheel(tmp_path / "default", *CUDA)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def installed(folder: Path, index: str, default: str) -> tuple[set[str], str]:
    """Run install_torch.py in a new virtual environment.

    Returns:
        The packages that pip lists as installed, and the output of install_torch.py.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    settings = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": default,
        "PIP_NO_CACHE_DIR": "1",
        "no_proxy": "127.0.0.1",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | settings
    python = folder / "bin" / "python"
    script = [str(python), str(REQUIREMENTS / "install_torch.py"), index]
    said = subprocess.run(script, check=True, capture_output=True, text=True, env=environment).stdout
    listed = subprocess.run(
        [python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True, env=environment
    ).stdout
    return set(listed.split()), said


def test_the_cpu_build_is_installed_where_pip_offers_cuda(indexes: str, tmp_path: Path) -> None:
    """If PyTorch's CPU index answers, its builds of torch are installed, without any CUDA package."""
    found, said = installed(tmp_path / "venv", f"{indexes}/cpu", f"{indexes}/default")
    assert found == {f"{name}=={version}+cpu" for name, version in PINS.items()}
    assert "0.2 GB" in said


def test_pips_default_is_installed_where_the_cpu_index_is_out_of_reach(indexes: str, tmp_path: Path) -> None:
    """If the CPU index cannot be reached, pip's default, the CUDA build, is installed with its dependencies.

    The output announces the CUDA build before gigabytes are downloaded.
    """
    found, said = installed(tmp_path / "venv", "http://127.0.0.1:9/cpu", f"{indexes}/default")
    assert found == {*(f"{name}=={version}" for name, version in PINS.items()), "==".join(CUDA)}
    assert "CUDA build (2.8 GB" in said


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.name)
def test_every_package_is_pinned_by_hash(path: Path) -> None:
    """Every requirements file pins each package by version and hashes, except that torch.txt has no hashes."""
    text = "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
    for block in re.split(r"(?<!\\)\n", text):
        assert re.match(r"[a-z0-9-]+==\S+", block)
        assert (path.name == "torch.txt") != bool(re.search(r"--hash=sha256:[0-9a-f]{64}$", block)), block


def test_an_installation_names_the_next_command(tmp_path: Path) -> None:
    """`make install` names the next command even if `make demo` has installed everything already."""
    for name in ("Makefile", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", "build.stamp", "chat.stamp", "training.stamp"):
        (tmp_path / ".venv" / name).touch()
    said = subprocess.run(
        ["make", "--no-print-directory", "install"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert said == "Everything is installed. Next: .venv/bin/thumbtune init\n"
