"""How alike generated images are to the subject, and to their prompts (DreamBooth, Ruiz et al. 2023, section 4.2).

    CLIP-I, DINO = mean over generated g and real s of cos(f(g), f(s))
    CLIP-T = mean over generated g of cos(f(g), t(prompt of g))

with the image and text embeddings of CLIP, and the class token of DINO's last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig

from ..data.dreambooth import PLACEHOLDER
from ..data.loading import NO_CODE, cannot_load, only_pickles
from ..files import expanded, located
from ..train.data import in_batches
from ..train.models import check_attention

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


class Scorers:
    """CLIP, and DINO (a self-supervised ViT), on the CPU until they are needed.

    Args:
        clip: a hub id, `owner/name@revision`, or a folder.
        dino: likewise; None leaves it out.

    Raises:
        UserError: one cannot be loaded, or its weights are pickles alone.
    """

    def __init__(self, clip: str, dino: str | None) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoProcessor, CLIPModel

        self.clip, self.clip_processor = _load("scores.clip", clip, CLIPModel, AutoProcessor)
        self.dino: Any = None
        if dino is not None:
            self.dino, self.dino_processor = _load("scores.dino", dino, AutoModel, AutoImageProcessor)

    @torch.no_grad()
    def clip_images(self, images: Sequence[Image]) -> Tensor:
        """CLIP's embeddings (n, d) of images, float32."""
        inputs = self.clip_processor(images=list(images), return_tensors="pt")
        return _embedding(self.clip.get_image_features(inputs["pixel_values"].to(self.clip.device)))

    @torch.no_grad()
    def clip_texts(self, texts: Sequence[str]) -> Tensor:
        """CLIP's embeddings (n, d) of texts, float32; longer texts are cut."""
        inputs = self.clip_processor(text=list(texts), padding=True, truncation=True, return_tensors="pt")
        return _embedding(self.clip.get_text_features(**inputs.to(self.clip.device)))

    @torch.no_grad()
    def dino_images(self, images: Sequence[Image]) -> Tensor:
        """DINO's class tokens (n, d) of images, float32."""
        inputs = self.dino_processor(images=list(images), return_tensors="pt")
        hidden: Tensor = self.dino(inputs["pixel_values"].to(self.dino.device)).last_hidden_state
        return hidden[:, 0].float().cpu()

    def fidelity(
        self, generated: Mapping[str, Sequence[Path]], real: Sequence[Image], texts: Sequence[str], device: torch.device
    ) -> dict[str, dict[str, float]]:
        """`clip_i`, `clip_t` and `dino` of generated images, by the name that they are given under.

        Args:
            generated: image files.
            real: images of the subject.
            texts: the prompt of each generated image.
            device: where to compute.
        """
        self.clip.to(device)
        wanted, subject = self.clip_texts(texts), self.clip_images(real)
        found: dict[str, dict[str, float]] = {}
        for name, paths in generated.items():
            embedded = _of_files(self.clip_images, paths)
            found[name] = {"clip_i": subject_fidelity(embedded, subject), "clip_t": prompt_fidelity(embedded, wanted)}
        if self.dino is not None:
            self.dino.to(device)
            subject = self.dino_images(real)
            for name, paths in generated.items():
                found[name]["dino"] = subject_fidelity(_of_files(self.dino_images, paths), subject)
        return found


def _of_files(embed: Callable[[Sequence[Image]], Tensor], paths: Sequence[Path]) -> Tensor:
    from PIL import Image

    parts = in_batches(paths, BATCH)
    return torch.cat([embed([Image.open(path).convert("RGB") for path in part]) for part in parts])


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
        file = only_pickles(repo, where["revision"])
        pickles = (
            f"{file} is a pickle, which is never loaded, and there is no model.safetensors; name a revision that has "
            "one (owner/name@refs/pr/N), or a folder with the weights converted"
        )
        raise cannot_load(field, name, pickles if file else error) from error


def _embedding(output: Any) -> Tensor:
    """The projected embedding: a tensor, or, in newer versions of Transformers, the pooled output."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found.float().cpu()
