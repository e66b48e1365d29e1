"""Settings in the `[inference]` section of config.toml. All times are in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from inference.internvl2.tiny import CHECKPOINT

TINY: Final = "tiny"
GONE: Final = {
    "endpoints": 'set inference.endpoint to your server; for several machines, set inference.engine = "ray"',
    "swap_command": 'the bot swaps models itself; for engines on other machines, set inference.engine = "ray"',
    "swap_command_timeout": "it was removed together with inference.swap_command",
}
"""Settings of earlier versions, and what replaced them."""


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error}: write the full path") from error


LocalPath = Annotated[Path, AfterValidator(_expanded)]
"""A local path; `~` is the user's home directory."""

LocalText = Annotated[str, AfterValidator(lambda text: str(_expanded(Path(text))) if text.startswith("~") else text)]
"""A string that may be a local path; a leading `~` is the user's home directory."""


def _address(url: str) -> str:
    """Return the normalized form of a server's address.

    Raises:
        ValueError: `url` is not an HTTP address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an address; write http://host:port")
    return url.rstrip("/").removesuffix("/v1")


class Section(BaseModel):
    """Base class for the sections of config.toml; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LmdeploySettings(Section):
    """Settings in `[inference.lmdeploy]`: the cache, context and batch sizes of lmdeploy's TurboMind engine."""

    blocks: int | None = Field(default=None, ge=16)
    """KV cache blocks of 64 tokens, 6.3 MB each for InternVL2-2B, or 3.1 MB with kv_bits = 8. A picture of 13 tiles
    takes 52 blocks. Unset: as many as fit on the card, for two engines side by side if swap = "blue-green" (about 4700
    blocks on 80 GB, 650 on 24 GB; a 12 GB card needs swap = "cold")."""

    session_length: int = Field(default=16384, ge=512)
    """The context window in tokens, including the answer; older turns that do not fit are left out. It is smaller if
    there are too few blocks."""

    batch: int = Field(default=64, ge=1)
    """The number of answers generated at a time; further questions wait inside the engine."""

    kv_bits: Literal[4, 8, 16] = 16
    """Bits per value in the key-value cache. 8 halves the cache's size and the time to read it; 4 reduces quality."""

    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Data type of the computations. `auto`: the checkpoint's; cards before Ampere (T4, V100) need float16."""

    weights: Literal["auto", "hf", "awq", "gptq"] = "auto"
    """Format of the weights: `awq` for a 4-bit checkpoint made by lmdeploy. `auto` reads it from the checkpoint's
    config.json."""

    tensor_parallel: int = Field(default=1, ge=1)
    """The number of GPUs that share one model. InternVL2-2B fits on one: list more GPUs in inference.gpus instead."""

    prefill_tokens: int | None = Field(default=None, ge=512)
    """Prompt tokens processed in one iteration: more are faster and need more memory. Unset: 16384, or 8192 on a card
    below 40 GB."""

    tile_threads: int | None = Field(default=None, ge=1)
    """Threads that decode pictures. Unset: one for each core, at most 12."""

    tile_cache_megabytes: int = Field(default=2048, ge=0)
    """Main memory for the tiles of recent pictures (16 MB for a picture of 13 tiles)."""


class RayReplicas(Section):
    """Settings in `[inference.ray.replicas]`: how many engines the cluster runs for each model."""

    min: int = Field(default=1, ge=1)
    """The minimum number of engines of a model."""

    max: int = Field(default=1, ge=1)
    """The maximum number of engines of a model. Within these limits, Ray Serve adds and removes engines so that each is
    about half busy (`concurrency`)."""

    grow_after: float = Field(default=30, ge=0)
    """Seconds of high load before engines are added."""

    shrink_after: float = Field(default=600, ge=0)
    """Seconds of low load before engines are removed."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class RaySettings(Section):
    """Settings in `[inference.ray]`: the cluster, and the engines on its nodes."""

    address: str = "auto"
    """The address of the cluster: `auto` for the one on this machine, `host:6379`, or `ray://host:10001`."""

    url: str = "http://127.0.0.1:8000"
    """The address of Ray Serve. If Serve is not running yet, the bot starts it on this port of the head node."""

    name: str = Field(default="thumbtune", pattern="^[a-z0-9-]+$")
    """The prefix of the names of the bot's applications. Bots that share a cluster need different prefixes."""

    models: LocalText = ""
    """A folder that exists at this path on every node, or an fsspec URL such as `s3://bucket/models`, from which the
    nodes copy models. Empty: the bot's own folders exist at the same paths on every node."""

    python: str = ""
    """The Python interpreter of the engines on the nodes. Empty: Ray's own."""

    num_cpus: float = Field(default=1, ge=0)
    """CPU cores that Ray reserves for each engine."""

    num_gpus: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for each engine: 0 for the CPU engine, otherwise lmdeploy. 0.5 lets the engines of two
    models share a card during a swap."""

    replicas: RayReplicas = RayReplicas()
    """The number of engines."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        return _address(url)


