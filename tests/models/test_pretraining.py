"""The shipped weights: made of letters alone, repeatable, small, and what the backbone expects."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from fl_vitlora.models.backbone import BUNDLED, WEIGHTS_FOLDER
from fl_vitlora.models.glyphs import CHARACTERS, render_set
from fl_vitlora.models.learners import Recipe
from fl_vitlora.models.pretraining import main, pretrain

RECIPES = {
    "vit_letters_16": Recipe(),
    "vit_letters_16_plain": Recipe(plain_steps=8500, rekeyed_steps=0),
}
TINY = Recipe(
    images_per_character=4,
    plain_steps=6,
    rekeyed_steps=8,
    learners=2,
    batch=4,
    shortest_life=2,
    longest_life=5,
)
LETTERS = "ABCDEFGHIJKL"


def test_no_character_is_a_number_in_any_script() -> None:
    assert not [character for character in CHARACTERS if character.isnumeric()]


@pytest.mark.parametrize("digit", ["7", "٣", "½"])
def test_digits_are_refused(digit: str) -> None:
    with pytest.raises(ValueError, match="only letters and symbols"):
        render_set(f"AB{digit}", 2, 0)


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others() -> None:
    first, again = (pretrain(TINY, LETTERS).state_dict() for _ in range(2))
    other = pretrain(Recipe(**{**vars(TINY), "seed": 1}), LETTERS).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["patch_embed.proj.weight"], other["patch_embed.proj.weight"])


def test_pretraining_moves_every_weight() -> None:
    trained = pretrain(TINY, LETTERS).state_dict()
    started = pretrain(Recipe(**{**vars(TINY), "plain_steps": 0, "rekeyed_steps": 0}), LETTERS)
    still = [n for n, w in started.state_dict().items() if torch.equal(w, trained[n])]
    assert still == []


def test_every_bundled_model_has_its_weights() -> None:
    shipped = {path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors")}
    assert shipped == BUNDLED.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_weights_tell_their_recipe_and_are_small(name: str) -> None:
    path = WEIGHTS_FOLDER / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["pretraining"])
    assert facts["recipe"] == vars(RECIPES[name])
    assert facts["characters"] == CHARACTERS
    assert facts["architecture"] == {**BUNDLED[name], "num_classes": 0}
    assert path.stat().st_size <= 3e6


def test_help_names_every_part_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in said for name in vars(TINY))
