"""A model that is run over batches: in which state, on what, and what its layers see of it, without padding."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral
from operator import length_hint
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from accelerate.utils import recursively_apply  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import CalibrationError, abridged
from ..forms import DYNAMIC, FormName
from ..tuner import AuroraLayer, active_configs, set_form
from ..tuner.adapters import check_not_merged, plain_layers
from ..tuner.calibration import computing_device, ordinary_tensors

IGNORED = -100
"""The label that no loss counts, and Transformers does not count as an item of the batch."""
Batch = Mapping[str, Any] | Tensor | tuple[Any, ...] | list[Any]
CHUNK_BYTES = 32 * 2**20
"""Inputs are widened to float64 in pieces of about this size."""

# -------------------------------------------------------------------- the model below its wrappers

PARALLEL = (DataParallel, DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrappers of torch.compile and of distributed training."""
    # not by attribute: a PEFT model has those of the compiled model below it, too
    while (inner := model._modules.get("_orig_mod")) is not None or isinstance(model, PARALLEL):
        model = model.module if inner is None else inner  # type: ignore[assignment]
    return model


def plain_model(model: Any) -> nn.Module:
    """The model below an adapter of PEFT and the wrappers of torch.compile and of distributed training."""
    inner: Any = unwrapped(model)
    return unwrapped(inner.get_base_model()) if hasattr(inner, "get_base_model") else inner


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The output layer of a plain language model, as pretrained as the rest; None of any other model."""
    found: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    return found


# -------------------------------------------------------------------- its state while it is run


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no inference mode; modes and random states as before at the end, also after an error.

    bitsandbytes is kept from packing 4-bit weights for the CPU at their first call in eval mode: that rounds their
    scales, and `state_dict()`, which unpacks the weights, leaves the scales in another order. And
    `nn.TransformerEncoderLayer` is kept from reading the weights of its layers in place of calling them.
    """
    modules = list(model.modules())
    earlier = [(module, module.training, getattr(module, _PACKS, None)) for module in modules]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=gpus_of(model)))
        stack.callback(random_state_of_now())
        stack.enter_context(ordinary_tensors())  # inference mode keeps no count of changes in place
        if any(map(_is_compiled, modules)):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled graph does not see new hooks
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for module, _, packs in earlier:
                module.training = False
                if packs is not None:
                    setattr(module, _PACKS, False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, training, packs in earlier:
                module.training = training
                if packs is not None:
                    setattr(module, _PACKS, packs)


_PACKS = "support_avx512bf16_for_cpu"


@contextmanager
def trained_state(model: nn.Module) -> Iterator[None]:
    """Within this context a model with AuroRA adapters is evaluated in its trained form; see `evaluated`."""
    with evaluated(model), in_form(model, DYNAMIC):
        yield


@contextmanager
def in_form(model: nn.Module, form: FormName) -> Iterator[None]:
    """While the block runs, the adapters that have several forms evaluate in this one."""
    with ExitStack() as stack:
        for name in dynamic_adapters(model):
            stack.enter_context(set_form(model, form, adapter_name=name))
        yield


def dynamic_adapters(model: nn.Module) -> list[str]:
    """The active adapters that were trained in the dynamic form: others have the static one alone."""
    return [name for name, config in active_configs(model).items() if config.train_form == DYNAMIC]


def check_unmerged(model: nn.Module, action: str) -> None:
    """See that AuroRA's adapters take part in the model's forward pass; raises as `check_in_use`."""
    for path, layer in plain_layers(model):
        check_in_use(path, layer, action)


def check_in_use(path: str, layer: Any, action: str) -> None:
    """See that the adapters of a layer take part in its forward pass.

    Raises:
        AlreadyMergedError: they are merged.
        CalibrationError: they are switched off.
    """
    if layer.merged:
        check_not_merged(path, layer, action)
    if layer.disable_adapters:
        raise CalibrationError(f"The adapters of {path} are switched off: enable them before {action}.")


def gpus_of(model: nn.Module) -> list[int]:
    """The numbers of the GPUs that hold the model."""
    devices = {computing_device(p) for p in model.parameters()}
    return sorted(device.index for device in devices if device.type == "cuda")


def random_state_of_now() -> Callable[[], None]:
    """What sets Python's, NumPy's and PyTorch's random state on the CPU to what they are now."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)

    return put_back


def _is_compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)`, `module.compile()` or `torch.compile(module.forward)`."""
    return module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")


# -------------------------------------------------------------------- batches


def no_batches(action: str) -> CalibrationError:
    """What to raise where a function's inputs have no batch."""
    return CalibrationError(f"{action} needs at least one batch of inputs, and was given none.")


class Reading(TypedDict, total=False):
    """How inputs are read: arguments of `calibrate`, `merge_gap`, `merge_quantized` and `probe`, all of them None
    unless given."""

    tokenizer: Any
    """Turns the texts and conversations of a `datasets.Dataset` into tokens."""
    text_columns: str | Sequence[str] | None
    """The column of the dataset with the texts, or the two of pairs of texts. None is "text", or else conversations or
    preferences as TRL has them: `messages`, or `prompt` and `completion`, or `chosen` with or without `prompt`, by the
    tokenizer's template, which gets `tools` and `chat_template_kwargs`. Prompts alone are `"prompt"`."""
    batch_size: int | None
    """Examples of the dataset in a batch; 32 if None."""
    examples: int | None
    """At most that many: an even sample of a dataset, or the first of the batches, to whole batches."""
    max_length: int | None
    """Tokens; longer texts of the dataset are cut, as in the training. None: what the tokenizer allows."""


def as_batches(
    batches: Any,
    tokenizer: Any = None,
    *,
    text_columns: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    examples: int | None = None,
    max_length: int | None = None,
) -> Iterable[Batch]:
    """The batches to run: those that were given, or a `datasets.Dataset` put through a tokenizer; see `Reading`.

    Raises:
        TypeError: a dataset without a tokenizer, or what goes with a dataset where there is none.
        ValueError: a number below 1; as `texts.Tokenized`.
    """
    of_texts: dict[str, Any] = {"text_columns": text_columns, "batch_size": batch_size, "max_length": max_length}
    for name, value in (("batch_size", batch_size), ("max_length", max_length), ("examples", examples)):
        if value is not None and not (isinstance(value, Integral) and value >= 1):
            raise ValueError(f"{name}={value!r} is not allowed: it must be a whole number of at least 1.")
    if tokenizer is not None:
        from .texts import Tokenized

        return Tokenized(batches, tokenizer, **of_texts, examples=examples)
    if hasattr(batches, "column_names"):
        raise TypeError(
            "A datasets.Dataset needs tokenizer=, to make tokens of its texts. One that has tokens already goes into a "
            "DataLoader."
        )
    for name, value in of_texts.items():
        if value is not None:
            raise TypeError(f"{name} goes with a datasets.Dataset and its tokenizer: these are batches already.")
    if not isinstance(batches, Iterable) or isinstance(batches, (Mapping, Tensor, str)):
        raise TypeError(f"batches must be an iterable of batches, not one {type(batches).__name__}.")
    if examples is None:
        return batches
    first = _First(batches, examples)
    return iter(first) if isinstance(batches, Iterator) else first


class _First:
    """The first batches, until so many examples are there."""

    def __init__(self, batches: Iterable[Batch], examples: int) -> None:
        self.batches, self.examples = batches, examples

    def __iter__(self) -> Iterator[Batch]:
        left = self.examples
        for batch in self.batches:
            yield batch
            parts = batch.values() if isinstance(batch, Mapping) else batch
            values = [parts] if isinstance(parts, Tensor) else parts
            left -= next((len(value) for value in values if isinstance(value, Tensor) and value.dim()), 1)
            if left <= 0:
                return


class Passes:
    """Batches that can be run through several times, the same each time; only within `evaluated`, which restores the
    random state.

    They are read anew, from the random state of the first time: by that a loader shuffles, unless it has a generator of
    its own.

    Args:
        batches: see `as_batches`.
        progress: what a bar on stderr says; without one, there is none.
        reading: see `Reading`.
    """

    def __init__(self, batches: Any, progress: str = "", **reading: Unpack[Reading]) -> None:
        self.batches = as_batches(batches, **reading)
        self.passes = 0
        self.progress = progress
        self._begin = random_state_of_now()

    def hold(self) -> None:
        """Before the first of several passes: an iterator, which can be read only once, becomes a list."""
        if isinstance(self.batches, Iterator):
            self.batches = list(self.batches)

    def one_pass(self) -> Iterator[Batch]:
        """One pass over all batches."""
        self.passes += 1
        self._begin()
        if not self.progress:
            return iter(self.batches)
        from tqdm.auto import tqdm

        bar: dict[str, Any] = {"desc": f"{self.progress}, pass {self.passes}", "unit": " batches", "leave": False}
        return iter(tqdm(self.batches, total=length_hint(self.batches) or None, **bar))


# -------------------------------------------------------------------- what layers see


class Runner:
    """Runs batches through a model and knows, for each layer's input, which vectors are padding.

    A mask of positions belongs to an input whose first dimensions are the mask's, or, as of the experts of some
    mixtures, to one whose rows are as many. Where an encoder-decoder model has two masks that fit, a layer in the
    encoder, and one that is fed what the encoder gives (the keys and values of cross-attention), has the encoder's; any
    other has the decoder's. Of an input that fits no mask, all vectors count.

    Args:
        model: to run.
        action: the function that has it run, for errors.
    """

    def __init__(self, model: nn.Module, action: str) -> None:
        self.model, self.action = unwrapped(model), action  # not a wrapper that sends buffers, or runs copies
        found = (computing_device(p) for p in model.parameters() if not p.is_meta)
        self.device = next(found, torch.device("cpu"))
        self.masks: dict[str, Tensor] = {}
        plain: Any = plain_model(model)
        self._plain = plain
        is_pair = getattr(getattr(plain, "config", None), "is_encoder_decoder", False)
        self.encoder: nn.Module | None = plain.get_encoder() if is_pair else None
        self._in_encoder = set() if self.encoder is None else set(self.encoder.modules())
        self._encoded: Tensor | None = None
        self._hook: Any = None

    def __enter__(self) -> Runner:
        if self.encoder is not None:
            self._hook = self.encoder.register_forward_hook(self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self.masks, self._encoded = {}, None
        if self._hook is not None:
            self._hook.remove()

    def _remember(self, _: nn.Module, args: Any, output: Any) -> None:
        self._encoded = output if isinstance(output, Tensor) else output[0]

    def not_reached(self, names: Sequence[str]) -> CalibrationError:
        """What to raise where no input reached these layers, which are trained."""
        return CalibrationError(
            f"No input reached {abridged(names)}: the inputs of {self.action} must use every layer whose adapter is "
            "trained (B is not 0), at positions that are no padding. Layers that the model reads without calling them, "
            "or that these inputs cannot reach, are left out by exclude_modules."
        )

    def run(self, batch: Batch, watched: Collection[nn.Module] = ()) -> Any:
        """The output of one forward pass, without a loss where the model needs no labels.

        Args:
            batch: the inputs.
            watched: modules whose inputs are all that is read of it, if any. A language model then computes the
                logits of one position: all of them take more memory than the rest of the pass.

        Raises:
            TypeError: the batch is no dict, tensor, tuple or list.
        """
        inputs = self.read(batch)
        if isinstance(inputs, (tuple, list)):
            inputs = inputs[0]  # (inputs, labels), as the data sets of torch give them
        parameters = inspect.signature(self._plain.forward).parameters
        if not isinstance(inputs, dict) or _is_one_argument(inputs, parameters):
            return self.model(inputs)
        if self.encoder is None and "labels" in parameters and parameters["labels"].default is None:
            inputs.pop("labels", None)  # of which a loss is computed
        if watched and {"logits_to_keep", "use_cache"} <= parameters.keys() and self._can_spare_logits(watched):
            # which position, not how many: by a number, Gemma 4 cuts the inputs of its layers too
            inputs = {"logits_to_keep": torch.zeros(1, dtype=torch.int64, device="cpu"), "use_cache": False, **inputs}
        return self.model(**inputs)

    def _can_spare_logits(self, watched: Collection[nn.Module]) -> bool:
        """Whether these modules get the same inputs where only the logits of one position are computed."""
        backbone = getattr(self._plain, "base_model", self._plain)
        output = output_embeddings(self._plain)  # of a classifier none: it reads the logits of other positions
        if self.encoder is not None or backbone is self._plain or output is None:
            return False
        return set(watched) <= set(backbone.modules()) - set(output.modules())

    def read(self, batch: Batch) -> Any:
        """A copy of the batch on the model's device, whose masks are noted: what comes next is the pass they are of.

        Raises:
            TypeError: the batch is no dict, tensor, tuple or list.
        """
        self.masks, self._encoded = {}, None
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch

        def copied(tensor: Tensor) -> Tensor:
            return tensor.detach().requires_grad_(tensor.requires_grad).to(self.device, copy=True)

        if isinstance(first, Tensor) and first.dim():
            return recursively_apply(copied, batch)
        if not isinstance(batch, Mapping) and not hasattr(batch, "keys"):
            raise TypeError(
                "A batch must be a dict of tensors, a tensor of several examples, or a tuple or list that starts with "
                f"one, not {type(batch).__name__}."
            )
        inputs: dict[str, Any] = recursively_apply(copied, dict(batch.items()))  # type: ignore[union-attr]
        for name in ("attention_mask", "decoder_attention_mask"):
            mask = inputs.get(name)
            if isinstance(mask, Tensor) and mask.dim() in (2, 3):  # several texts an example are one long batch
                self.masks[name] = mask.bool().flatten(0, -2)
        if self.encoder is not None and "decoder_attention_mask" not in self.masks:
            # the decoder's tokens are given, or the labels, or else those of the encoder
            labels = inputs.get("labels")
            given = inputs.get("decoder_input_ids", inputs.get("decoder_inputs_embeds"))
            if isinstance(given, Tensor):
                self.masks["decoder_attention_mask"] = torch.ones(given.shape[:2], device=given.device).bool()
            elif isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point():
                self.masks["decoder_attention_mask"] = labels != IGNORED
            elif self.masks:
                self.masks["decoder_attention_mask"] = self.masks["attention_mask"]
        return inputs

    def vectors(self, module: nn.Module, x: Tensor) -> Tensor:
        """(n, d_in): the vectors of the input x of a linear layer, but for padding."""
        # the encoder's output itself, or it transposed
        known = self._encoded
        is_fed = known is not None and known.data_ptr() == x.data_ptr() and known.numel() == x.numel()
        names = ["attention_mask", "decoder_attention_mask"]
        for name in names if is_fed or module in self._in_encoder else reversed(names):
            mask = self.masks.get(name)
            if mask is None:
                continue
            mask = mask.to(x.device)  # a model over several devices
            if x.shape[:-1] == mask.shape:
                return x[mask]
            if x.shape[:-1] == mask.T.shape:  # of a model that puts tokens first
                return x.transpose(0, 1)[mask]
            if x.dim() == 2 and len(x) == mask.numel():
                return x[mask.flatten()]
        return x.reshape(-1, x.shape[-1])

    def pieces(self, module: Any, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`vectors`; of a convolution all patches, as a mask of token positions says nothing about them, a few at a
        time, with the group (n,) that each is of."""
        if input_geometry(module):
            yield from module.input_pieces(x, rows_of_piece(module.d_in))
        else:
            yield self.vectors(module, x), None


def _is_one_argument(batch: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a model takes the whole batch as its one argument, as those of sentence-transformers do."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one for one in parameters.values() if one.default is one.empty and one.kind in by_position]
    return len(needed) == 1 and not batch.keys() & parameters.keys()


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


def rows_of_piece(width: int) -> int:
    """How many rows of this width are about `CHUNK_BYTES` in float64."""
    return max(1, CHUNK_BYTES // (8 * width))
