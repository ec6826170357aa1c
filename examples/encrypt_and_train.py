"""Encrypt two owners' folders of images, and train on the ciphertext alone.

    python encrypt_and_train.py

Look at the two accuracies. The training site has shards and storage keys, and no key of the images,
so it can only measure the accuracy on ciphertext. The owners have the key ring, and with it the
model also classifies new plain images. The folders `photos`, `site` and `owners` show who has what.
"""

import subprocess
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import fl_vitlora as fv

OWNERS, KEPT = 2, 40  # the last images of each class are new images for the trained model
RING = Path("owners/shared.key")  # both owners encrypt with one key, which the site never gets


def write_images(folder: Path, numbers: range) -> None:
    """Writes digits of scikit-learn as PNG files, with a folder for each class."""
    digits = load_digits()
    for number in numbers:
        place = folder / str(digits.target[number])
        place.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[number] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(place / f"{number:04}.png")


def encrypt(client: int) -> None:
    """Encrypts an owner's folder with the command that an owner would type."""
    words = f"fl-vitlora encrypt photos/{client} site/shards --client {client} --key {RING}"
    words += f" --storage-key site/keys/client-{client:05}.key --model vit_letters_16"
    subprocess.run([*words.split(), "--test-fraction", "0.2"], check=True)


if __name__ == "__main__":
    count = len(load_digits().target) - KEPT
    for client in range(OWNERS):
        write_images(Path(f"photos/{client}"), range(client, count, OWNERS))
        encrypt(client)
    run = fv.run({"rounds": 12, "data.storage_keys": "site/keys"}, shards="site/shards")
    print(f"the site measures {run.accuracy:.1%} on ciphertext, in {run.folder}")

    write_images(Path("photos/new"), range(count, count + KEPT))
    owner = fv.load_run(run.folder, {"encryption.key_file": str(RING)})
    found = owner.predict("photos/new")
    right = [Path(n).parent.name == c for n, c in zip(found.names, found.classes, strict=True)]
    print(f"the owners classify {sum(right)} of {len(right)} new plain images correctly")
