"""Chooses the splits of a data set for training and for testing.

A split is a part of a data set, such as train or test. Upper and lower case do not matter in the
names of splits. Two splits are never joined. A message shows the names of the splits that are not
used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fl_vitlora.config import DataConfig
from fl_vitlora.errors import UserError, unknown

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS: Mapping[str, str] = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "eval": VALIDATION,
    "evaluation": VALIDATION,
    "test": TEST,
    "testing": TEST,
}
NONE = "none"  # with this value of data.test_split, a share of the training images is for testing


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen splits for training, testing and validation.

    Attributes:
        train: The name of the split for training.
        test: The name of the split for testing; None if a share of the training images is used for
            testing.
        unused: The names of all other splits of the data set.
        validation: The name of the split for validation; None if there is no validation split.
    """

    train: str
    test: str | None
    unused: tuple[str, ...]
    validation: str | None = None


def meaning_of(name: str) -> str | None:
    """Returns the use that a name means: train, validation or test; None for other names.

    Args:
        name: The name of a folder, a file or a split.

    Example:
        >>> meaning_of("Val"), meaning_of("test tube")
        ('validation', None)
    """
    return SPLITS.get(name.lower())


def choose_splits(
    where: str, names: Sequence[str], config: DataConfig, unlabelled: Collection[str] = ()
) -> Choice:
    """Chooses the splits for training and testing.

    Args:
        where: The name of the data set, for messages.
        names: The names of all splits of the data set.
        config: The settings of the data. The settings `data.train_split`, `data.test_split` and
            `data.validation_split` may name the splits to use.
        unlabelled: The names of the splits whose images have no labels. A split without labels is
            chosen for testing only if `test_split` names it.

    Returns:
        The names of the chosen splits and of the unused splits.

    Raises:
        UserError: When several splits fit, or when no split fits. The message names the setting
            that decides.

    Example:
        >>> choose_splits("photos", ["Train", "val", "test"], DataConfig())
        Choice(train='Train', test='test', unused=('val',), validation=None)
    """
    train, validation = _train(where, names, config), None
    if config.validation_split:
        validation = _named("data.validation_split", config.validation_split, names)
    if config.test_split == NONE:
        test = None
    elif config.test_split:
        test = _named("data.test_split", config.test_split, names)
    else:
        test = _test(where, names, (train, validation), unlabelled)
    _expect_different(where, {"train": train, "test": test, "validation": validation})
    unused = tuple(name for name in names if name not in (train, test, validation))
    return Choice(train=train, test=test, unused=unused, validation=validation)


def _expect_different(where: str, chosen: Mapping[str, str | None]) -> None:
    """Checks that no split is chosen for two uses.

    Raises:
        UserError: When a split is chosen for two uses. The message names the two settings.
    """
    uses: dict[str, str] = {}
    for use, name in chosen.items():
        if name is None:
            continue
        if name in uses:
            reason = (
                f"{use} images must not be used for training"
                if uses[name] == TRAIN
                else "test images must not be used for choices"
            )
            raise UserError(
                f"data set {where}: data.{uses[name]}_split and data.{use}_split are both "
                f"{name!r}; choose two different splits, because {reason}"
            )
        uses[name] = use


def _train(where: str, names: Sequence[str], config: DataConfig) -> str:
    """Chooses the training split by the setting, otherwise by its name, otherwise the only split.

    Raises:
        UserError: When there is no training split.
    """
    if config.train_split:
        return _named("data.train_split", config.train_split, names)
    found = _meaning(where, names, TRAIN, "data.train_split")
    if found is not None:
        return found
    if len(names) == 1 and meaning_of(names[0]) is None:
        return names[0]
    raise UserError(
        f"data set {where}: found no split for training among {', '.join(names)}; name the split "
        "to use: --set data.train_split=NAME"
    )


def _test(
    where: str, names: Sequence[str], taken: Collection[str | None], unlabelled: Collection[str]
) -> str | None:
    """Chooses the test split, otherwise the validation split, otherwise None.

    A split that already has another use is not chosen.

    Raises:
        UserError: When a test or validation split exists, but its images have no labels.
    """
    without = []
    for split in (TEST, VALIDATION):
        found = _meaning(where, names, split, "data.test_split")
        if found is None or found in taken:
            continue
        if found not in unlabelled:
            return found
        without.append(found)
    if without:
        raise UserError(
            f"data set {where}: the images of {' and '.join(without)} have no labels (no class "
            "folders, annotations or label column); use a share of the training images for testing "
            "instead: --set data.test_split=none"
        )
    return None


def _named(setting: str, wanted: str, names: Sequence[str]) -> str:
    """Finds a split by its exact name, otherwise by its name in upper or lower case.

    Raises:
        UserError: When no split has this name, or when the names of several splits differ only in
            case.
    """
    for name in names:
        if name == wanted:
            return name
    found = [name for name in names if name.lower() == wanted.lower()]
    if len(found) != 1:
        raise unknown(setting, wanted, names)
    return found[0]


def _meaning(where: str, names: Sequence[str], split: str, setting: str) -> str | None:
    """Finds the split whose name means `split`; returns None if no name has this meaning.

    Raises:
        UserError: When the names of several splits mean `split`.
    """
    found = [name for name in names if meaning_of(name) == split]
    if len(found) > 1:
        raise UserError(
            f"data set {where}: the names {' and '.join(found)} all mean the {split} split; name "
            f"the split to use: --set {setting}=NAME"
        )
    return found[0] if found else None
