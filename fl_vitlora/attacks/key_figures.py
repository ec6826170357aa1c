"""The figures of attacks that guess keys.

Letters in shapes: p patch size, D entries of a block, N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean

from fl_vitlora.attacks.key_search import measures
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.encryption.cipher import CipherKey

Guesses = Mapping[int, CipherKey]  # the guessed key of each attacked client
BLOCKS = "block_scrambling"
FIGURES = ("inverted entries told", "entries put in their place", "blocks put in their place")
SYMMETRIC = ("inverted entries told, up to one bit", "entries put in their place, up to mirroring")


def key_figures(guesses: Guesses, truth: Truth, patch_size: int) -> list[Figure]:
    """Returns the shares of keys that are guessed correctly, as means over clients.

    Args:
        guesses: The guessed key of each attacked client, in the format of `three_steps`.
        truth: The owners' secrets.
        patch_size: The side p of a block in pixels.
    """
    key = truth.keys[next(iter(guesses))]
    figures = [
        _figure(FIGURES[0], measures.share_of_mask, guesses, truth, 0.5),
        _figure(
            FIGURES[1],
            lambda guess, true: measures.share_of_places(guess, true, patch_size),
            guesses,
            truth,
            measures.chance_of_places(patch_size),
        ),
    ]
    if all(BLOCKS in guess for guess in guesses.values()):
        chance = 1 / len(key[BLOCKS])
        share = measures.share_of_blocks
        figures.append(_figure(FIGURES[2], share, guesses, truth, chance))
    return figures


def key_figures_up_to_symmetry(guesses: Guesses, truth: Truth, patch_size: int) -> list[Figure]:
    """Returns the shares of keys that are guessed correctly, except for one sign and mirroring.

    The arguments are those of `key_figures`.
    """
    key = truth.keys[next(iter(guesses))]
    return [
        _figure(
            SYMMETRIC[0],
            lambda guess, true: measures.share_of_mask(guess, true, up_to_all=True),
            guesses,
            truth,
            measures.chance_of_mask(len(key["negative_positive"])),
        ),
        _figure(
            SYMMETRIC[1],
            lambda guess, true: measures.share_of_places(
                guess, true, patch_size, up_to_mirrored=True
            ),
            guesses,
            truth,
            measures.chance_of_places(patch_size, up_to_mirrored=True),
        ),
    ]


def _figure(
    name: str,
    share: Callable[[CipherKey, CipherKey], float],
    guesses: Guesses,
    truth: Truth,
    chance: float,
) -> Figure:
    found = mean(share(guess, truth.keys[client]) for client, guess in guesses.items())
    return Figure(name=name, value=100 * found, floor=100 * chance, ceiling=100)
