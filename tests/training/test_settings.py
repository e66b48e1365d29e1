"""Training settings: recipes, overridden hyperparameters and invalid values."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from training.settings import TrainingSettings
from training.xtuner.recipes import RECIPES, Recipe


@pytest.mark.parametrize(("name", "numbers"), [("food", (2, 10, 3e-5, 8192)), ("jokes", (4, 6, 2e-5, 6656))])
def test_the_recipes_of_internvl2_2b_are_the_tutorials(name: str, numbers: tuple[float, ...]) -> None:
    """The recipes for InternVL2-2B use the numbers from the tutorials on dishes and jokes.

    Some numbers differ between the tutorials; the others are the same in both.
    """
    recipe = TrainingSettings(recipe=name).resolved(name)
    assert (recipe.accumulation, recipe.epochs, recipe.learning_rate, recipe.max_length) == numbers
    assert (recipe.method, recipe.rank, recipe.alpha, recipe.dropout, recipe.batch) == ("qlora", 128, 256, 0.05, 4)
    assert (recipe.optimizer, recipe.beta1, recipe.beta2, recipe.weight_decay) == ("adamw", 0.9, 0.999, 0.05)
    assert (recipe.clip, recipe.warmup) == (1.0, 0.03)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid(name: str) -> None:
    """Every named recipe sets only hyperparameters that exist."""
    assert TrainingSettings(recipe="auto").resolved(name).model_dump().keys() == Recipe().model_dump().keys()


def test_a_knob_replaces_one_number() -> None:
    """A value in `knobs`, even as text from the environment, replaces the recipe's; other values stay."""
    recipe = TrainingSettings.model_validate({"recipe": "tiny", "knobs": {"learning_rate": "5e-4"}}).resolved("tiny")
    assert recipe.learning_rate == 5e-4
    assert recipe.rank == RECIPES["tiny"]["rank"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"knobs": {"rnak": 8}}, "knobs.rnak"),
        ({"knobs": {"rank": 0}}, "knobs.rank"),
        ({"knobs": {"targets": "(wo"}}, "knobs.targets"),
        ({"knobs": {"method": "magic"}}, "knobs.method"),
        ({"knobs": {"keep_checkpoints": 1}}, "knobs.keep_checkpoints"),
        ({"knobs": {"optimizer": "prodigy", "learning_rate": 1e-4}}, "knobs.learning_rate: prodigy finds its own"),
        ({"recipe": "huge"}, "recipe"),
        ({"recipe": "nowhere.py"}, "nowhere.py does not exist"),
        ({"recipe": __file__, "objective": "kto"}, "supports only sft"),
        ({"knobs": {"objective": "kto"}}, "set training.objective"),
        ({"objective": "kto", "deepspeed": 2}, "deepspeed: kto is not supported"),
        ({"objective": "ppo"}, "objective"),
        ({"recipe": __file__, "knobs": {"rank": 8}}, "leave training.knobs empty"),
        ({"held_out": 0.6}, "held_out"),
        ({"min_raters": 0}, "min_raters"),
        ({"rater_share": -1}, "rater_share"),
        ({"rater_age": -1}, "rater_age"),
        ({"min_ratde": 3}, "min_ratde"),
        ({"sources": [{"path": "a.json", "repeat_times": 0}]}, "sources.0.repeat_times"),
        ({"sources": [{"path": "a.json", "repeat": 2}]}, "sources.0.repeat"),
        ({"sources": [{"images": "a"}]}, "sources.0.path"),
        ({"replay": -1}, "replay"),
        ({"hosts": 2}, 'hosts is gone: to train on several machines, set training.engine = "ray"'),
        ({"rendezvous": "a:1"}, "rendezvous is gone"),
        ({"engine": "ray", "gpus": [0]}, "set processes"),
    ],
)
def test_mistakes_are_named(given: dict[str, object], named: str) -> None:
    """An unknown key, an invalid value or a conflict between settings raises an error that names the key."""
    with pytest.raises(ValidationError, match=named):
        TrainingSettings.model_validate(given)


def test_a_users_configuration_has_its_own_numbers(tmp_path: Path) -> None:
    """The settings give the maximum length of a named recipe, but not that of a user's XTuner configuration.

    Only the worker reads the length in a user's configuration.
    """
    own = TrainingSettings(recipe=__file__)
    assert (own.user_config, own.max_tokens(tmp_path)) == (Path(__file__), None)
    named = TrainingSettings(recipe="jokes")
    assert (named.user_config, named.max_tokens(tmp_path)) == (None, 6656)


def test_the_objective_replaces_the_recipes() -> None:
    """`training.objective` replaces the recipe's objective, unless it is `auto`."""
    assert TrainingSettings(objective="kto").resolved("food").objective == "kto"
    assert TrainingSettings().resolved("food").objective == "sft"


def test_an_optimizer_that_finds_its_learning_rate_gets_none() -> None:
    """An optimizer that finds its own learning rate gets the factor 1 instead of the recipe's learning rate."""
    assert TrainingSettings(knobs={"optimizer": "dadapt_adam"}).resolved("food").learning_rate == 1


def test_the_settings_for_internvl2_tiny() -> None:
    """The settings for internvl2-tiny need few votes and little disk space and can be changed individually."""
    settings = TrainingSettings.for_tiny(min_rated=3)
    assert settings.recipe == "tiny"
    assert settings.min_rated == 3
    assert settings.min_free_gigabytes < 1
