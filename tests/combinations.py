"""Configurations by scope of keys, adaptation and policy; what several test files ask about."""

from __future__ import annotations

from typing import Any

from fl_vitlora.adaptation.policies import check
from fl_vitlora.config import Config, load
from fl_vitlora.errors import UserError

SCOPES = ("shared", "client", "image", "block")
POLICIES = ("aggregate", "aligned", "local")


def configure(
    scope: str = "shared", *, adapt: bool = False, policy: str = "aggregate", **given: Any
) -> Config:
    overrides = {
        "encryption.scope": scope,
        "encryption.adapt": adapt,
        "finetuning.patch_embedding": policy,
        **{path.replace("__", "."): value for path, value in given.items()},
    }
    return load(None, overrides)


def allowed(config: Config) -> bool:
    try:
        check(config)
    except UserError:
        return False
    return True
