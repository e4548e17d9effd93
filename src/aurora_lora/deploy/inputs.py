"""The inputs of layers while a model runs batches, and which of their positions are padding."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from peft import AdaLoraModel
from torch import Tensor, nn

from ..errors import CalibrationError, abridged
from ..tuner import AuroraLayer
from ..tuner.targets import model_type
from ..tuner.tensors import computing_device
from .batch import IGNORED, Batch, copied
from .float64 import rows_of_piece
from .wrappers import input_embeddings, output_embeddings, plain_model, unwrapped, without_parallel


class Runner:
    """Runs batches through a model and knows, for each layer's input, which vectors are padding.

    In an encoder-decoder model the positions of the encoder and of the decoder are told apart: a layer inside the
    encoder, and one outside that is fed the encoder's output, projected or not (the keys and values of
    cross-attention), has the encoder's mask; any other has the decoder's. Experts of a mixture get the tokens that are
    routed to them, of which no mask tells which are padding: all of them count.

    Args:
        model: to run.
        action: the function that has it run, for errors.
    """

    def __init__(self, model: nn.Module, action: str) -> None:
        self.model, self.action = without_parallel(model), action
        found = (computing_device(p) for p in model.parameters() if not p.is_meta)
        self.devices = list(dict.fromkeys(found)) or [torch.device("cpu")]
        self.device = self.devices[0]
        self.masks: dict[str, Tensor] = {}
        self._has_content: Tensor | None = None  # whether some position of the batches so far is no padding
        self._check_loaded()
        self._encoder_outputs: list[weakref.ref[Tensor]] = []
        self._texts: list[tuple[Tensor, Tensor]] = []  # tokens and mask of each, where a batch names several apart
        self._hooks = ExitStack()
        self.encoder = self._find_encoder()
        self._model_type = model_type(unwrapped(model))
        token_first = (module for module in model.modules() if _class_of(module) in _TOKEN_FIRST)
        self._token_first = {part for module in token_first for part in module.modules()}
        self._encoder_modules = set(self.encoder.modules()) if self.encoder is not None else set()

    def _check_loaded(self) -> None:
        """Raise a CalibrationError for weights that are nowhere: neither in memory, nor fetched by Accelerate."""
        if any(hasattr(module, "_hf_hook") for module in self.model.modules()):
            return
        if missing := next((name for name, p in self.model.named_parameters() if p.is_meta), None):
            raise CalibrationError(f"{missing} is on the meta device, without values: load the model's weights first.")

    def not_reached(self, names: Sequence[str]) -> CalibrationError:
        """What to raise where no input reached these layers, which are trained."""
        if self._has_content is not None and not self._has_content:
            return CalibrationError(
                f"All positions of the inputs of {self.action} are padding: their attention_mask is 0 everywhere."
            )
        return CalibrationError(
            f"No input reached {abridged(names)}: the inputs of {self.action} must use every layer whose adapter is "
            "trained (B is not 0); exclude_modules leaves out those that they cannot reach."
        )

    def _find_encoder(self) -> nn.Module | None:
        inner = unwrapped(self.model)
        config = getattr(inner, "config", None)
        get_encoder = getattr(inner, "get_encoder", None)
        if not getattr(config, "is_encoder_decoder", False) or get_encoder is None:
            return None
        encoder = get_encoder()
        return encoder if isinstance(encoder, nn.Module) else None

    def __enter__(self) -> Runner:
        if self.encoder is not None:
            for module in (self.encoder, getattr(unwrapped(self.model), _PROJECTION, None)):
                if isinstance(module, nn.Module):
                    self._hooks.callback(module.register_forward_hook(self._remember).remove)
        elif (embeddings := input_embeddings(plain_model(self.model))) is not None:
            self._hooks.callback(embeddings.register_forward_pre_hook(self._note_text).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def _remember(self, _: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if not isinstance(output, Tensor) else output
        self._encoder_outputs.append(weakref.ref(hidden))

    def _note_text(self, _: nn.Module, args: Any) -> None:
        """Note the mask of the text that the model is called with: the next layers are of its pass."""
        for tokens, mask in self._texts:
            if args and args[0] is tokens:
                self.masks["attention_mask"] = mask

    def run(self, batch: Batch, watched: Collection[nn.Module] = ()) -> Any:
        """One forward pass.

        Args:
            batch: the inputs.
            watched: modules whose inputs are all that is read of it, if any. A language model then computes no loss,
                and the logits of one position: all of them take more memory than the rest of the pass.

        Raises:
            TypeError: the batch is no dict, tensor, tuple or list.
        """
        inputs = self.read(batch)
        if isinstance(inputs, (tuple, list)):
            inputs = inputs[0]  # (inputs, labels), as the data sets of torch give them
        if isinstance(inputs, Tensor) and not inputs.dim():
            raise TypeError("A batch must be a tensor of several examples, not a tensor of one number.")
        model = _without_regulariser(self.model)
        by_name = isinstance(inputs, dict) and not _is_one_argument(inputs, plain_model(self.model))
        if by_name and watched and self._can_spare_logits(watched):
            # which position, not how many: by a number, Gemma 4 cuts the inputs of its layers too
            inputs = {"logits_to_keep": torch.zeros(1, dtype=torch.int64, device="cpu"), "use_cache": False, **inputs}
            inputs.pop("labels", None)
        return model(**inputs) if by_name else model(inputs)

    def _can_spare_logits(self, watched: Collection[nn.Module]) -> bool:
        """Whether these modules get the same inputs where only the logits of one position are computed."""
        model: Any = plain_model(self.model)
        backbone = getattr(model, "base_model", model)
        takes = {"logits_to_keep", "use_cache"} <= inspect.signature(model.forward).parameters.keys()
        output = output_embeddings(model)  # of a classifier none: it reads the logits of other positions
        if self.encoder is not None or backbone is model or not takes or output is None:
            return False
        return set(watched) <= set(backbone.modules()) - set(output.modules())

    def read(self, batch: Batch) -> Any:
        """A copy of the batch on the model's device, whose masks are noted: what comes next is the pass they are of.

        Raises:
            TypeError: the batch is no dict, tensor, tuple or list.
        """
        self.masks, self._encoder_outputs, self._texts = {}, [], []
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if isinstance(first, Tensor):
            self._has_content = torch.ones((), dtype=torch.bool, device=self.device)
            return copied(batch, self.device)
        if not isinstance(batch, Mapping) and not hasattr(batch, "keys"):
            raise TypeError(
                f"A batch must be a dict of tensors, a tensor, or a tuple or list that starts with one, "
                f"not {type(batch).__name__}."
            )
        inputs: dict[str, Any] = copied(dict(batch.items()), self.device)  # type: ignore[union-attr]
        for name in ("attention_mask", "decoder_attention_mask"):
            mask = inputs.get(name)
            if isinstance(mask, Tensor) and mask.dim() == 3 and _has_choices(inputs, mask):
                mask = mask.flatten(0, 1)
            if isinstance(mask, Tensor) and mask.dim() == 2:
                self.masks[name] = mask.bool()
        if self.encoder is not None and "decoder_attention_mask" not in self.masks:
            self._note_decoder_mask(inputs)
        if not self.masks:
            self._texts = _named_apart(inputs)
        masks = [*self.masks.values(), *(mask for _, mask in self._texts)]
        here = [mask.any() for mask in masks] or [torch.ones((), dtype=torch.bool, device=self.device)]
        before = [] if self._has_content is None else [self._has_content]
        self._has_content = torch.stack([*before, *here]).any()
        return inputs

    def _note_decoder_mask(self, inputs: Mapping[str, Any]) -> None:
        """Note the mask of a decoder that was given none: its tokens are the labels, or those of the encoder."""
        labels = inputs.get("labels")
        if isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point():
            self.masks["decoder_attention_mask"] = labels != IGNORED
        elif not inputs.keys() & _DECODER_TOKENS and "attention_mask" in self.masks:
            self.masks["decoder_attention_mask"] = self.masks["attention_mask"]

    def vectors(self, module: nn.Module, x: Tensor) -> Tensor:
        """(n, d_in): the vectors of the input x that the weight of `module` acts on, but for padding.

        The patches of a convolution are all taken: a mask of token positions says nothing about them.
        """
        if input_geometry(module):
            return _input_vectors(module, x)
        mask = self.masks.get(self._mask_name(module, x))
        if mask is not None:
            mask = mask.to(x.device)  # a model over several devices
            if (tokens := self._as_in_mask(module, x, mask)) is not None:
                return tokens[mask]
            if x.dim() == 2 and x.shape[0] == mask.numel():
                return x[mask.reshape(-1)]
        return _input_vectors(module, x)

    def _as_in_mask(self, module: nn.Module, x: Tensor, mask: Tensor) -> Tensor | None:
        """x as (*mask.shape, d_in), if it is of those tokens; some models pad texts further by themselves."""
        if x.dim() == 3 and module in self._token_first:
            x = x.transpose(0, 1)
        if x.dim() == 3 and self._model_type in _PAD_FURTHER:
            x = x[:, : mask.shape[1]]
        return x if x.shape[:-1] == mask.shape else None

    def pieces(self, module: Any, x: Tensor) -> Iterator[Tensor]:
        """`vectors`, the patches of a convolution a few at a time."""
        return (vectors for vectors, _ in self.grouped_pieces(module, x))

    def grouped_pieces(self, module: Any, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`pieces`, of a convolution with the group (n,) that each patch is of."""
        if input_geometry(module):
            yield from module.input_pieces(x, rows_of_piece(module.d_in))
        else:
            yield self.vectors(module, x), None

    def _mask_name(self, module: nn.Module, x: Tensor) -> str:
        if self.encoder is None or module in self._encoder_modules:
            return "attention_mask"
        fed_by_encoder = any(_is_same(known(), x) for known in self._encoder_outputs)
        return "attention_mask" if fed_by_encoder else "decoder_attention_mask"


