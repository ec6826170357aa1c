"""A column names the client of each image: exactly, in every layout with columns, or not at all."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fl_vitlora.config import Config, load
from fl_vitlora.data import stored
from fl_vitlora.data.clients import name_of, number_owners
from fl_vitlora.data.images import Images
from fl_vitlora.data.sources import load_source
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import prepare_images

WARDS = ["north", "south", "north", "east", "south", "north"]
TESTED = ["east", "south", "north"]
CLASSES = ["cat", "dog", "dog", "cat", "cat", "cat"]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    stored.cache_folder.cache_clear()
    yield
    stored.cache_folder.cache_clear()


def picture(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, "PNG")
    return file.getvalue()


Rows = list[dict[str, Any]]


def rows_of(wards: list[Any], split: str, start: int = 0) -> Rows:
    return [
        {"file_name": f"{start + i}.png", "label": CLASSES[i], "split": split, "ward": ward}
        for i, ward in enumerate(wards)
    ]


def write_images(root: Path, rows: Rows) -> None:
    for row in rows:
        (root / row["file_name"]).write_bytes(picture(int(row["file_name"].partition(".")[0])))


def as_csv(root: Path, rows: Rows) -> None:
    write_images(root, rows)
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def as_json(root: Path, rows: Rows) -> None:
    write_images(root, rows)
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def by_split(rows: Rows) -> dict[str, datasets.Dataset]:
    found = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        own = [row for row in rows if row["split"] == split]
        images = [picture(int(row["file_name"].partition(".")[0])) for row in own]
        columns: dict[str, list[Any]] = {"image": images}
        for key in {"label", "ward"} & own[0].keys():
            columns[key] = [row[key] for row in own]
        found[split] = datasets.Dataset.from_dict(columns)
    return found


def as_saved(root: Path, rows: Rows) -> None:
    datasets.DatasetDict(by_split(rows)).save_to_disk(str(root))


def as_parquet(root: Path, rows: Rows) -> None:
    for split, own in by_split(rows).items():
        own.to_parquet(str(root / f"{split}-00000-of-00001.parquet"))


def as_tars(root: Path, rows: Rows, *, apart: bool) -> None:
    """Writes the ward into the JSON member, or into a text member of its own."""
    for split in dict.fromkeys(row["split"] for row in rows):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for row in (row for row in rows if row["split"] == split):
                stem = row["file_name"].partition(".")[0]
                said = {"label": row["label"], **({} if apart else {"ward": row["ward"]})}
                members = {"png": picture(int(stem)), "json": json.dumps(said).encode()}
                if apart:
                    members["ward"] = f"{row['ward']}\n".encode()
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{stem}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def as_json_tars(root: Path, rows: Rows) -> None:
    as_tars(root, rows, apart=False)


def as_text_tars(root: Path, rows: Rows) -> None:
    as_tars(root, rows, apart=True)


LAYOUTS = [as_csv, as_json, as_saved, as_parquet, as_json_tars, as_text_tars]
Layout = Callable[[Path, Rows], None]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def configured(root: Path, **changed: Any) -> Config:
    given = {"data.client_column": "ward", "data.partition": "natural", "data.min_samples": 1}
    return load(None, {"data.name": str(root), "clients": 3, **given, **changed})


def greys(images: Images, positions: Any) -> list[int]:
    return sorted(images.read(np.asarray(positions), 4, 4)[:, 0, 0, 0].tolist())


def refusal(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        prepare_images(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@every_layout
def test_each_client_gets_the_images_of_its_value(tmp_path: Path, layout: Layout) -> None:
    layout(tmp_path, [*rows_of(WARDS, "train"), *rows_of(TESTED, "test", start=6)])
    images = prepare_images(configured(tmp_path, **{"evaluation.by": "clients"}))
    assert images.names == ("north", "south", "east")  # the largest first
    assert images.summary.endswith("; clients: north, south, east")
    assert [greys(images.train, part) for part in images.parts] == [[0, 2, 5], [1, 4], [3]]
    assert [greys(images.test, part) for part in images.test_parts] == [[8], [7], [6]]
    assert images.train.class_names == ("cat", "dog")  # the wards are no classes


@every_layout
def test_a_missing_column_is_refused_with_the_nearest_one(tmp_path: Path, layout: Layout) -> None:
    layout(tmp_path, [*rows_of(WARDS, "train"), *rows_of(TESTED, "test", start=6)])
    told = refusal(configured(tmp_path, **{"data.client_column": "wards"}))
    assert "unknown data.client_column 'wards'; did you mean 'ward'?" in told


@pytest.mark.parametrize(
    ("layout", "missing", "place"),
    [
        (as_csv, "", "metadata.csv, line 4, column 'ward'"),
        (as_csv, "  ", "metadata.csv, line 4, column 'ward'"),
        (as_json, None, "metadata.jsonl, line 3, column 'ward'"),
        (as_saved, None, "split train, column 'ward', row 2 (counted from 0)"),
        (as_parquet, " ", "split train, column 'ward', row 2 (counted from 0)"),
        (as_json_tars, None, "train.tar, member 2.json, key 'ward'"),
        (as_text_tars, "", "train.tar, member 2.ward"),
    ],
)
def test_a_row_without_a_client_is_refused_by_its_name(
    tmp_path: Path, layout: Layout, missing: str | None, place: str
) -> None:
    wards = [*WARDS[:2], missing, *WARDS[3:]]
    layout(tmp_path, [*rows_of(wards, "train"), *rows_of(TESTED, "test", start=6)])
    assert refusal(configured(tmp_path)).endswith(f"{place}: no client")


def test_a_class_label_names_clients_and_its_mark_for_nothing_is_refused(tmp_path: Path) -> None:
    """The column of the clients is not taken for the labels, though it has more classes."""
    kinds = datasets.Features(
        {
            "image": datasets.Value("binary"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "ward": datasets.ClassLabel(names=["north", "south", "east"]),
        }
    )
    for place, wards in (("right", [0, 1, 0, 2]), ("wrong", [0, 1, -1, 2])):
        columns = {"image": [picture(i) for i in range(4)], "label": [0, 1, 0, 1], "ward": wards}
        rows = datasets.Dataset.from_dict(columns, kinds)
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / place))
    images = prepare_images(configured(tmp_path / "right"))
    assert images.names == ("north", "east", "south")
    assert images.train.class_names == ("cat", "dog")
    assert "row 2 (counted from 0): no client" in refusal(configured(tmp_path / "wrong"))


def test_names_are_compared_exactly_and_across_splits(tmp_path: Path) -> None:
    wards: list[Any] = ["a", "A", "a ", "a", "1", "01"]
    as_json(tmp_path, [*rows_of(wards, "train"), *rows_of(["01", "a ", "a"], "test", start=6)])
    images = prepare_images(configured(tmp_path, clients=5))
    assert sorted(map(str, images.names)) == ["01", "1", "A", "a", "a "]
    assert images.test.owners is not None
    found = [images.test.clients[owner] for owner in images.test.owners.tolist()]
    assert found == ["01", "a ", "a"]


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (["1", 1, 2, 3, 1, 2], [1, 2, 3], "line 2, column 'ward': expected a text as the name"),
        ([1, 2, 3, 1, 2, 3.0], [1, 2, 3], "line 6, column 'ward': expected the name of a client"),
        ([1, 2, 3, 1, 2, [3]], [1, 2, 3], "line 6, column 'ward': expected the name of a client"),
        (
            [1, 2, 3, 1, 2, 3],
            ["1", "2", "3"],
            "the training split names clients by a whole number, but the split test names them by "
            "a text",
        ),
    ],
)
def test_values_that_only_a_conversion_could_compare_are_refused(
    tmp_path: Path, train: list[Any], test: list[Any], told: str
) -> None:
    as_json(tmp_path, [*rows_of(train, "train"), *rows_of(test, "test", start=6)])
    assert told in refusal(configured(tmp_path))


def test_the_number_of_clients_is_the_number_of_values(tmp_path: Path) -> None:
    as_csv(tmp_path, [*rows_of(WARDS, "train"), *rows_of(TESTED, "test", start=6)])
    told = refusal(configured(tmp_path, clients=4))
    assert told.endswith("images of 3 clients (east, north, south); set --clients 3")


@pytest.mark.parametrize(
    ("tested", "told"),
    [
        (["north", "south"], "expected test images of every client, found none of east"),
        (["north", "south", "east", "west"], "1 test image of clients without training images"),
    ],
)
def test_clients_that_evaluate_all_have_test_images_and_all_of_them(
    tmp_path: Path, tested: list[str], told: str
) -> None:
    as_csv(tmp_path, [*rows_of(WARDS, "train"), *rows_of(tested, "test", start=6)])
    assert told in refusal(configured(tmp_path, **{"evaluation.by": "clients"}))
    assert len(prepare_images(configured(tmp_path)).test) == len(tested)  # the server uses all


def test_a_test_split_without_the_column_serves_the_server_alone(tmp_path: Path) -> None:
    test = rows_of(TESTED, "test", start=6)
    for row in test:
        del row["ward"]
    as_saved(tmp_path, [*rows_of(WARDS, "train"), *test])
    assert len(prepare_images(configured(tmp_path)).test) == 3
    told = refusal(configured(tmp_path, **{"evaluation.by": "clients"}))
    assert "the test split has no column data.client_column" in told


def test_another_partition_mixes_the_clients_and_says_so(tmp_path: Path) -> None:
    as_csv(tmp_path, [*rows_of(WARDS, "train"), *rows_of(TESTED, "test", start=6)])
    images = prepare_images(configured(tmp_path, **{"data.partition": "iid"}))
    assert images.names == ()
    assert "the images of all clients are mixed and divided again" in images.summary


def test_what_has_no_columns_has_no_column_of_clients(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(picture(1))
    assert "has folders of images and no columns" in refusal(configured(tmp_path))
    told = refusal(configured(tmp_path, **{"data.name": "digits"}))
    assert "expected this column in the training split of digits" in told


def test_a_column_of_images_names_no_client(tmp_path: Path) -> None:
    columns = {"image": [picture(1)], "label": [1], "ward": [picture(1)]}
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "ward": datasets.Image()}
    )
    rows = datasets.Dataset.from_dict(columns, kinds)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path))
    told = refusal(configured(tmp_path, **{"data.image_column": "image"}))
    assert "data.client_column ward: expected a column of names of clients, got the type" in told


@given(names=st.lists(st.text(min_size=1), min_size=1) | st.lists(st.integers(), min_size=1))
def test_numbers_and_names_give_the_column_back(names: list[Any]) -> None:
    owners, distinct = number_owners(names, str)
    assert [distinct[owner] for owner in owners] == names
    assert list(distinct) == sorted(set(names))


@pytest.mark.parametrize("value", [None, "", "\t", float("nan")])
def test_nothing_is_no_name(value: Any) -> None:
    with pytest.raises(UserError, match="row 3: no client"):
        name_of(value, "row 3")


def test_names_of_folders_reach_the_run_as_those_of_columns_do(tmp_path: Path) -> None:
    for client, images in (("x", 2), ("y", 3)):
        for name in ("cat", "dog"):
            (tmp_path / client / name).mkdir(parents=True)
            for number in range(images):
                (tmp_path / client / name / f"{number}.png").write_bytes(picture(number))
    given = {"data.partition": "natural", "clients": 2, "data.name": str(tmp_path)}
    config = load(None, {**given, "data.min_samples": 1})
    assert set(prepare_images(config).names) == {"x", "y"}
    assert load_source(config.data).train.clients == ("x", "y")
