"""Settings for `thumbtune doctor` to examine, and access to its findings by name."""

from __future__ import annotations

from pathlib import Path

from bot.cli.doctor.findings import Finding
from bot.config import Settings, load_settings
from tests.support.bot_process import write_config


def settings_in(folder: Path, **sections: dict[str, object]) -> Settings:
    """Return settings with a data folder in `folder` and the given sections of config.toml."""
    path = folder / "config.toml"
    write_config(path, {"storage": {"dir": str(folder / "data")}, **sections})
    return load_settings(path)


def finding_of(findings: list[Finding], name: str) -> Finding:
    """Return the finding with this name; raise StopIteration if there is none."""
    return next(each for each in findings if each.name == name)
