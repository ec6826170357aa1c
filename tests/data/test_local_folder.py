"""Stored data sets and tables: read as they are, or refused in one line with row and column."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from fl_vitlora.config import DataConfig
from fl_vitlora.data import stored
from fl_vitlora.data.sources import Images, Source, load_source
from fl_vitlora.errors import UserError

NAMES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
)


@pytest.fixture(autouse=True)
def _local(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, calls: list[Any]
) -> Any:
    """Gives the library a cache of its own, and holds all tests here to not calling out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    stored.cache_folder.cache_clear()
    yield
    stored.cache_folder.cache_clear()
    assert calls == []


def picture(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (2, 2), grey).save(file, "PNG")
    return file.getvalue()


def labelled(labels: list[Any], features: Any = NAMES, **columns: list[Any]) -> datasets.Dataset:
    images = [{"bytes": picture(number), "path": None} for number in range(len(labels))]
    return datasets.Dataset.from_dict({"image": images, "label": labels, **columns}, features)


def read(root: Path, **settings: Any) -> Source:
    return load_source(DataConfig(name=str(root), **settings))


def refusal(root: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        source = read(root, **settings)
        for images in (source.train, source.test):
            images.read(np.arange(len(images)), 2, 2)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def greys(images: Images) -> list[int]:
    return [int(p) for p in images.read(np.arange(len(images)), 2, 2)[:, 0, 0, 0]]


def classes(images: Images) -> list[str]:
    return [images.class_names[label] for label in images.labels]


def save(root: Path, **splits: datasets.Dataset) -> Path:
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return root


# Classes by name.


def test_splits_that_number_their_classes_differently_are_matched_by_name(tmp_path: Path):
    """Three dogs once counted as cats."""
    other = datasets.Features({**NAMES, "label": datasets.ClassLabel(names=["dog", "cat"])})
    root = save(tmp_path / "a", train=labelled([0, 0, 1]), test=labelled([0, 0, 0, 1], other))
    source = read(root)
    assert source.train.class_names == source.test.class_names == ("cat", "dog")
    assert classes(source.train) == ["cat", "cat", "dog"]
    assert classes(source.test) == ["dog", "dog", "dog", "cat"]


def test_names_and_plain_values_are_matched_by_name_too(tmp_path: Path):
    text = datasets.Features({**NAMES, "label": datasets.Value("string")})
    root = save(tmp_path, train=labelled([0, 1]), test=labelled(["dog", "cat"], text))
    assert classes(read(root).test) == ["dog", "cat"]


def test_a_class_that_no_training_image_can_have_is_refused_by_name(tmp_path: Path):
    more = datasets.ClassLabel(names=["dog", "Cat", "eel"])
    other = datasets.Features({**NAMES, "label": more})
    root = save(tmp_path / "a", train=labelled([0, 1]), test=labelled([0, 2], other))
    assert "the split test has classes that the training split does not have: 'eel'" in refusal(
        root
    )
    root = save(tmp_path / "b", train=labelled([0, 1]), test=labelled([0, 1], other))
    assert "'Cat'; did you mean 'cat'? (training: cat, dog)" in refusal(root)
    root = save(tmp_path / "c", train=labelled([0, 1]), test=labelled([0, 0], other))
    assert classes(read(root).test) == ["dog", "dog"]  # eel is named, and no image is one


# Nothing values.


@pytest.mark.parametrize(
    ("kind", "labels", "told"),
    [
        ("string", ["a", "b", None], "row 2 (counted from 0): no label"),
        ("string", ["a", "b", " "], "row 2 (counted from 0): no label"),
        ("int64", [0, 1, None], "row 2 (counted from 0): no label"),
        ("int64", [0, -1, 1], "row 1 (counted from 0): no label (-1)"),
        ("float64", [0.0, float("nan"), 1.0], "row 1 (counted from 0): no label"),
        (
            "float64",
            [0.0, 1.0, 0.5],
            "row 2 (counted from 0): expected a class name or a whole number, got",
        ),
        ("string", ["a", "a", "a"], "at least two classes, found 3 images, all of class 'a'"),
    ],
)
def test_a_label_that_is_none_is_refused(tmp_path: Path, kind: str, labels: list[Any], told: str):
    features = datasets.Features({**NAMES, "label": datasets.Value(kind)})
    labelled(labels, features).save_to_disk(str(tmp_path / "a"))
    answer = refusal(tmp_path / "a")
    assert told in answer
    assert "row" not in told or "column 'label'" in answer


@pytest.mark.parametrize("mark", [None, -1])
def test_a_class_label_that_is_none_is_refused(tmp_path: Path, mark: int | None):
    labelled([0, 1, mark] * 4).save_to_disk(str(tmp_path / "a"))
    assert "column 'label', row 2 (counted from 0): no label" in refusal(tmp_path / "a")


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        ("bool", [True, False], ("False", "True")),
        ("float64", [10.0, 9.0], ("9", "10")),
        ("int64", [-1, 1], ("-1", "1")),
        ("string", ["b ", "a"], ("a", "b")),
    ],
)
def test_labels_of_any_kind_are_names(
    tmp_path: Path, kind: str, labels: list[Any], names: tuple[str, ...]
):
    features = datasets.Features({**NAMES, "label": datasets.Value(kind)})
    root = save(tmp_path, train=labelled(labels, features), test=labelled(labels, features))
    source = read(root)
    assert source.train.class_names == names
    assert classes(source.train) == classes(source.test)


