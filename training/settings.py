"""The settings in the `[training]` section of config.toml.

The hyperparameters of the recipes are in `training.xtuner.recipes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from inference.internvl2.checkpoint_check import weight_bytes
from inference.settings import LocalPath, LocalText
from training.xtuner.recipes import LARGE, RECIPES, SELF_TUNING, Objective, Recipe

_TINY_BYTES: Final = 200_000_000


class Source(BaseModel):
    """A `[[training.sources]]` entry: a file of rows to train on in addition to the liked answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: LocalPath
    """A LLaVA file, .json or .jsonl."""

    images: LocalPath | None = None
    """The folder of its pictures; none: the folder of the file."""

    repeat_times: float | None = Field(None, gt=0)
    """How many times each row is used: 0.5 uses half of the rows, 2.5 uses all of them twice and half of them once
    more; none: a share of training.replay."""

    @property
    def folder(self) -> Path:
        """The folder that contains the source's pictures."""
        return self.images or self.path.parent


class RayTrainingSettings(BaseModel):
    """The `[training.ray]` section of config.toml: training on a Ray cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = "auto"
    """The address of the cluster: `auto` for the one on this machine, or `host:6379`."""

    num_cpus: float = Field(1, gt=0)
    """CPU cores that Ray reserves for each process."""

    num_gpus: float = Field(0, ge=0)
    """GPUs that Ray reserves for each process: 1, or 0 to train on CPUs."""


class TrainingSettings(BaseModel):
    """The `[training]` section of config.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule: str = ""
    """When to retrain, as five cron fields in UTC; empty: only by command."""

    min_rated: int = Field(12, ge=2)
    """The minimum number of selected pairs to train on. The evaluation decides whether they show a preference."""

    min_raters: int = Field(2, ge=1)
    """The minimum number of people whose thumbs up a run learns from; 1 for a personal bot."""

    rater_share: float = Field(2.0, ge=0)
    """The maximum number of pairs per rater, as a multiple of the median rater's, but at least 3; 0: no limit."""

    rater_age: float = Field(24.0, ge=0, le=8760)
    """Hours from a person's first message until their votes count, at most a year."""

    threshold: int = Field(0, ge=0)
    """A pair is selected if its thumbs up minus its thumbs down exceed this number."""

    held_out: float = Field(0.2, gt=0, lt=0.5)
    """Share of the answers held out for the evaluation if more than 200 can be used for it. With fewer, each block
    of answers is used to evaluate a model trained on the earlier ones, and the new model is trained on all answers."""

    near_duplicate: int = Field(4, ge=0, le=16)
    """Pictures count as the same if their 64-bit perceptual hashes differ in at most this number of bits."""

    recipe: LocalText = "auto"
    """The hyperparameters: food, jokes, tiny, or the path of an XTuner configuration (.py); auto: tiny below 100
    million weights, else food."""

    objective: Literal["auto"] | Objective = "auto"
    """The answers to learn from. sft: liked answers; kto: disliked ones too; dpo: liked answers, some with a worse one
    to the same prompt; auto: the recipe's."""

    knobs: dict[str, Any] = Field(default_factory=dict)
    """Hyperparameters that replace the recipe's: method, rank, learning_rate, epochs …"""

    sources: tuple[Source, ...] = ()
    """Rows to train on besides the liked answers, to prevent forgetting."""

    replay: float = Field(1.0, ge=0)
    """The number of samples that the sources without repeat_times together add per liked answer."""

    seed: int = Field(0, ge=0)
    """The random seed of the training."""

    engine: Literal["local", "ray"] = "local"
    """Where training processes run: on this machine, or on the nodes of a Ray cluster."""

    ray: RayTrainingSettings = RayTrainingSettings()
    """Settings for `engine = "ray"`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to train on; auto: a GPU if there is one."""

    gpus: tuple[int, ...] = ()
    """The numbers of the GPUs to train on, with a process on each; empty: one process, which sees the bot's GPUs."""

    processes: int = Field(0, ge=0)
    """Processes that train together on this host, or on the Ray cluster; 0: one for each of `gpus`, or one. Several are
    possible on a CPU too."""

    deepspeed: Literal[0, 1, 2, 3] = 0
    """The stage of DeepSpeed's ZeRO, which determines what is partitioned over the GPUs. 1: the optimizer's state,
    2: gradients too, 3: weights too."""

    threads: int = Field(0, ge=0)
    """CPU threads of the workers; 0: one for each core, shared by the processes."""

    python: LocalText = ""
    """The Python interpreter of the workers; empty: the bot's."""

    keep_warm: bool = False
    """Whether the libraries of the workers stay in memory between runs (0.5 GB), so that a run starts at once. During a
    run they do in any case."""

    while_training: Literal["share", "pause"] = "share"
    """share: chats continue during training; pause: they wait, which suits one small GPU."""

    canary: float = Field(0.5, ge=0, le=1)
    """Share of the conversations that an accepted model answers alongside the live one, until votes decide; 0: it goes
    live at once, as it does with inference.swap = "cold"."""

    approve: bool = False
    """Whether an accepted model waits until an admin approves it."""

    keep_models: int = Field(3, ge=0)
    """The number of merged models kept besides the base model, the live one and the previous one. Of the others, only
    the adapters are kept, from which /promote merges them again."""

    min_free_gigabytes: float = Field(2.0, ge=0)
    """Disk space that must stay free in addition to the new model's."""

    features_gigabytes: float = Field(20.0, ge=0)
    """The maximum disk space of the vision cache, which keeps the features of each picture during a run (2 MB per tile,
    6.6 MB with InternViT-6B). Features that do not fit are recomputed in every epoch."""

    regression: LocalPath | None = None
    """Folder with questions.json, the factual questions of the evaluation; none: drawn shapes."""

    max_loss_points: float = Field(2.0, ge=0)
    """Percentage points of correctness that a new model may lose on these questions, compared with the base and the
    live model. It must be shown to lose less: your own set needs at least 133 questions for 2 points, 52 for 5."""

    silence: float = Field(600.0, ge=0)
    """Seconds without progress after which the admins are alerted and the worker's stacks are logged; 0: never."""

    timeout: float = Field(24 * 3600.0, gt=0)
    """Seconds after which a worker is stopped."""

    @field_validator("recipe")
    @classmethod
    def _recipe_is_known(cls, value: str) -> str:
        if value in ("auto", *RECIPES):
            return value
        if not value.endswith(".py"):
            raise ValueError(f"must be auto, {', '.join(RECIPES)} or the path of an XTuner configuration (.py)")
        if not Path(value).is_file():
            raise ValueError(f"{value} does not exist: give its full path")
        return value

    @model_validator(mode="after")
    def _ray_places_the_processes(self) -> TrainingSettings:
        if self.engine == "ray" and self.gpus:
            raise ValueError('engine = "ray" assigns the GPUs itself: leave gpus empty and set processes')
        return self

    @model_validator(mode="before")
    @classmethod
    def _name_replacements(cls, given: Any) -> Any:
        for name in ("hosts", "rendezvous"):
            if isinstance(given, dict) and name in given:
                raise ValueError(f'{name} is gone: to train on several machines, set training.engine = "ray"')
        return given

    @model_validator(mode="after")
    def _knobs_fit(self) -> TrainingSettings:
        try:
            self.resolved(LARGE if self.recipe == "auto" else self.recipe)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(each) for each in first["loc"])
            names = ", ".join(each for each in Recipe.model_fields if each != "objective")
            raise ValueError(f"knobs.{name}: {first['msg']}; the valid names are {names}") from error
        return self

    def resolved(self, recipe: str) -> Recipe:
        """Return the hyperparameters of a recipe, with the values in `knobs` replacing the recipe's own.

        If `recipe` is the path of a user's configuration, which sets its own hyperparameters, return the
        defaults.
        """
        if recipe not in RECIPES:
            if self.knobs:
                raise ValueError(f"knobs: {recipe} sets its own hyperparameters; leave training.knobs empty")
            if self.objective not in ("auto", "sft"):
                raise ValueError(
                    f"objective: {recipe} supports only sft; for {self.objective}, set recipe to a recipe's name"
                )
            return Recipe()
        if "objective" in self.knobs:
            raise ValueError("knobs.objective: set training.objective instead")
        values = {**RECIPES[recipe], **self.knobs}
        if self.objective != "auto":
            values["objective"] = self.objective
        if values.get("optimizer") in SELF_TUNING:
            if "learning_rate" in self.knobs:
                raise ValueError(
                    f"knobs.learning_rate: {values['optimizer']} finds its own learning rate; leave it out"
                )
            values["learning_rate"] = 1.0
        made = Recipe.model_validate(values)
        if made.batch * made.accumulation % self.world_size:
            raise ValueError(
                f"knobs: {made.batch} x {made.accumulation} pairs per step (batch x accumulation) cannot be divided "
                f"among {self.world_size} processes"
            )
        if self.deepspeed and made.optimizer in SELF_TUNING:
            raise ValueError(f"deepspeed: {made.optimizer} needs all weights in one place; use adamw")
        if self.deepspeed and made.objective != "sft":
            raise ValueError(f"deepspeed: {made.objective} is not supported; use 0, or objective sft")
        if self.deepspeed == 3 and made.method == "qlora":
            raise ValueError("deepspeed: stage 3 cannot partition 4-bit weights; use 2, or knobs.method lora or full")
        return made

    @property
    def user_config(self) -> Path | None:
        """The path of the user's XTuner configuration, or None if `recipe` is the name of a recipe."""
        return None if self.recipe in ("auto", *RECIPES) else Path(self.recipe).resolve()

    def max_tokens(self, base: Path) -> int | None:
        """Return the maximum number of tokens per pair for a checkpoint directory.

        Return None if a user's configuration is set, because only the worker reads it.
        """
        return None if self.user_config else self.recipe_for(base).max_length

    @property
    def world_size(self) -> int:
        """The number of training processes."""
        return self.processes or len(self.gpus) or 1

    def recipe_for(self, base: Path) -> Recipe:
        """Return the hyperparameters for a checkpoint directory, with "auto" resolved by the size of its weights."""
        name = self.recipe
        if name == "auto":
            name = "tiny" if weight_bytes(base) < _TINY_BYTES else LARGE
        return self.resolved(name)

    @classmethod
    def for_tiny(cls, **changes: Any) -> TrainingSettings:
        """Return settings for internvl2-tiny, a small model used in the demo and the tests."""
        few = {"min_rated": 8, "min_raters": 1, "rater_age": 0}
        return cls.model_validate({"recipe": "tiny", "min_free_gigabytes": 0.1, "canary": 0, **few, **changes})
