"""Registers the method with PEFT as soon as PEFT is imported, so that `import aurora_lora` need not import it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_peft() -> None:
    """Register the method now if PEFT has been imported, or else right after its import. Safe to call again."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


def _register() -> None:
    importlib.import_module("aurora_lora.tuner")


class _PeftFinder(MetaPathFinder):
    """Finds PEFT where the other finders do. Who only asks whether PEFT is there imports nothing by it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _PeftLoader(spec.loader, self)
        return spec


class _PeftLoader(Loader):
    """Loads PEFT as `loader` does, then registers the method; nothing of this stays behind."""

    def __init__(self, loader: Loader, finder: _PeftFinder) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        with suppress(ValueError):
            sys.meta_path.remove(self.finder)
        _register()
