"""Builds models of timm by name, and gets their published weights.

A name has one of three forms: it is the name of a timm model (`NAME` or `NAME.tag`, also written
`timm/NAME.tag`), a repository of the Hugging Face hub (`hf-hub:owner/name`), or a folder with
config.json and weights, like the files of a repository (`local-dir:PATH`). timm finds and downloads
the weights. The module `fitting` compares the weights with the model and loads the weights.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fl_vitlora.errors import UserError, unknown
from fl_vitlora.models import hub_weights
from fl_vitlora.models.misfit import Convert
from fl_vitlora.models.weight_file import (
    UNREADABLE,
    one_line,
    read_weights,
    tensors_of,
    weights_in_folder,
)

FOLDER, HUB, TIMM = "local-dir:", "hf-hub:", "timm/"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*\w(@[\w./-]+)?", re.ASCII)
SUGGESTED = ("vit_*", "deit*")
_BUILDING = threading.Lock()


@dataclass
class Loader:
    """Describes the weights that timm would load into a model, without loading them.

    Attributes:
        config: timm's description of the weights, for example their repository.
        convert: timm's function that converts checkpoints for the model, or None if there is none.
        strict: True if timm requires that all names of tensors match. If `strict` is False, timm
            ignores a pooling head in the file.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    convert: Convert | None = None
    strict: bool = True

    def __call__(
        self,
        model: nn.Module,
        pretrained_cfg: Mapping[str, Any] | None = None,
        *args: object,
        filter_fn: Callable[..., Any] | None = None,
        strict: bool = True,
        **kwargs: object,
    ) -> None:
        """Stores timm's description of the weights, and loads nothing.

        timm calls this object instead of its own function `load_pretrained`.
        """
        del args, kwargs
        self.strict = strict
        self.config = pretrained_cfg or getattr(model, "pretrained_cfg", None) or {}
        if filter_fn is not None and len(inspect.signature(filter_fn).parameters) == 1:
            self.convert = lambda tensors, model: filter_fn(tensors)
        else:
            self.convert = filter_fn


def resolved_name(name: str, bundled: Mapping[str, Any]) -> str:
    """Converts a model's name into a name that timm's function `create_model` accepts.

    Args:
        name: The name that the user gave.
        bundled: The models of this package, whose names an error may suggest.

    Raises:
        UserError: When timm does not know the model or the tag, or when the folder does not exist.

    Example:
        >>> resolved_name("timm/vit_tiny_patch16_224.augreg_in21k", {})
        'vit_tiny_patch16_224.augreg_in21k'
    """
    import timm

    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER)).expanduser()
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model {name}: expected a folder with the file config.json and weights"
            )
        return f"{FOLDER}{folder}"
    if name.startswith(HUB):
        if not REPOSITORY.fullmatch(name.removeprefix(HUB)):
            raise UserError(
                f"model {name}: expected hf-hub:owner/name, or hf-hub:owner/name@revision"
            )
        return name
    plain = name.removeprefix(TIMM)
    if not timm.is_model(plain):
        raise unknown("model", name, [*bundled, *timm.list_models(list(SUGGESTED))])
    architecture, _, tag = plain.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and plain not in tags:
        raise unknown("pretrained tag", name, tags)
    return plain


def create(name: str, arguments: Mapping[str, Any], asked: str) -> tuple[nn.Module, Loader]:
    """Builds a model with random weights and without a head.

    Args:
        name: A name that `resolved_name` returned.
        arguments: The image size and the patch size, if the user set them.
        asked: The name that the user gave, for error messages.

    Returns:
        The model, and the `Loader` that describes its published weights.

    Raises:
        UserError: When the model cannot be built for these sizes, or when the hub has the model's
            description but cannot be reached.
    """
    import timm

    loader = Loader()
    _check_described(name, asked)
    try:
        with (
            _loads_with(loader),
            hub_weights.without_retries(),
            warnings.catch_warnings(action="ignore"),
        ):
            model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0, **arguments)
    except TypeError as error:
        raise UserError(
            f"model {asked} does not support the given image or patch size ({one_line(error)})"
        ) from error
    except (*UNREADABLE, AssertionError) as error:
        raise UserError(f"model {asked} cannot be built ({one_line(error)})") from error
    return model, loader


