"""What a key does not withstand, and what it does: the attacks of `benchmarks/attacks`, small."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from benchmarks.attacks.__main__ import show
from benchmarks.attacks.curious_server import CuriousFedAvg
from fl_vitlora.attacks.invariants import features, masks_of
from fl_vitlora.attacks.key_search import measures
from fl_vitlora.attacks.key_search.block_statistics import Matrix, correlations, signs
from fl_vitlora.attacks.key_search.from_changes import key_from_embedding
from fl_vitlora.attacks.key_search.from_ciphertext import key_from_ciphertext
from fl_vitlora.attacks.key_search.matching import best_orders, mirror_images
from fl_vitlora.attacks.key_search.prior import Prior, signed_blocks
from fl_vitlora.config import Config
from fl_vitlora.data import sources
from fl_vitlora.data.sources import Images
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import TEST, KeyHolder, Scope
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.strategy import Update
from strategies.fedavg import FedAvg

BLOCK = 4
CIPHER = Cipher(steps=Config().encryption.steps, block_size=BLOCK, image_shape=(3, 16, 16))
KEYS = range(3)


def holder(number: int, scope: Scope = "shared") -> KeyHolder:
    secret = hashlib.sha256(str(number).encode()).digest()
    return KeyHolder(cipher=CIPHER, secret=secret, scope=scope)


def pixels(images: Images, start: int, stop: int) -> Tensor:
    return images.read(np.arange(start, stop), 16, 16)


@pytest.fixture(scope="module")
def digits() -> Images:
    return sources.load(Config().data)[0]


@pytest.fixture(scope="module")
def prior(digits: Images) -> Prior:
    return Prior.of(pixels(digits, 0, 700), BLOCK)


def test_ten_ciphertexts_under_one_key_give_the_key(digits: Images, prior: Prior):
    exact = []
    for number in KEYS:
        plain = pixels(digits, 700 + 20 * number, 710 + 20 * number)
        ciphertext = holder(number).encrypt(plain, TEST)
        decrypted = CIPHER.decrypt(ciphertext, key_from_ciphertext(ciphertext, prior))
        exact.append(torch.equal(decrypted, plain))
    assert sum(exact) >= len(exact) - 1


def test_a_cipher_of_fewer_steps_falls_to_the_same_attack(digits: Images, prior: Prior):
    exact = []
    for number in KEYS:
        plain = pixels(digits, 700 + 20 * number, 710 + 20 * number)
        cipher = replace(CIPHER, steps=CIPHER.steps[number : number + 1])
        ciphertext = cipher.encrypt(plain, holder(number).key(TEST))
        decrypted = CIPHER.decrypt(ciphertext, key_from_ciphertext(ciphertext, prior))
        exact.append(torch.equal(decrypted, plain))
    assert sum(exact) >= len(exact) - 1


def test_three_ciphertexts_give_the_whole_mask_up_to_one_bit(digits: Images):
    for number in KEYS:
        ciphertext = holder(number).encrypt(pixels(digits, 700, 703), TEST)
        flips = signs(correlations(signed_blocks(ciphertext, BLOCK).reshape(-1, 48)))
        guess = {"negative_positive": torch.from_numpy(flips < 0)}
        assert measures.share_of_mask(guess, holder(number).key(TEST), up_to_all=True) > 0.9


def test_pooling_finds_nothing_where_every_image_has_a_key(digits: Images, prior: Prior):
    plain = pixels(digits, 700, 710)
    ciphertext = holder(0, "image").encrypt(plain, TEST)
    decrypted = CIPHER.decrypt(ciphertext, key_from_ciphertext(ciphertext, prior))
    assert not (decrypted == plain).flatten(1).all(dim=1).any()


def gradients(seen: Tensor, number: int) -> Tensor:
    """Makes a change of the patch embedding, Σ δᵢ·xᵢᵀ with random δ, of images that are seen."""
    patches = torch.from_numpy(signed_blocks(seen, BLOCK)).flatten(0, 1)
    generator = torch.Generator().manual_seed(number)
    errors = torch.randn(len(patches), 96, generator=generator, dtype=torch.float64)
    return errors.T @ patches


def test_the_change_of_a_patch_embedding_gives_mask_and_places(digits: Images):
    for number in KEYS:
        ciphertext = holder(number).encrypt(pixels(digits, 0, 200), TEST)
        guess = key_from_embedding([gradients(ciphertext, number)], BLOCK, grey=True)
        truth = holder(number).key(TEST)
        assert measures.share_of_mask(guess, truth, up_to_all=True) > 0.9
        assert measures.share_of_places(guess, truth, BLOCK, up_to_mirrored=True) > 0.5


def test_a_change_that_is_noise_gives_what_chance_gives():
    shares = []
    for number in range(4):
        noise = torch.randn(96, 48, generator=torch.Generator().manual_seed(number))
        guess = key_from_embedding([noise], BLOCK, grey=True)
        truth = holder(number).key(TEST)
        shares.append(measures.share_of_places(guess, truth, BLOCK, up_to_mirrored=True))
    assert np.mean(shares) < 2 * measures.chance_of_places(BLOCK, up_to_mirrored=True)


def test_one_ciphertext_shows_its_mask_where_the_background_is_dark(digits: Images):
    plain, keyed = pixels(digits, 0, 100), holder(0, "image")
    truth = to_blocks(keyed.encrypt(torch.zeros_like(plain), TEST), BLOCK)[:, 0] > 0
    guesses = masks_of(keyed.encrypt(plain, TEST), BLOCK)
    assert (guesses == truth).all(dim=1).double().mean() > 0.9


def test_labels_are_read_far_above_chance_though_every_image_has_a_key(digits: Images):
    ciphertext = holder(0, "image").encrypt(pixels(digits, 0, 600), TEST)
    table, labels = features(ciphertext, BLOCK), digits.labels[:600]
    classifier = make_pipeline(StandardScaler(), SVC(C=10)).fit(table[:400], labels[:400])
    assert classifier.score(table[400:], labels[400:]) > 0.4


def test_no_key_of_the_three_steps_changes_the_features(images: Tensor, digits: Images):
    for plain in (pixels(digits, 0, 5), images):
        first, second = (
            features(holder(number, "image").encrypt(plain, TEST), BLOCK) for number in (0, 1)
        )
        assert np.allclose(first, second, atol=1e-5)


def test_an_order_is_found_of_matrices_of_any_kind():
    generator = np.random.default_rng(0)
    known = correlations(generator.normal(size=(50, 4)) @ generator.normal(size=(4, 12)))
    truth = generator.permutation(12)
    found = best_orders(known[np.ix_(truth, truth)], known, generator)[0]
    assert np.allclose(known[np.ix_(found, found)], known[np.ix_(truth, truth)])


@pytest.mark.parametrize("flipped", [[], [0], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_signs_follow_from_neighbours(flipped: list[int]):
    near: Matrix = 0.5 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6))).astype(np.float64)
    truth = np.ones(6)
    truth[flipped] = -1
    assert abs(signs(near * np.outer(truth, truth)) @ truth) == 6


def test_a_square_has_eight_symmetries_and_a_rectangle_four():
    assert len({tuple(image) for image in mirror_images(4, 4)}) == 8
    assert len({tuple(image) for image in mirror_images(2, 3)}) == 4


def test_shares_of_a_key_are_told_as_a_reader_counts_them():
    truth = {
        "negative_positive": torch.tensor([True, False, False, False]),
        "pixel_shuffling": torch.arange(4),
        "block_scrambling": torch.tensor([1, 0]),
    }
    guess = {
        "negative_positive": torch.tensor([False, True, True, True]),
        "pixel_shuffling": torch.tensor([1, 0, 3, 2]),  # mirrored left to right
        "block_scrambling": torch.tensor([1, 0]),
    }
    assert measures.share_of_mask(guess, truth) == 0
    assert measures.share_of_mask(guess, truth, up_to_all=True) == 1
    assert measures.share_of_places(guess, truth, 2) == 0
    assert measures.share_of_places(guess, truth, 2, up_to_mirrored=True) == 1
    assert measures.share_of_blocks(guess, truth) == 1


def test_a_table_shows_mean_and_deviation_over_keys(capsys: pytest.CaptureFixture[str]):
    show("n", [{3: {"mask": 1.0, "places": 0.5}}, {3: {"mask": 1.0, "places": 1.0}}])
    assert capsys.readouterr().out.splitlines() == [
        "",
        "| n | mask | places |",
        "|--:|--:|--:|",
        "| 3 | 100.0 ± 0.0 | 75.0 ± 35.4 |",
    ]


def test_a_curious_server_aggregates_as_fedavg_and_sends_its_notes_to_nobody():
    server, model = CuriousFedAvg(), {WEIGHT: torch.zeros(2, 1, 1, 1)}
    updates = [
        Update(client=client, samples=1, loss=0.0, delta={WEIGHT: torch.full((2, 1, 1, 1), value)})
        for client, value in ((0, 1.0), (3, 3.0))
    ]
    after, _ = server.aggregate(model, updates, {})
    assert torch.equal(after[WEIGHT], FedAvg().aggregate(model, updates, {})[0][WEIGHT])
    assert torch.equal(server.notes.steps[0], torch.full((2, 1), 2.0))
    assert {client: float(sent[0]) for client, sent in server.notes.uploads[0].items()} == {
        0: 1.0,
        3: 3.0,
    }
    assert type(pickle.loads(pickle.dumps(server))) is FedAvg