def test_an_image_that_is_none_is_refused(tmp_path: Path):
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": picture(0), "path": None}, None, None], "label": [0, 1, 1]}, NAMES
    )
    data.save_to_disk(str(tmp_path / "a"))
    assert "column 'image', row 1 (counted from 0): expected an image, found none" in refusal(
        tmp_path / "a"
    )


def test_a_test_split_without_labels_is_passed_over_with_a_word(tmp_path: Path):
    whole, bare = labelled([0, 1, 0]), labelled([-1, -1])
    source = read(save(tmp_path / "a", train=whole, validation=labelled([1, 1]), test=bare))
    assert classes(source.test) == ["dog", "dog"]
    assert "(the split validation)" in source.told
    assert "not used: split test (2 images)" in source.told
    root = save(tmp_path / "b", train=labelled([0, 1] * 5), test=bare)
    assert "the images of test have no labels" in refusal(root)
    assert len(read(root, test_split="none").test) == 2
    some = save(tmp_path / "c", train=whole, test=labelled([0, -1]))
    assert "split test, column 'label', row 1 (counted from 0): no label (-1)" in refusal(some)


def test_splits_are_settings(tmp_path: Path):
    root = save(tmp_path, old=labelled([0, 1]), new=labelled([1, 1]), other=labelled([0]))
    assert "no split for training among old, new, other" in refusal(root)
    source = read(root, train_split="old", test_split="new")
    assert classes(source.test) == ["dog", "dog"]
    assert "split other (1 image)" in source.told
    assert "unknown data.train_split 'old[:10%]'; did you mean" in refusal(
        root, train_split="old[:10%]"
    )
    only = save(tmp_path / "only", test=labelled([0, 1]))
    assert "no split for training among test" in refusal(only)


# Images as files, bytes and addresses.


def by_path(paths: list[Any], kind: Any = None) -> datasets.Dataset:
    """Stores paths alone, as the library itself never does."""
    features = datasets.Features({"image": kind or datasets.Image(), "label": NAMES["label"]})
    values = [{"bytes": None, "path": path} for path in paths] if kind is None else paths
    return datasets.Dataset.from_dict(
        {"image": values, "label": [n % 2 for n in range(len(paths))]}, features
    )


def store(root: Path, data: datasets.Dataset, **state: Any) -> Path:
    """Writes what `save_to_disk` writes, without reading the images."""
    import pyarrow as pa

    root.mkdir(parents=True, exist_ok=True)
    table, place = data.data.table, str(root / "data-0.arrow")
    with pa.OSFile(place, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    told = {"_data_files": [{"filename": "data-0.arrow"}], "_fingerprint": "x", "_split": None}
    told |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None} | state
    (root / "state.json").write_text(json.dumps({"_output_all_columns": False} | told))
    info = {"features": data.features.to_dict()}
    (root / "dataset_info.json").write_text(json.dumps(info))
    return root


