"""Pre-trains the small ViT of this package on letters, with many new keys (active forgetting).

When the model is used, images will be encrypted under keys that are not known yet. Therefore the
body of the model must adapt quickly to new keys. Phase 1 trains the ViT to read letters (see
:mod:`fl_vitlora.models.glyphs`). In phase 2 a few *learners* share the body of the ViT. Each
learner has its own key (block scrambling, pixel shuffling, negative-positive transformation), its
own ten letters, and *fast* weights. The fast weights are tensors that the federated method also
trains: an offset of the patch embedding, LoRA on q and v, and a head. Every step updates the
fast weights of each learner. The same step updates the *slow* weights of the body with the mean of
the learners' gradients. After 60 to 160 steps a learner is started anew: it gets a new key and new
letters, and its fast weights are set to zero. One learner in five sees plain images, so that the
model also learns to read plain images. Only the slow weights are saved, without a head. These
commands repeat the pre-training:

    python -m fl_vitlora.models.pretraining --out vit_letters_16.safetensors --seed 0
    python -m fl_vitlora.models.pretraining --out vit_letters_16_plain.safetensors --seed 0 \
        --plain-steps 8500 --rekeyed-steps 0

The second command trains the model for comparison, with as many steps as the first, but with plain
images only.

Letters in shapes: M learners, B images per learner, N = 16 patches, P = 48 patch entries, D width,
R LoRA rank, C classes.

Sources: active forgetting, Chen et al. 2023 (arXiv 2307.01163), who use active forgetting with one
learner, for word embeddings of new languages; fast and slow weights with first-order gradients,
Nichol et al. 2018 (arXiv 1803.02999), here summed over all steps of a learner's life; the federated
method, Lin et al. 2025 (arXiv 2507.11943).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fl_vitlora.models.backbone import BUNDLED
from fl_vitlora.models.glyphs import CHARACTERS, render_set
from fl_vitlora.models.learners import ENTRIES, PATCH, PATCHES, Learners, Recipe, SharedQKV
from fl_vitlora.storage.files import write_atomically

ARCHITECTURE: Final = BUNDLED["vit_letters_16"]


def to_patches(levels: Tensor) -> Tensor:
    """Converts 8x8 grey levels into normalised patches of 16x16 images with three equal channels.

    Args:
        levels: Grey levels (..., 8, 8) from 0 to 16.

    Returns:
        Patches (..., N, P) in [-1, 1]. The entries of a patch are in the order (channel, y, x).
    """
    pixels = (levels.float() * 255 / 16).round() / 127.5 - 1
    flat = pixels.reshape(-1, 1, *levels.shape[-2:])
    large = F.interpolate(flat, scale_factor=2, mode="bilinear", align_corners=False)
    patches = F.unfold(large, PATCH, stride=PATCH).transpose(1, 2).repeat(1, 1, 3)
    return patches.reshape(*levels.shape[:-2], PATCHES, ENTRIES)


class SlowWeights(nn.Module):
    """The slow weights: a timm ViT in two parts, the patch embedding and the body behind it."""

    def __init__(self, vit: VisionTransformer) -> None:
        """Removes the patch embedding from ``vit``; :meth:`assembled` puts it back."""
        super().__init__()
        patch_embed, vit.patch_embed = vit.patch_embed, nn.Identity()
        self.body, self.patch_embed = vit, patch_embed

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the features (B, D) for a head, computed from patch tokens (B, N, D)."""
        seen: Tensor = self.body.forward_head(self.body.forward_features(tokens), pre_logits=True)
        return seen

    @property
    def kernel(self) -> Tensor:
        """Returns the patch embedding's weight (D, 3, y, x)."""
        weight: Tensor = self.patch_embed.proj.weight
        return weight

    @property
    def bias(self) -> Tensor:
        """Returns the patch embedding's bias (D,)."""
        bias: Tensor = self.patch_embed.proj.bias
        return bias

    def assembled(self) -> VisionTransformer:
        """Returns the whole ViT, with timm's names."""
        self.body.patch_embed = self.patch_embed
        return self.body


def slow_optimizer(modules: Iterable[nn.Module], recipe: Recipe) -> torch.optim.AdamW:
    """Creates AdamW for the slow weights; vectors such as biases get no weight decay."""
    weights = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.slow_rate, betas=(0.9, 0.99))


