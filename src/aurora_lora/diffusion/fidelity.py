"""How alike generated images are to the subject, and to their prompts (DreamBooth, Ruiz et al. 2023, section 4.2).

    CLIP-I, DINO = mean over generated g and real s of cos(f(g), f(s))
    CLIP-T = mean over generated g of cos(f(g), t(prompt of g))

with the image and text embeddings of CLIP, and the class token of DINO's last layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig

from ..data.dreambooth import PLACEHOLDER
from ..data.loading import NO_CODE, cannot_load, check_attention, only_pickles
from ..files import expanded, located
from ..train.data import in_batches

if TYPE_CHECKING:
    from PIL.Image import Image


def subject_fidelity(generated: Tensor, real: Tensor) -> float:
    """The mean cosine of each generated (n, d) with each real (m, d) embedding."""
    return float((normalize(generated.double()) @ normalize(real.double()).T).mean())


def prompt_fidelity(generated: Tensor, texts: Tensor) -> float:
    """The mean cosine of each generated image's embedding (n, d) with that of its own prompt (n, d)."""
    return float((normalize(generated.double()) * normalize(texts.double())).sum(-1).mean())


def plain_prompt(prompt: str) -> str:
    """A prompt without `[V]`: CLIP does not know the identifier."""
    return " ".join(prompt.replace(PLACEHOLDER, " ").split())


BATCH = 16
"""Images read and embedded at a time."""


class Embedder(ABC):
    """Embeds images."""

    model: Any

    def to(self, device: torch.device) -> Self:
        """This embedder, moved to `device`."""
        self.model.to(device)
        return self

    @abstractmethod
    def images(self, images: Sequence[Image]) -> Tensor:
        """Embeddings (n, d) of images, float32."""

    def files(self, paths: Sequence[Path]) -> Tensor:
        """Embeddings (n, d) of image files, float32."""
        from PIL import Image

        parts = []
        for batch in in_batches(paths, BATCH):
            parts.append(self.images([Image.open(path).convert("RGB") for path in batch]))
        return torch.cat(parts)


class Clip(Embedder):
    """Embeddings of CLIP.

    Args:
        name: a hub id, `owner/name@revision`, or a folder.

    Raises:
        UserError: it cannot be loaded, or its weights are pickles alone.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        self.model, self.processor = _load("scores.clip", name, CLIPModel, AutoProcessor)

    @torch.no_grad()
    def images(self, images: Sequence[Image]) -> Tensor:
        """(n, d), float32."""
        inputs = self.processor(images=list(images), return_tensors="pt")
        return _embedding(self.model.get_image_features(inputs["pixel_values"].to(self.model.device)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d), float32; longer texts are cut."""
        inputs = self.processor(text=list(texts), padding=True, truncation=True, return_tensors="pt")
        return _embedding(self.model.get_text_features(**inputs.to(self.model.device)))


class Dino(Embedder):
    """Class tokens of a self-supervised ViT. As `Clip`."""

    def __init__(self, name: str) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.model, self.processor = _load("scores.dino", name, AutoModel, AutoImageProcessor)

    @torch.no_grad()
    def images(self, images: Sequence[Image]) -> Tensor:
        """(n, d), float32."""
        inputs = self.processor(images=list(images), return_tensors="pt")
        hidden: Tensor = self.model(inputs["pixel_values"].to(self.model.device)).last_hidden_state
        return hidden[:, 0].float().cpu()


def _load(field: str, name: str, model: Any, processor: Any) -> tuple[Any, Any]:
    """Model and processor, on the CPU. From a revision that the name says, such as `owner/name@refs/pr/15`.

    Without one, Transformers looks for the hub's own conversion to safetensors where the main branch has none.
    """
    repo, _, revision = (located(name), "", "") if expanded(name).is_dir() else name.partition("@")
    where = {"revision": revision or "main"}
    try:
        config = getattr(model, "config_class", None) or AutoConfig
        check_attention(config.from_pretrained(repo, **where, **NO_CODE))
        loaded = model.from_pretrained(repo, use_safetensors=True, **where, **NO_CODE).eval()
        return loaded, processor.from_pretrained(repo, **where, **NO_CODE)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(field, name, _only_pickles(repo, where["revision"]) or error) from error


def _only_pickles(repo: str, revision: str) -> str | None:
    """What to do about weights that are there as pickles alone; None if they are not."""
    file = only_pickles(repo, revision)
    return file and (
        f"{file} is a pickle, which is never loaded, and there is no model.safetensors; name a revision that has "
        "one (owner/name@refs/pr/N), or a folder with the weights converted"
    )


def _embedding(output: Any) -> Tensor:
    """The projected embedding: a tensor, or, in newer versions of Transformers, the pooled output."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found.float().cpu()