def published(loader: Loader, asked: str) -> tuple[str, dict[str, Tensor]]:
    """Gets the published weights of a model from the hub's cache, the hub, or a folder.

    Args:
        loader: The `Loader` that `create` returned.
        asked: The name that the user gave, for error messages.

    Returns:
        The origin of the weights as a text, and the tensors by name.

    Raises:
        UserError: When the model has no published weights, or when they are not available.
    """
    kind, place = _source(loader, asked)
    if kind == "local-dir":
        path = weights_in_folder(Path(place))
        return str(path), read_weights(path)
    check_at_hand(loader, asked)
    try:
        with hub_weights.without_retries(), warnings.catch_warnings(action="ignore"):
            content = _download(kind, place)
    except (*UNREADABLE, AssertionError) as error:
        raise _unavailable(asked, one_line(error)) from error
    where = place if isinstance(place, str) else "/".join(place)
    return f"{kind}:{where}", tensors_of(content, f"of {where}")


def check_at_hand(loader: Loader, asked: str) -> None:
    """Raises an error within seconds if published weights cannot be loaded.

    Raises:
        UserError: When the weights are not in the cache and the hub cannot be reached.
    """
    kind, place = _source(loader, asked)
    if kind != "hf-hub" or hub_weights.reachable():
        return
    repository, *files = (place,) if isinstance(place, str) else place
    if not hub_weights.is_cached(repository, *files, *hub_weights.FILES):
        raise _unavailable(
            asked, f"{repository} is not in the local cache, and the hub cannot be reached"
        )


def _check_described(name: str, asked: str) -> None:
    """Raises an error if a model's description is not cached and the hub cannot be reached."""
    repository = name.removeprefix(HUB)
    described = not name.startswith(HUB) or hub_weights.is_cached(repository, "config.json")
    if not described and not hub_weights.reachable():
        raise _unavailable(
            asked, f"{repository} is not in the local cache, and the hub cannot be reached"
        )


@contextlib.contextmanager
def _loads_with(loader: Loader) -> Iterator[None]:
    """Makes timm call a `Loader`, inside a `with` block, instead of loading weights into a model.

    This is the only way to get the function that converts checkpoints, because timm creates this
    function while it builds a model.
    """
    from timm.models import _builder

    with _BUILDING:
        before = _builder.load_pretrained
        _builder.load_pretrained = loader
        try:
            yield
        finally:
            _builder.load_pretrained = before


def _source(loader: Loader, asked: str) -> tuple[str, Any]:
    """Returns where timm finds a model's published weights: the kind of place, and the place.

    Raises:
        UserError: When timm has no weights for the model, or has weights only in the format of
            another library.
    """
    from timm.models._builder import _resolve_pretrained_source

    kind, place = _resolve_pretrained_source(dict(loader.config))
    if not kind:
        raise UserError(
            f"timm has no weights for model {asked}; name a file of weights: --set "
            "model.weights=FILE, or start from random weights: --set model.weights=random"
        )
    custom = loader.config.get("custom_load")
    if (custom and kind == "url") or (custom == "hf" and not isinstance(place, str)):
        raise UserError(
            f"the weights of model {asked} are published only in the format of another library; "
            "name a file of safetensors or torch: --set model.weights=FILE"
        )
    return kind, place


def _download(kind: str, place: Any) -> Mapping[str, Any]:
    """Downloads published weights with timm; only tensors are read, and no code is run."""
    from timm.models import _hub
    from torch.hub import load_state_dict_from_url

    if kind == "hf-hub":
        parts = (place,) if isinstance(place, str) else tuple(place)
        found: Mapping[str, Any] = _hub.load_state_dict_from_hf(*parts, weights_only=True)
        return found
    downloaded: Mapping[str, Any] = load_state_dict_from_url(
        place, map_location="cpu", progress=False, weights_only=True
    )
    return downloaded


def _unavailable(asked: str, cause: str) -> UserError:
    return UserError(
        f"the weights of model {asked} are not available from the hub ({cause}); to work offline, "
        "name a file: --set model.weights=FILE, or a folder: --model local-dir:PATH, or start from "
        "random weights: --set model.weights=random"
    )
