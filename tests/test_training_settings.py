"""The settings of training: recipes by name, single numbers replaced, mistakes named."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from training.settings import RECIPES, Recipe, TrainingSettings


def test_the_default_recipe_is_that_of_internvl2_2b() -> None:
    """Without anything set the numbers are those in use for InternVL2-2B."""
    recipe = TrainingSettings().resolved("internvl2-2b")
    assert (recipe.rank, recipe.alpha, recipe.dropout, recipe.batch) == (128, 256, 0.05, 4)
    assert (recipe.weight_decay, recipe.clip, recipe.warmup) == (0.05, 1.0, 0.03)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_whole(name: str) -> None:
    """Each named recipe only changes numbers that a recipe has."""
    assert TrainingSettings(recipe="auto").resolved(name).model_dump().keys() == Recipe().model_dump().keys()


def test_a_knob_replaces_one_number() -> None:
    """A number in knobs wins over the recipe's, text from the environment included; the others stay."""
    recipe = TrainingSettings.model_validate({"recipe": "tiny", "knobs": {"learning_rate": "5e-4"}}).resolved("tiny")
    assert recipe.learning_rate == 5e-4
    assert recipe.rank == RECIPES["tiny"]["rank"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"knobs": {"rnak": 8}}, "knobs.rnak"),
        ({"knobs": {"rank": 0}}, "knobs.rank"),
        ({"knobs": {"targets": "(wo"}}, "knobs.targets"),
        ({"recipe": "huge"}, "recipe"),
        ({"held_out": 0.6}, "held_out"),
        ({"min_ratde": 3}, "min_ratde"),
    ],
)
def test_mistakes_are_named(given: dict[str, object], named: str) -> None:
    """An unknown key or a number out of range is an error that names the key."""
    with pytest.raises(ValidationError, match=named):
        TrainingSettings.model_validate(given)


def test_the_stand_in_has_settings_of_its_own() -> None:
    """The demo's settings need few votes and little disk, and can be changed one by one."""
    settings = TrainingSettings.for_tiny(min_rated=3)
    assert settings.recipe == "tiny"
    assert settings.min_rated == 3
    assert settings.min_free_gigabytes < 1
