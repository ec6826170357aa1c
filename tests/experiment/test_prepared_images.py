"""Who holds which images where folders say so, and what a person is told of the images."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fl_vitlora.config import Config, load, resolve, to_mapping
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import prepare_images
from fl_vitlora.reporting.console import ComparisonDisplay, RunDisplay


def client_folders(root: Path, images: dict[str, int]) -> Config:
    """Lays out folders of clients, with so many images of each class in each split."""
    for client, count in images.items():
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                place = root / client / split / name
                place.mkdir(parents=True)
                for number in range(count):
                    Image.new("L", (4, 4)).save(place / f"{number}.png")
    return load(None, {"data.name": str(root), "clients": len(images)})


def test_the_natural_partition_leaves_each_client_its_folder(tmp_path: Path) -> None:
    config = client_folders(tmp_path, {"a": 2, "b": 3})
    natural = resolve(to_mapping(config), {"data.partition": "natural", "evaluation.by": "clients"})
    images = prepare_images(natural)
    assert [len(part) for part in images.parts] == [6, 4]  # the largest first
    assert [len(part) for part in images.test_parts] == [6, 4]
    assert images.train.owners is not None
    assert images.test.owners is not None
    for client, owner in enumerate((1, 0)):
        assert set(images.train.owners[images.parts[client]]) == {owner}
        assert set(images.test.owners[images.test_parts[client]]) == {owner}
    assert "pooled" not in images.summary


def test_pooled_folders_of_clients_are_told(tmp_path: Path) -> None:
    config = client_folders(tmp_path, {"a": 3, "b": 4})
    pooled = resolve(to_mapping(config), {"data.layout": "clients", "data.partition": "iid"})
    assert (
        "are mixed and divided again (data.partition=iid; data.partition=natural"
        in prepare_images(pooled).summary
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"clients": 3}, "has training images of 2 clients; set --clients 2"),
        (
            {"data.min_samples": 5},
            "a client has only 4 training images, fewer than data.min_samples",
        ),
        ({"data.name": "digits"}, "digits does not have a folder for each client"),
    ],
)
def test_a_natural_partition_that_cannot_be_is_refused(
    tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    config = client_folders(tmp_path, {"a": 2, "b": 3})
    with pytest.raises(UserError, match=told):
        prepare_images(resolve(to_mapping(config), {"data.partition": "natural", **changed}))


@pytest.mark.parametrize("kind", [RunDisplay, ComparisonDisplay])
def test_what_is_told_of_the_images_is_one_line_on_the_console(
    kind: type[RunDisplay] | type[ComparisonDisplay],
) -> None:
    """The runs of a comparison say it once; whatever names of classes hold is shown as it is."""
    screen, line = io.StringIO(), f"data: {'many images ' * 20} of [bold]cats[/bold]"
    with kind(2, Console(file=screen, width=40)) as display:
        for _ in range(2):
            display.note(line)
    expected = 2 if kind is RunDisplay else 1
    assert screen.getvalue().splitlines().count(line) == expected
