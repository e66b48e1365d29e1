"""The systemd unit and the container files use names that exist and timeouts that match the bot's."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from bot.cli.main import app
from bot.config import Settings, load_settings
from bot.shutdown import PROCESS_SECONDS, THREAD_SECONDS
from bot.web.server import WEBHOOK_PATH

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "thumbtune.service"
CONTAINER = ROOT / "deploy" / "Containerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"
EXAMPLE = ROOT / "deploy" / "environment.example"


def unit() -> dict[str, list[str]]:
    """Return the settings of the systemd unit, each with the list of its values."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the container file as (keyword, arguments), with continuation lines joined."""
    text = "\n".join(line for line in CONTAINER.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines) if word]


def makes_script(path: str) -> bool:
    """Return whether `path` is the package's console script in the virtual environment that make creates."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    return path.startswith("/opt/thumbtune/.venv/bin/") and Path(path).name in scripts


@pytest.mark.parametrize("proxy", ["nginx.conf", "Caddyfile"])
def test_a_proxy_passes_the_webhook_on_and_nothing_else(proxy: str) -> None:
    """The proxy configuration forwards only the webhook's path, in one place, to the bot's default port."""
    lines = (ROOT / "deploy" / proxy).read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    assert re.findall(r"(?:location =|handle) (/\S+) {", text) == [WEBHOOK_PATH]
    assert re.findall(r"(?:proxy_pass http://|reverse_proxy )127\.0\.0\.1:(\d+)", text) == [str(Settings().web.port)]


def test_the_bot_ends_within_ten_seconds() -> None:
    """The bot ends within ten seconds of SIGTERM, even if something hangs.

    Ten seconds is how long `docker stop` waits by default, and less than the systemd unit allows.
    """
    assert PROCESS_SECONDS + THREAD_SECONDS <= 10
    assert int(unit()["TimeoutStopSec"][0]) > PROCESS_SECONDS + THREAD_SECONDS


def test_the_unit_starts_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The systemd unit's command, option and settings exist, and the bot stops its child processes itself."""
    script, command, option, _ = unit()["ExecStart"][0].split()
    assert makes_script(script)
    known = get_command(app).commands[command]  # type: ignore[attr-defined]
    assert option in {name for each in known.params for name in each.opts}
    assert (unit()["Type"], unit()["KillMode"]) == (["exec"], ["mixed"])
    for value in unit()["Environment"]:
        monkeypatch.setenv(*value.split("=", 1))
    assert str(load_settings(ROOT / "config.toml").storage.dir) == f"/var/lib/{unit()['StateDirectory'][0]}"


def test_systemd_has_nothing_to_say_against_the_unit(tmp_path: Path) -> None:
    """systemd-analyze, if it is installed, reports no problem with the systemd unit."""
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        pytest.skip("systemd-analyze is not installed")
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (tmp_path / UNIT.name).write_text(text.replace("User=thumbtune", "User=root"), encoding="utf-8")
    verdict = subprocess.run([analyse, "verify", tmp_path / UNIT.name], capture_output=True, text=True, check=False)
    assert (verdict.returncode, verdict.stderr) == (0, "")


def test_the_container_is_made_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The make targets, settings, command and health check named in the container file exist.

    Nothing in the container runs as root.
    """
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    sets = set(re.findall(r"SET=([\w-]+)", CONTAINER.read_text(encoding="utf-8")))
    assert sets == {"install", "install-gpu"} <= targets
    found = dict(instructions())
    assert found["USER"] == "thumbtune"
    assert makes_script(found["ENTRYPOINT"].strip('[]"'))
    assert found["CMD"].strip('[]"') in get_command(app).commands  # type: ignore[attr-defined]
    environment = dict(each.split("=", 1) for each in found["ENV"].split())
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(ROOT / "config.toml")
    assert (str(settings.storage.dir), settings.web.host) == (found["VOLUME"], "0.0.0.0")
    assert f"127.0.0.1:{Settings().web.port}/health" in found["HEALTHCHECK"]
    assert str(Settings().web.port) == found["EXPOSE"]


def test_secrets_stay_out_of_the_image() -> None:
    """Neither the environment file that holds the token nor the data folder is copied into the container image."""
    (kept,) = set(re.findall(r"--env-file (\S+)", CONTAINER.read_text(encoding="utf-8")))
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {kept, str(Settings().storage.dir)} <= set(ignored)
    assert "deploy/.env" in ignored
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def composition() -> dict[str, Any]:
    """Return the contents of the compose file."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("service", "profile", "make"), [("thumbtune", "cpu", "install"), ("thumbtune-gpu", "gpu", "install-gpu")]
)
def test_the_bots_service_fits_its_image(service: str, profile: str, make: str) -> None:
    """Each service of the bot builds the container file, keeps its data, and leaves the bot time to end."""
    found, image = composition()["services"][service], dict(instructions())
    assert found["profiles"] == [profile]
    build = found["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve() == CONTAINER
    assert build["args"] == {"SET": make}
    assert found["volumes"] == [f"data:{image['VOLUME']}"]
    assert found["healthcheck"]["test"] == ["CMD", *ast.literal_eval(image["HEALTHCHECK"].partition("CMD ")[2])]
    assert int(found["stop_grace_period"].removesuffix("s")) > PROCESS_SECONDS + THREAD_SECONDS
    assert found["env_file"] == ".env"


def test_the_gpu_service_has_a_gpu_and_the_gpu_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service of the profile `gpu` reserves NVIDIA's devices and selects lmdeploy."""
    found = composition()["services"]["thumbtune-gpu"]
    (device,) = found["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    for name, value in found["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(.*)}", r"\1", value))
    settings = load_settings(ROOT / "config.toml").inference
    assert (settings.engine, settings.model) == ("lmdeploy", "/var/lib/thumbtune/InternVL2-2B")


def test_nothing_is_published_beyond_the_host() -> None:
    """Every published port is on the loopback address, and no service may gain privileges."""
    for name, service in composition()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name


def test_the_monitoring_reads_files_that_exist_and_asks_the_bot() -> None:
    """Prometheus and Grafana mount files of this folder, share the bot's password, and find the bot by its alias."""
    found = composition()
    for name in ("prometheus", "grafana"):
        service = found["services"][name]
        assert service["profiles"] == ["monitoring"]
        assert service["secrets"] == [{"source": "web_token", "mode": 0o444}]
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (COMPOSE.parent / source).is_file() if source.startswith(".") else source in found["volumes"]
        for config in service.get("configs", []):
            assert yaml.safe_load(found["configs"][config["source"]]["content"])["apiVersion"] == 1
    (scraped,) = yaml.safe_load((COMPOSE.parent / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert scraped["authorization"] == {"credentials_file": "/run/secrets/web_token"}
    (alias,) = found["services"]["thumbtune"]["networks"]["default"]["aliases"]
    assert scraped["static_configs"] == [{"targets": [f"{alias}:{Settings().web.port}"]}]


def test_the_example_of_the_environment_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the example are settings, but for the profiles, and the bot starts with them."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert values.pop("COMPOSE_PROFILES") == "cpu"
    for name, value in values.items():
        monkeypatch.setenv(name, value or "4242:filled-in")
    settings = load_settings(ROOT / "config.toml")
    assert settings.telegram.token.get_secret_value() == settings.web.token.get_secret_value() == "4242:filled-in"
    assert composition()["secrets"]["web_token"]["environment"] in values