class InferenceSettings(Section):
    """Settings in `[inference]`: the engine, its limits and its timeouts."""

    engine: Literal["auto", "cpu", "lmdeploy", "external", "ray"] = "auto"
    """The engine: `cpu` runs everywhere, `lmdeploy` on a GPU, `external` is your own server, `ray` runs either of the
    first two on a Ray cluster, `auto` chooses among the first three."""

    model: LocalText = TINY
    """The base model: a checkpoint directory, or `tiny`, the one shipped with thumbtune."""

    endpoint: str = ""
    """For `external`: the address of your server, `http://host:port`."""

    endpoint_model: str = ""
    """For `external`: the model's name on the server. Empty: the first model that the server lists."""

    api_key: SecretStr = SecretStr("")
    """For `external`: the server's bearer token, if it needs one."""

    gpus: tuple[int, ...] = ()
    """For `cpu` and `lmdeploy`: GPU numbers, one engine for each. Empty: one engine with the bot's own
    CUDA_VISIBLE_DEVICES."""

    tiles: int | None = Field(default=None, ge=1, le=40)
    """The maximum number of tiles per picture. Fewer are faster but show less detail. Unset: the checkpoint's limit."""

    python: LocalText = ""
    """The Python interpreter of the engine; for `ray`, one with Ray (`make install-ray`: .venv/ray/bin/python). Empty:
    the bot's own."""

    threads: int | None = Field(default=None, ge=1)
    """For `cpu`: the number of compute threads. Unset: one for each core."""

    cache_megabytes: int | None = Field(default=None, ge=0)
    """For `cpu`: the memory for the caches in MiB. Unset: a quarter of the machine's memory, at most 4096."""

    concurrency: int | None = Field(default=None, ge=1)
    """The number of answers generated at a time on each engine; further questions queue. Unset: a default for the kind
    of engine."""

    start_timeout: float = Field(default=300, gt=0)
    """If an engine has not answered a question about a picture this long after its start, it counts as failed."""

    token_timeout: float = Field(default=60, gt=0)
    """An engine that sends no first or further token for this long counts as hung and is restarted. A large model on a
    CPU needs minutes for its first token."""

    wait_timeout: float = Field(default=120, gt=0)
    """How long a question waits for an engine that is starting or restarting before it fails."""

    swap: Literal["blue-green", "cold"] = "blue-green"
    """How a new model replaces the old one: `blue-green` starts it alongside the old one; `cold`, for a card too small
    for two, stops the old one first, and questions wait in the meantime."""

    drain_timeout: float = Field(default=120, ge=0)
    """How long an engine may take to finish its answers after a swap; the rest are restarted on another engine."""

    warm_chats: int = Field(default=64, ge=0)
    """The maximum number of active chats whose latest prompts an engine processes before the chats move to it. This
    takes at most 20 s; all other chats move without this preparation. 0: none."""

    warm_age: float = Field(default=900, ge=0)
    """A chat counts as active for this long after its last answer."""

    stop_timeout: float = Field(default=2, ge=0)
    """An engine stopped by a swap or a pause is killed after this long. When the bot itself stops, engines are killed
    after at most 2.5 s, so that everything is closed within the 10 s that `docker stop` allows."""

    answer_attempts: int = Field(default=4, ge=1)
    """A question is abandoned after this many engines have crashed while answering it."""

    restart_limit: int = Field(default=5, ge=1)
    """After this many failures in a row, questions fail immediately instead of waiting; restarts continue."""

    restart_delay: float = Field(default=1, ge=0)
    """The delay before the second restart, doubled for each further one up to a minute. The first restart is
    immediate."""

    log_megabytes: float = Field(default=5, gt=0)
    """The size at which the log file of an engine is rotated; three old files are kept."""

    lmdeploy: LmdeploySettings = LmdeploySettings()
    """Settings of `lmdeploy`."""

    ray: RaySettings = RaySettings()
    """Settings of `ray`."""

    @property
    def side_by_side(self) -> int:
        """The number of engines that a single GPU must have room for."""
        return 2 if self.swap == "blue-green" else 1

    def checkpoint(self) -> Path:
        """Return the checkpoint directory of the model chosen by the setting `model`."""
        return CHECKPOINT if self.model == TINY else Path(self.model)

    @model_validator(mode="before")
    @classmethod
    def _name_replacements(cls, given: Any) -> Any:
        for name in GONE.keys() & given.keys() if isinstance(given, dict) else ():
            raise ValueError(f"{name} is gone: {GONE[name]}")
        return given

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        return endpoint and _address(endpoint)

    @field_validator("gpus")
    @classmethod
    def _check_duplicates(cls, gpus: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(gpus)) < len(gpus):
            raise ValueError("an entry is listed twice")
        return gpus

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.engine == "external" and not self.endpoint:
            raise ValueError('engine = "external" needs endpoint = "http://host:port"')
        if self.endpoint and self.engine not in ("external", "auto"):
            raise ValueError(f'endpoint is for engine = "external"; engine is "{self.engine}"')
        if self.gpus and self.lmdeploy.tensor_parallel > 1:
            raise ValueError("gpus starts one engine for each card; lmdeploy.tensor_parallel spreads one over several")
        if self.gpus and self.endpoint:
            raise ValueError("gpus is for engines that the bot starts, endpoint for one that you start")
        if self.gpus and self.engine == "ray":
            raise ValueError(
                'gpus selects GPUs of this machine; with engine = "ray", set the number of engines in ray.replicas'
            )
        return self
