"""What `[inference]` of config.toml holds, checked once and then only read.

Knows names, defaults and limits. What they mean in work is with their users: engines.py (how a kind is
started), supervisor.py (restarts), bluegreen.py and rolling.py (swap), warming.py, deployment.py (queue). Times are in
seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from inference.engines.lmdeploy.lmdeploy_settings import LmdeploySettings
from inference.internvl2.tiny import CHECKPOINT
from inference.paths import LocalText

TINY: Final = "tiny"
PLACEHOLDERS: Final = ("endpoint", "host", "port", "model", "model_dir")
"""What `swap_command` may have in braces."""


class InferenceSettings(BaseModel):
    """The engine and the patience with it. Every field is a key of `[inference]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["auto", "cpu", "lmdeploy", "external"] = "auto"
    """What answers: `cpu` runs everywhere, `external` is a server of yours, `auto` chooses."""

    model: LocalText = TINY
    """The first model, before anything was learned: a checkpoint directory, or `tiny`, the one shipped with us."""

    endpoints: tuple[str, ...] = ()
    """For `external`: where your servers listen, each `http://host:port`. A chat stays with one of them."""

    endpoint_model: str = ""
    """For `external`: the model's name there. Empty: the first one that the server lists."""

    api_key: SecretStr = SecretStr("")
    """For `external`: what the server wants as a bearer token, if anything."""

    gpus: tuple[int, ...] = ()
    """For the kinds that we start: one engine for each of these GPUs, by number. Empty: one engine, which sees what
    the bot sees."""

    tiles: int | None = Field(default=None, ge=1, le=40)
    """At most so many tiles a picture. Fewer are faster and see less. Unset: as the checkpoint says."""

    python: LocalText = ""
    """The interpreter that runs the engine. Empty: the one that runs the bot."""

    threads: int | None = Field(default=None, ge=1)
    """For `cpu`: threads of the engine. Unset: as many as there are cores."""

    cache_megabytes: int | None = Field(default=None, ge=0)
    """For `cpu`: memory for what recent chats have already been computed to. Unset: the engine's own default."""

    concurrency: int | None = Field(default=None, ge=1)
    """So many answers at once on each engine; the others queue. Unset: what suits the kind of engine."""

    start_timeout: float = Field(default=300, gt=0)
    """An engine that has not answered a picture so long after its start has failed to start."""

    token_timeout: float = Field(default=60, gt=0)
    """No token for so long, the first one included, is a hang: the engine is restarted. A large model on a CPU
    needs minutes for its first token; give it those."""

    wait_timeout: float = Field(default=120, gt=0)
    """A question waits so long for an engine that is starting or restarting; then the person is told."""

    swap: Literal["blue-green", "cold"] = "blue-green"
    """How a new model takes over: blue-green starts it beside the old one; cold, for a card too small for two, ends
    the old one first, and whoever asks meanwhile waits and is told."""

    swap_command: tuple[LocalText, ...] = ()
    """For `external`: a program and its arguments that make the server at one endpoint serve another model, run for
    one after the other: ["./swap.sh", "{host}", "{port}", "{model_dir}"]. {endpoint} and {model} are filled in too.
    It ends, with 0, when the old server is gone. It gets the bot's environment without THUMBTUNE_… and HF_TOKEN.
    Empty: models are not swapped."""

    swap_command_timeout: float = Field(default=600, gt=0)
    """After so long it has failed."""

    drain_timeout: float = Field(default=120, ge=0)
    """After a swap or a /drain an engine may finish its answers for so long; what is left is begun anew elsewhere."""

    warm_chats: int = Field(default=64, ge=0)
    """When a model changes or a node comes or goes, the newest prompts of so many recently active chats are computed
    where the chat is going, before it goes. 0: none."""

    warm_age: float = Field(default=900, ge=0)
    """Recently active is who was answered within so long."""

    warm_timeout: float = Field(default=20, gt=0)
    """Warming takes at most so long; chats that are left go cold."""

    warm_at_once: int = Field(default=4, ge=1)
    """So many prompts at once warm an engine that nobody is sent to yet; one that is in use gets one at a time."""

    stop_timeout: float = Field(default=2, ge=0)
    """An engine that was asked to end, by a swap or a pause, is killed after so long. When the bot itself ends, it is
    killed after 2.5 s at the latest, so that all is closed within the 10 s that `docker stop` gives."""

    answer_attempts: int = Field(default=4, ge=1)
    """One question is put to so many engines that crash over it; then it is given up."""

    restart_limit: int = Field(default=5, ge=1)
    """After so many failures in a row people are told at once that no engine answers; trying goes on."""

    restart_delay: float = Field(default=1, ge=0)
    """The first restart is immediate; before the next ones it waits so long, doubled each time …"""

    restart_delay_max: float = Field(default=60, ge=0)
    """… up to so long."""

    log_megabytes: float = Field(default=5, gt=0)
    """The log file of an engine, or of swap_command, is rotated at this size …"""

    log_files: int = Field(default=3, ge=1)
    """… and so many of the old ones are kept."""

    lmdeploy: LmdeploySettings = LmdeploySettings()
    """For `lmdeploy`: the sizes of TurboMind."""

    @property
    def side_by_side(self) -> int:
        """How many engines one card must have room for."""
        return 2 if self.swap == "blue-green" else 1

    def checkpoint(self) -> Path:
        """The directory that `model` means."""
        return CHECKPOINT if self.model == TINY else Path(self.model)

    @field_validator("endpoints")
    @classmethod
    def _are_addresses(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        for endpoint in endpoints:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{endpoint!r} is not an address; write http://host:port")
        # One spelling: chats are placed by it.
        return tuple(endpoint.rstrip("/").removesuffix("/v1") for endpoint in endpoints)

    @field_validator("swap_command")
    @classmethod
    def _has_known_places(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        for name in re.findall(r"\{(\w+)\}", " ".join(command)):
            if name not in PLACEHOLDERS:
                raise ValueError(f"{{{name}}} is not known; there are {', '.join(PLACEHOLDERS)}")
        return command

    @field_validator("endpoints", "gpus")
    @classmethod
    def _are_different(cls, places: tuple[str | int, ...]) -> tuple[str | int, ...]:
        if len(set(places)) < len(places):
            raise ValueError("one of them is listed twice")
        return places

    @model_validator(mode="after")
    def _external_has_an_endpoint(self) -> Self:
        if self.engine == "external" and not self.endpoints:
            raise ValueError('engine = "external" needs endpoints = ["http://host:port"]')
        if self.endpoints and self.engine not in ("external", "auto"):
            raise ValueError(f'endpoints are for engine = "external"; engine is "{self.engine}"')
        if self.gpus and self.lmdeploy.tensor_parallel > 1:
            raise ValueError("gpus starts one engine for each card; lmdeploy.tensor_parallel puts one on several")
        if self.gpus and self.endpoints:
            raise ValueError("gpus are for engines that the bot starts, endpoints for those that you start")
        if self.swap_command and not self.endpoints:
            raise ValueError("swap_command is for endpoints; an engine that the bot starts it swaps by itself")
        return self
