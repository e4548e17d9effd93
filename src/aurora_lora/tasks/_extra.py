"""The errors for missing extras: the core install has none of their packages."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from aurora_lora.errors import UserError


def train_extra() -> AbstractContextManager[None]:
    """Wraps the import of a package of the `[train]` extra.

    Raises:
        UserError: the package is missing; names the command that installs it.
    """
    return _extra("train")


def vision_extra() -> AbstractContextManager[None]:
    """The same for the `[vision]` extra: torchvision, and Pillow, which decodes images."""
    return _extra("vision")


def diffusion_extra() -> AbstractContextManager[None]:
    """The same for the `[diffusion]` extra: diffusers, torchvision and Pillow."""
    return _extra("diffusion")


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"the Python package {error.name!r} is missing: pip install 'aurora-lora[{name}]' installs it"
        ) from error