OUTSIDE = [
    ("https://example.org/a.png", "is a web address (URL); images are read only from files"),
    ("http://127.0.0.1:9/a.png", "is a web address (URL)"),
    ("s3://bucket/a.png", "is a web address (URL)"),
    ("hf://datasets/a/b.png", "is a web address (URL)"),
    ("file:///etc/hostname", "is a web address (URL)"),
    ("zip://a.png::https://example.org/b.zip", "is a web address (URL)"),
    ("a.png::http://example.org/b.zip", "is a web address (URL)"),
    ("/etc/hostname", "leads outside of the data set's folder"),
    ("../secret.png", "leads outside of the data set's folder"),
    ("sub/../../secret.png", "leads outside of the data set's folder"),
    ("link.png", "leads outside of the data set's folder"),
    ("nowhere.png", "there is no file 'nowhere.png' in"),
    ("", "expected the path of an image"),
    ("a" * 300, "there is no file"),
    (".", "there is no file"),
]


def furnish(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root.parent / "secret.png").write_bytes(picture(1))
    for number in range(4):
        (root / f"{number}.png").write_bytes(picture(number))
    (root / "link.png").symlink_to(root.parent / "secret.png")


@pytest.mark.parametrize(("path", "told"), OUTSIDE)
def test_a_saved_data_set_opens_no_address_and_no_file_elsewhere(
    tmp_path: Path, path: str, told: str
):
    furnish(tmp_path / "a")
    for kind in (None, datasets.Value("string")):
        root = store(tmp_path / "a", by_path(["0.png", "1.png", path], kind))
        answer = refusal(root)
        assert told in answer
        assert "column 'image', row 2 (counted from 0)" in answer


@pytest.mark.parametrize(("path", "told"), OUTSIDE)
def test_a_table_opens_no_address_and_no_file_elsewhere(tmp_path: Path, path: str, told: str):
    furnish(tmp_path / "a")
    rows = f'file_name,label\n0.png,a\n1.png,b\n"{path}",b\n'
    (tmp_path / "a" / "metadata.csv").write_text(rows)
    answer = refusal(tmp_path / "a")
    assert told in answer
    assert "metadata.csv, line 4, column 'file_name'" in answer


def test_paths_within_a_saved_data_set_are_read(tmp_path: Path):
    furnish(tmp_path / "a")
    data = by_path([f"{number}.png" for number in range(4)])
    root = store(tmp_path / "a", data)
    source = read(root, test_fraction=0.5)
    assert sorted(greys(source.train) + greys(source.test)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "kind",
    [
        datasets.Value("binary"),
        datasets.Value("large_binary"),
        {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        {"bytes": datasets.Value("binary")},
    ],
    ids=str,
)
def test_bytes_without_a_word_that_they_are_images_are_images(tmp_path: Path, kind: Any):
    values: list[Any] = [picture(number) for number in range(4)]
    if isinstance(kind, dict):
        values = [dict.fromkeys(kind) | {"bytes": value} for value in values]
    features = datasets.Features({"img": kind, "label": NAMES["label"]})
    data = datasets.Dataset.from_dict({"img": values, "label": [0, 1, 0, 1]}, features)
    data.save_to_disk(str(tmp_path / "a"))
    source = read(tmp_path / "a", test_fraction=0.5)
    assert sorted(greys(source.train) + greys(source.test)) == [0, 1, 2, 3]


def test_sixteen_bits_in_a_saved_data_set_are_scaled(tmp_path: Path):
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 65535], [32896, 257]], np.uint16)).save(file, "PNG")
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": file.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]}, NAMES
    )
    data.save_to_disk(str(tmp_path / "a"))
    pixels = read(tmp_path / "a", test_fraction=0.5).train.read(np.array([0]), 2, 2)
    assert pixels[0, 0].tolist() == [[0, 255], [128, 1]]


