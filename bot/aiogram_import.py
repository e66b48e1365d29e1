"""Import of aiogram without building the validators of all its types, which takes seconds and 100 MB."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def import_aiogram() -> None:
    """Import aiogram so that each of its types builds its validator when it is first used.

    aiogram's types defer the build, but aiogram then calls `model_rebuild` on all of them to resolve forward
    references (aiogram 3.31.0, aiogram/types/__init__.py). Here, the names that it passes are added to the types'
    modules instead, where pydantic looks for them at the first use. If aiogram is already imported, nothing happens.
    """
    names: dict[str, Mapping[str, Any]] = {}

    def note(cls: type[BaseModel], *, _types_namespace: Mapping[str, Any]) -> None:
        names[cls.__module__] = _types_namespace

    stock = vars(BaseModel)["model_rebuild"]
    BaseModel.model_rebuild = classmethod(note)  # type: ignore[method-assign, assignment]
    try:
        import aiogram  # noqa: F401
    finally:
        BaseModel.model_rebuild = stock  # type: ignore[method-assign]
    for module, namespace in names.items():
        known = vars(sys.modules[module])
        known.update({name: value for name, value in namespace.items() if name not in known})
