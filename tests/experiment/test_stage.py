"""What a run tells its user before the first round."""

from __future__ import annotations

from fl_vitlora.config import Config, ModelConfig
from fl_vitlora.experiment.stage import note_on_size
from fl_vitlora.models.backbone import draft

LARGE = "vit_small_patch14_dinov2"


def note(name: str, size: tuple[int, ...] | None = None) -> str:
    config = Config(model=ModelConfig(name=name, weights="random", image_size=size))
    return " ".join(note_on_size(config, draft(config.model, classes=2)))


def test_a_model_for_large_images_says_how_many_patches_it_reads() -> None:
    told = note(LARGE)
    assert f"{LARGE} reads images of 518x518 pixels, which are 1,369 patches" in told
    assert told.endswith("--set model.image_size=224")


def test_nothing_is_told_of_usual_images_or_of_a_size_that_the_user_chose() -> None:
    assert note(LARGE, (448,)) == note("vit_tiny_patch16_224") == note("vit_letters_16") == ""