@pytest.mark.parametrize(("brightest", "told"), [(16383, True), (65535, False)])
def test_images_of_14_bits_in_16_are_told(tmp_path: Path, brightest: int, told: bool):
    """They may be dark images of 16 bits; nobody but the user can know."""
    file = io.BytesIO()
    Image.fromarray(np.array([[0, brightest]], np.uint16)).save(file, "PNG")
    images = [{"bytes": file.getvalue(), "path": None}] * 6
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}, NAMES)
    data.save_to_disk(str(tmp_path / "a"))
    assert ("no value above 16383 of 65535" in read(tmp_path / "a", test_fraction=0.4).told) == told
    stated = read(tmp_path / "a", test_fraction=0.4, pixel_range=(0, brightest))
    assert "65535" not in stated.told
    assert stated.train.read(np.array([0]), 1, 2)[0, 0].tolist() == [[0, 255]]


def test_a_list_of_links_is_refused(tmp_path: Path):
    root = tmp_path / "a"
    root.mkdir()
    (root / "train.csv").write_text("url,label\nhttps://x.org/a.png,a\nhttps://x.org/b.png,b\n")
    assert "line 2, column 'url': 'https://x.org/a.png' is a web address (URL)" in refusal(root)
    many = datasets.Features(
        {"image": datasets.Sequence(datasets.Value("string")), "label": NAMES["label"]}
    )
    data = datasets.Dataset.from_dict({"image": [["a"], ["b"]], "label": [0, 1]}, many)
    data.save_to_disk(str(tmp_path / "b"))
    assert "expected images, got values of the type List" in refusal(
        tmp_path / "b", image_column="image"
    )


@pytest.mark.parametrize("where", ["data", "split", "indices"])
def test_a_saved_data_set_names_files_of_its_own(tmp_path: Path, where: str):
    data = labelled([0, 1])
    foreign = [{"filename": "../other/data-0.arrow"}]
    state = {"data": {"_data_files": foreign}, "indices": {"_indices_files": foreign}}
    store(tmp_path / "other", data)
    root = store(tmp_path / "a", data, **state.get(where, {}))
    if where == "split":
        (root / "dataset_dict.json").write_text('{"splits": ["../other"]}')
        assert "'../other' is not a valid name of a split" in refusal(root)
    else:
        assert "expected only files in its own folder, got '../other/data-0.arrow'" in refusal(root)