def _is_same(known: Tensor | None, x: Tensor) -> bool:
    """Whether x is that tensor, or it transposed."""
    if known is None or known is x:
        return known is x
    return known.data_ptr() == x.data_ptr() != 0 and known.numel() == x.numel()


def _class_of(module: nn.Module) -> str:
    """The name of its class, after that of the file: some models call their layers as others do."""
    kind = type(module)
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def _is_one_argument(batch: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether the model takes the whole batch as its one argument, as those of sentence-transformers do."""
    parameters = inspect.signature(model.forward).parameters
    needed = [one for one in parameters.values() if one.default is one.empty and one.kind in _POSITIONAL]
    return len(needed) == 1 and not batch.keys() & parameters.keys()


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _without_regulariser(model: nn.Module) -> nn.Module:
    """The model; of PEFT's AdaLoRA, loaded for inference, the one below it, which has the adapters in its layers.

    AdaLoRA adds a regulariser to the loss of every batch with labels, and loaded for inference it has none to add.
    """
    tuner = getattr(unwrapped(model), "base_model", None)
    if isinstance(tuner, AdaLoraModel) and not hasattr(tuner, "trainable_adapter_name"):
        below: nn.Module = tuner.model
        return below
    return model


def _has_choices(inputs: Mapping[str, Any], mask: Tensor) -> bool:
    """Whether each example is several texts, (batch, choices, tokens), of which the model makes one long batch."""
    return any(isinstance(one := inputs.get(name), Tensor) and one.shape[:3] == mask.shape for name in _TEXTS)


def _named_apart(inputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Tokens and mask of each text of a batch of sentence-transformers' trainer: `anchor_input_ids`,
    `anchor_attention_mask`, and so for each column. The model is called for one after another."""
    pairs = (
        (tokens, inputs.get(f"{name.removesuffix('input_ids')}attention_mask"))
        for name, tokens in inputs.items()
        if name.endswith("_input_ids")
    )
    return [(tokens, mask.bool()) for tokens, mask in pairs if isinstance(mask, Tensor)]


_TEXTS = ("input_ids", "inputs_embeds")
_PAD_FURTHER = {"longformer", "led", "big_bird", "bigbird_pegasus"}
"""Models that pad texts to whole windows of their attention."""
_TOKEN_FIRST = {
    "modeling_longformer.LongformerSelfAttention",
    "modeling_led.LEDEncoderSelfAttention",
    "modeling_xlnet.XLNetFeedForward",
    "modeling_fsmt.EncoderLayer",
    "modeling_fsmt.DecoderLayer",
}
"""Modules whose layers get (tokens, batch, width)."""
_PROJECTION = "enc_to_dec_proj"
"""What makes the encoder's output as wide as the decoder, where Transformers put two models together."""
_DECODER_TOKENS = {"decoder_input_ids", "decoder_inputs_embeds"}


@contextmanager
def watched_inputs(layers: Iterable[tuple[nn.Module, Callable[[Tensor], None]]]) -> Iterator[None]:
    """While the block runs, each layer shows its input to the function beside it before it computes."""
    with ExitStack() as hooks:
        for module, see in layers:

            def hook(_: nn.Module, args: Any, kwargs: dict[str, Any], see: Callable[[Tensor], None] = see) -> None:
                see(args[0] if args else kwargs["x"] if "x" in kwargs else next(iter(kwargs.values())))

            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def input_geometry(module: nn.Module) -> tuple[Any, ...]:
    """What decides, beside x, which vectors the weight of a layer acts on; empty where each position is one."""
    return module.input_geometry if isinstance(module, AuroraLayer) else ()


def _input_vectors(module: nn.Module, x: Tensor) -> Tensor:
    """(n, d_in): those vectors."""
    return module.input_vectors(x) if isinstance(module, AuroraLayer) else x.reshape(-1, x.shape[-1])