def slow_step(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Clips the gradients to norm 1, takes a step at the given rate, and clears the gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def rate_share(step: int, steps: int) -> float:
    """Returns the factor by which the learning rate is multiplied in a step.

    The factor rises to 1 over 200 steps and stays at 1. In the last two thirds of the steps, the
    factor falls linearly to 0.02.
    """
    return min(1.0, (step + 1) / 200, 1.5 * (1 - step / steps) + 0.02)


def draw(images: Tensor, letters: Tensor, generator: torch.Generator) -> Tensor:
    """Draws one image for each entry of `letters`; returns patches (*letters.shape, N, P)."""
    copies = torch.randint(images.shape[1], letters.shape, generator=generator)
    return to_patches(images[letters, copies])


def plain_phase(
    slow: SlowWeights, images: Tensor, recipe: Recipe, generator: torch.Generator
) -> None:
    """Runs phase 1: trains the ViT and a temporary head to read all letters in plain images.

    Args:
        slow: The slow weights, which are trained in place.
        images: Grey levels (C, K, 8, 8): K images of each of the C letters.
        recipe: The settings: numbers of steps, learning rates and sizes.
        generator: The generator of all random numbers, except those of the initial head.
    """
    characters, count = len(images), recipe.learners * recipe.batch
    head = nn.Linear(slow.body.embed_dim, characters)
    optimizer = slow_optimizer((slow, head), recipe)
    for step in range(recipe.plain_steps):
        letters = torch.randint(characters, (count,), generator=generator)
        patches = draw(images, letters, generator)
        tokens = F.linear(patches, slow.kernel.flatten(1), slow.bias)
        torch.autograd.backward(F.cross_entropy(head(slow(tokens)), letters))
        slow_step(optimizer, recipe.slow_rate * rate_share(step, recipe.plain_steps))


def rekeyed_phase(
    slow: SlowWeights, images: Tensor, recipe: Recipe, generator: torch.Generator
) -> None:
    """Runs phase 2: learners that repeatedly get new keys train the slow weights.

    Args:
        slow: The slow weights, which are trained in place.
        images: Grey levels (C, K, 8, 8): K images of each of the C letters.
        recipe: The settings: numbers of steps, learning rates and sizes.
        generator: The generator of all random numbers.
    """
    blocks = slow.body.blocks
    learners = Learners(recipe, len(blocks), slow.body.embed_dim, len(images))
    for index in range(recipe.learners):
        learners.forget(index, generator)
        learners.life[index] *= (index + 1) / recipe.learners
    optimizer = slow_optimizer((slow,), recipe)
    for number, block in enumerate(blocks):
        block.attn.qkv = SharedQKV(block.attn.qkv, learners, number)
    for step in range(recipe.rekeyed_steps):
        torch.autograd.backward(learners_loss(slow, learners, images, generator))
        slow_step(optimizer, recipe.slow_rate * rate_share(step, recipe.rekeyed_steps))
        learners.step(generator)
    for block in blocks:
        block.attn.qkv = block.attn.qkv.base


def learners_loss(
    slow: SlowWeights, learners: Learners, images: Tensor, generator: torch.Generator
) -> Tensor:
    """Returns the mean cross-entropy of all learners on freshly drawn, encrypted letters.

    Because of the mean, a learner's gradients are 1 / M times the gradients of the learner's own
    mean loss. This factor does not change Adam's steps.
    """
    recipe, fast = learners.recipe, learners.weights
    size = (recipe.learners, recipe.batch)
    labels = torch.randint(recipe.classes, size, generator=generator)
    patches = learners.encrypt(draw(images, learners.letters.gather(1, labels), generator))
    seen = slow(learners.embed(patches, slow.kernel, slow.bias)).view(*size, -1)
    logits = torch.bmm(seen, fast["head"]) + fast["head_bias"]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def pretrain(recipe: Recipe, characters: str = CHARACTERS) -> VisionTransformer:
    """Runs both phases; the same recipe gives identical weights on the same machine.

    Args:
        recipe: All settings, including the seed.
        characters: The letters in the images; digits are not allowed.

    Returns:
        The pre-trained ViT, without a head.
    """
    images = render_set(characters, recipe.images_per_character, recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        slow = SlowWeights(VisionTransformer(num_classes=0, **ARCHITECTURE))
        plain_phase(slow, images, recipe, generator)
        rekeyed_phase(slow, images, recipe, generator)
    return slow.assembled()


def save(model: VisionTransformer, recipe: Recipe, characters: str, path: Path) -> None:
    """Writes the weights and their settings to a file, completely or not at all."""
    facts = {
        "architecture": {**ARCHITECTURE, "num_classes": 0},
        "characters": characters,
        "normalisation": "(q / 255 - 0.5) / 0.5",
        "recipe": asdict(recipe),
    }
    metadata = {"pretraining": json.dumps(facts)}  # safetensors reorders several entries
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    write_atomically(path, to_bytes(tensors, metadata=metadata))


def main(arguments: Sequence[str] | None = None) -> None:
    """Pre-trains a model with the settings of the command line, and writes its weights."""
    parser = argparse.ArgumentParser(description="Pre-trains the small ViT on images of letters.")
    parser.add_argument(
        "--out", type=Path, required=True, help="path of the safetensors file to write"
    )
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    settings = vars(parser.parse_args(arguments))
    path: Path = settings.pop("out")
    torch.set_num_threads(1)  # more threads would change the order of sums, and the rounding
    recipe = Recipe(**settings)
    save(pretrain(recipe), recipe, CHARACTERS, path)


if __name__ == "__main__":
    main()