def test_nothing_of_a_folder_is_executed(tmp_path: Path):
    """A script with the folder's name was once how data sets were loaded."""
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    for number, name in enumerate(("a", "b")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for image in range(3):
            (tmp_path / "set" / name / f"{image}.png").write_bytes(picture(number))
    for script in ("set.py", "images.py", "__init__.py", "a/conftest.py"):
        (tmp_path / "set" / script).write_text(trap)
    source = read(tmp_path / "set", test_fraction=0.5)
    assert "4 .py" in source.told
    assert not (tmp_path / "sprung").exists()


# Parquet, tar files and tables.


def test_a_clone_of_a_parquet_data_set_is_read(tmp_path: Path):
    root = tmp_path / "clone [x] *"
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("---\nconfigs: []\n---\n")
    labelled([0, 1] * 3).to_parquet(str(root / "data" / "train-00000-of-00002.parquet"))
    labelled([1, 1]).to_parquet(str(root / "data" / "train-00001-of-00002.parquet"))
    labelled([1, 0]).to_parquet(str(root / "data" / "test-00000-of-00001.parquet"))
    source = read(root)
    assert (classes(source.train), classes(source.test)) == (
        ["cat", "dog"] * 3 + ["dog", "dog"],
        ["dog", "cat"],
    )
    assert greys(source.test) == [0, 1]
    assert "not used" not in source.told


def test_configurations_of_a_clone_are_a_setting(tmp_path: Path):
    for name, labels in (("fine", [0, 1]), ("coarse", [1, 0])):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            labelled(labels).to_parquet(str(tmp_path / name / f"{split}.parquet"))
    assert "found the configurations coarse, fine; choose one: --set data.config" in refusal(
        tmp_path
    )
    assert "choose one" in refusal(tmp_path, config="other")
    assert classes(read(tmp_path, config="coarse").train) == ["dog", "cat"]


def test_parquet_files_that_number_their_classes_differently_are_matched_by_name(tmp_path: Path):
    """The library takes the names of the first file for all others."""
    other = datasets.Features({**NAMES, "label": datasets.ClassLabel(names=["dog", "cat"])})
    labelled([0, 1, 0]).to_parquet(str(tmp_path / "train-0.parquet"))
    labelled([0, 0, 1], other).to_parquet(str(tmp_path / "test-0.parquet"))
    assert classes(read(tmp_path).test) == ["dog", "dog", "cat"]
    labelled([0, 1], other).to_parquet(str(tmp_path / "train-1.parquet"))
    assert "expected the same columns and class names in all files" in refusal(tmp_path)


def test_damaged_parquet_is_one_line(tmp_path: Path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
    assert f"data set {tmp_path}: expected a saved data set, parquet files" in refusal(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x")
    assert "was not downloaded; run this command in the folder: git lfs pull" in refusal(tmp_path)


def test_parquet_beside_images_is_refused(tmp_path: Path):
    labelled([0, 1]).to_parquet(str(tmp_path / "train.parquet"))
    furnish(tmp_path / "a")
    assert "found parquet files and images, but only one kind" in refusal(tmp_path)


def test_a_home_that_cannot_be_written_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    labelled([0, 1] * 3).to_parquet(str(tmp_path / "train.parquet"))
    home = tmp_path / "home"
    home.write_text("")  # a file holds no folder, whoever asks; root may write into any folder
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "cache")
    assert len(read(tmp_path, test_fraction=0.4).train) == 3
    assert not stored.cache_folder().is_relative_to(home)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_tar_files_of_a_webdataset_are_read(tmp_path: Path):
    train = {f"x/{n:03}.png": picture(n) for n in range(3)}
    train = {f"./{name}": content for name, content in train.items()}
    train |= {f"./x/{n:03}.cls": str(n % 2 + 9).encode() for n in range(3)}
    train["./x/000.pickle"] = b"cos\nsystem\n(S'false'\ntR."  # is never opened
    write_tar(tmp_path / "train-000.tar", train)
    told = {"7.png": picture(7), "7.json": json.dumps({"label": 10, "caption": "x"}).encode()}
    write_tar(tmp_path / "test-000.tar", {**told, "readme.md": b"x"})
    source = read(tmp_path)
    assert source.train.class_names == ("9", "10")
    assert greys(source.train) == [0, 1, 2]
    assert (greys(source.test), classes(source.test)) == ([7], ["10"])
    assert "1 member of tar files" in source.told


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"a.png": b""}, "member a.png: no label among the suffixes ['png']"),
        ({"a.png": b"", "a.cls": b" "}, "member a.cls: no label"),
        ({"a.png": b"", "a.json": b"[1]"}, "member a.json: expected a JSON object"),
        ({"a.png": b"", "a.json": b'{"label": null}'}, "member a.json, key 'label': no label"),
        ({"a.png": b"", "a.seg.png": b"", "a.cls": b"1"}, "sample a: expected one image, found"),
        ({"a.cls": b"1"}, "expected images, found no images in 1 tar file"),
        ({"../../a.png": b"x", "../../a.cls": b"1"}, "at least two classes"),
    ],
    ids=str,
)
def test_what_a_tar_file_lacks_is_named(tmp_path: Path, members: dict[str, bytes], told: str):
    write_tar(tmp_path / "train.tar", members)
    assert told in refusal(tmp_path)
    (tmp_path / "train.tar").write_bytes(b"no tar")
    assert "train.tar cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("tables", "settings"),
    [
        ({"metadata.csv": "file_name,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n"}, {}),
        (
            {
                "metadata.csv": "file_name,label,split\n0.png,a,train\n1.png,b,train\n"
                "2.png,a,test\n3.png,b,test\n"
            },
            {},
        ),
        (
            {
                "train.csv": "\ufeffimage,class\n./0.png, a\n1.png,b\n",
                "test.csv": "image,class\n2.png,a\n3.png,b\n",
            },
            {},
        ),
        ({"train.tsv": "x\ty\n0.png\ta\n1.png\tb\n", "val.tsv": "x\ty\n2.png\ta\n3.png\tb\n"}, {}),
        (
            {
                "metadata.jsonl": '{"file_name": "0.png", "kind": "a", "n": 1}\n'
                '{"file_name": "1.png", "kind": "b", "n": 2}\n\n'
                '{"file_name": "2.png", "kind": "a", "n": 3}\n'
                '{"file_name": "3.png", "kind": "b", "n": 4}\n'
            },
            {"label_column": "kind"},
        ),
        ({"whatever.csv": "id,species\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n"}, {}),
    ],
    ids=["csv", "split column", "train and test", "tsv", "jsonl", "the only table"],
)
def test_tables_of_paths_are_read(tmp_path: Path, tables: dict[str, str], settings: dict[str, Any]):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    for name, content in tables.items():
        (tmp_path / name).write_text(content)
    source = read(tmp_path, test_fraction=0.5, **settings)
    both = dict(zip(greys(source.train), classes(source.train), strict=True))
    test = dict(zip(greys(source.test), classes(source.test), strict=True))
    assert both | test == {0: "a", 1: "b", 2: "a", 3: "b"}
    assert not both.keys() & test.keys()
    if len(tables) == 2 or "split" in next(iter(tables.values())):
        assert set(both) == {0, 1}


def test_metadata_in_the_folders_of_splits_is_read(tmp_path: Path):
    for split in ("train", "test"):
        furnish(tmp_path / split)
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n")
    source = read(tmp_path)
    assert (classes(source.train), classes(source.test)) == (["a", "b"], ["a", "b"])
    assert "7 images that no table names" in source.told


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("file_name,label\n0.png,a\n1.png,\n", "line 3, column 'label': no label"),
        ("file_name,label\n0.png,a\n1.png\n", "line 3, column 'label': no label"),
        ("file_name,label\n0.png,a\n,b\n", "line 3, column 'file_name': expected the path"),
        ("file_name,label\n0.png,a\n1.png,b,c\n", "line 3: found more fields than columns"),
        ("file_name,label\n0.png,a\n0.png,b\n", "line 3: the image 0.png is already in"),
        ("file_name,label\n0.png,a\n./0.png,a\n", "line 3: the image 0.png is already in"),
        ("file_name,label\n0.png,1\n1.png,-1\n2.png,0\n", "line 3: no label (-1)"),
        ("file_name,label,split\n0.png,a,train\n1.png,b,\n", "line 3, column 'split': expected"),
        ("file_name,label\n", "expected rows in the table metadata.csv"),
        ("", "expected rows in the table metadata.csv"),
        ("x,y,z\n1,2,3\n", "expected one column of image paths among ['x', 'y', 'z']"),
        ("file_name,y,z\n0.png,2,3\n", "found no label column among ['file_name', 'y', 'z']"),
        ("file_name,label\n0.png,a\n1.png,\xff\n", "metadata.csv cannot be read"),
        ('file_name,label\n0.png,"a\n', "metadata.csv cannot be read"),
    ],
)
def test_what_a_table_lacks_is_named(tmp_path: Path, table: str, told: str):
    furnish(tmp_path / "a")
    (tmp_path / "a" / "metadata.csv").write_bytes(table.encode("latin-1"))
    assert told in refusal(tmp_path / "a")


@pytest.mark.parametrize("setting", ["image_column", "label_column"])
def test_a_column_that_a_table_lacks_is_refused(tmp_path: Path, setting: str):
    furnish(tmp_path / "a")
    (tmp_path / "a" / "metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n")
    assert "has no column 'q', only ['file_name', 'label']" in refusal(
        tmp_path / "a", **{setting: "q"}
    )
