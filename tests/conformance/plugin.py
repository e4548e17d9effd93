"""Pytest plugin: PEFT's test modules find AuroRA where LoRA was, and what comes of it is recorded."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import peft
import pytest
import torch
from peft.config import PeftConfigMixin
from PIL import Image

from aurora_lora import AuroraConfig
from aurora_lora.tuner import AuroraConv2d, AuroraEmbedding, AuroraLayer, AuroraLinear

from . import expected, stand_in
from .rows import Rows
from .suite import PACKAGE

RECORD = "CONFORMANCE_RECORD"
"""Environment variable: where the record is written."""
MARKERS = ("regression", "single_gpu_tests", "multi_gpu_tests", "bitsandbytes")


class LayersOfLora:
    """In place of the module `peft.tuners.lora`, where a test looks at layers."""

    LoraLayer = AuroraLayer
    Linear = AuroraLinear
    Embedding = AuroraEmbedding
    Conv2d = AuroraConv2d


class Record:
    """What became of the tests of one file: how many by outcome, and by reason in each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.failures: dict[str, str] = {}
        self.rows: Counter[str] = Counter()

    def count(self, outcome: str, reason: str = "") -> None:
        self.counts[outcome] += 1
        if reason:
            self.reasons[outcome][reason] += 1

    def write(self, path: Path) -> None:
        reasons = {outcome: dict(sorted(counted.items())) for outcome, counted in sorted(self.reasons.items())}
        path.write_text(json.dumps({**self.counts, "reasons": reasons, "rows": self.rows, "failures": self.failures}))


record = Record()


def pytest_configure(config: pytest.Config) -> None:
    for name in MARKERS:
        config.addinivalue_line("markers", name)
    with aurora_as_lora():
        utils = importlib.import_module(f"{PACKAGE}.testing_utils")
        # the models are in a folder of ours: the hub is never asked, not even once
        utils.hub_online_once = contextlib.nullcontext  # type: ignore[attr-defined]
        utils.load_cat_image = random_image  # type: ignore[attr-defined]
        common = importlib.import_module(f"{PACKAGE}.testing_common")
    do_not_skip(common)
    common.PeftCommonTester._test_safe_merge = as_for_groups(common.PeftCommonTester._test_safe_merge)  # type: ignore[attr-defined]
    AuroraLayer.update_layer = with_random_matrix(AuroraLayer.update_layer)  # type: ignore[method-assign]
    AuroraConfig.lora_alpha = property(lambda config: config.alpha)  # type: ignore[attr-defined]


def with_random_matrix(update_layer: Callable[..., None]) -> Callable[..., None]:
    """`update_layer`, after which an adapter with random weights that is to be calibrated has a random matrix."""

    def updated(self: AuroraLayer, adapter_name: str, *rest: Any) -> None:
        update_layer(self, adapter_name, *rest)
        config, A = self.aurora_config[adapter_name], self.aurora_A[adapter_name].weight
        if config.calibrated and config.init_weights is False and self.has_forms and not A.is_meta:
            self.calibration[adapter_name].store(torch.nn.init.kaiming_uniform_(torch.empty_like(A), a=5**0.5))

    return updated


def random_image() -> Image.Image:
    """In place of a picture from the hub."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@contextlib.contextmanager
def aurora_as_lora() -> Iterator[None]:
    """While this is entered, importing LoRA from PEFT gives AuroRA."""
    lora, layer = (importlib.import_module(name) for name in ("peft.tuners.lora", "peft.tuners.lora.layer"))
    stand_in.LoraConfig.collecting = True
    with (
        mock.patch.object(peft, "LoraConfig", stand_in.LoraConfig),
        mock.patch.object(lora, "LoraConfig", stand_in.LoraConfig),
        mock.patch.object(lora, "LoraLayer", AuroraLayer),
        mock.patch.object(layer, "LoraLayer", AuroraLayer),
    ):
        try:
            yield
        finally:
            stand_in.LoraConfig.collecting = False


def do_not_skip(module: ModuleType) -> None:
    """Switch those helpers off that skip what AuroRA can do."""
    for helper in expected.SKIPS_OF_PEFT & vars(module).keys():
        setattr(module, helper, lambda *args: None)


def as_for_groups(test: Callable[..., None]) -> Callable[..., None]:
    """PEFT's test of a safe merge, with the tolerance that PEFT has for those of its methods that merge groups."""

    def as_theirs(self: Any, model_id: str, *config: Any) -> None:
        if model_id not in expected.GROUPED:
            return test(self, model_id, *config)
        close, least = torch.allclose, expected.GROUPED_TOLERANCE
        with mock.patch.object(torch, "allclose", lambda one, other, **_: close(one, other, atol=least, rtol=least)):
            return test(self, model_id, *config)

    return as_theirs


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Import a test module with AuroRA where LoRA was, and give its tests our rows, before pytest reads them."""
    if isinstance(collector, pytest.Module):
        # what cannot be imported is reported when pytest itself tries
        with contextlib.suppress(pytest.Collector.CollectError), aurora_as_lora():
            prepare(collector.path.stem, collector.obj)
    return (yield)


def prepare(name: str, module: ModuleType) -> None:
    """Put AuroRA into an imported test module."""
    do_not_skip(module)
    put_rows(name, module)
    if hasattr(module, "lora"):
        module.lora = LayersOfLora


def put_rows(name: str, module: ModuleType) -> None:
    """Change the lists of rows in place: the marks on the tests refer to them."""
    rows = Rows()
    if name == "test_custom_models":
        module.TEST_CASES[:] = rows.custom(module.TEST_CASES)
        module.ALL_PEFT_CONFIG_CLASSES[:] = [stand_in.LoraConfig]
        module.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = rows.multiple(module.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES)
        module.MIXED_ADAPTER_TEST_CASES[:] = []
        module.TestRequiresGrad.check_requires_grad = check_requires_grad(module.TestRequiresGrad.check_requires_grad)
    elif name == "test_quantization":
        module.TEST_CASES[:] = rows.quantized()
    elif name == "test_vision_models":
        module.CONFIGS.update(rows.vision(module.CONFIGS.pop("lora")))
    elif name == "test_stablediffusion":
        module.DIFFUSERS_CONFIGS[:] = rows.diffusers(module.DIFFUSERS_CONFIGS)
    elif hasattr(module, "ALL_CONFIGS"):
        module.ALL_CONFIGS[:] = rows.transformers(module.ALL_CONFIGS)
    for option, n in rows.left_out.items():
        record.rows[option] += n


def check_requires_grad(check: Callable[..., None]) -> Callable[..., None]:
    """PEFT's check of which parameters are trained, with our parameters in the place of LoRA's."""

    def translated(self: Any, model: Any, *names: str) -> None:
        ours = []
        for name in names:
            found = re.fullmatch(r"(.*)\.lora_(?:embedding_)?([AB])\.([^.]+)(?:\.weight)?", name)
            parts = {"A": ("A", "H", "spline_weight"), "B": ("B",)}[found[2]] if found else ()
            ours += [f"{found[1]}.aurora_{part}.{found[3]}.weight" for part in parts] if found else [name]
        check(self, model, *ours)

    return translated


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, dropped = [], []
    for item in items:
        reason = why_left_out(item)
        if reason:
            record.count("left_out", reason)
            dropped.append(item)
            continue
        kept.append(item)
        if rule := expected.failure(item):
            item.add_marker(pytest.mark.xfail(reason=rule.reason, raises=rule.raises, strict=True))
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def why_left_out(item: pytest.Item) -> str | None:
    """The reason why a test is not run, if it is not."""
    assert isinstance(item, pytest.Function)
    params = item.callspec.params if hasattr(item, "callspec") else {}
    for value in params.values():
        if isinstance(value, stand_in.Unavailable):
            return f"asks for an option that AuroRA does not have: {value.reason}"
        if is_config(value) and not is_ours(value):
            return expected.OTHER_METHOD
    if reason := expected.left_out(item):
        return reason
    if any(is_ours(value) for value in params.values()) or mentions_lora(item):
        return None
    return expected.OTHER_METHOD


def is_ours(value: Any) -> bool:
    return value is stand_in.LoraConfig or isinstance(value, AuroraConfig)


def is_config(value: Any) -> bool:
    return isinstance(value, PeftConfigMixin) or (inspect.isclass(value) and issubclass(value, PeftConfigMixin))


def mentions_lora(item: pytest.Function) -> bool:
    """Whether the test, or a fixture that it uses, makes a `LoraConfig`."""
    fixtures = [each.func for defs in item._fixtureinfo.name2fixturedefs.values() for each in defs]
    ours = [f for f in fixtures if getattr(f, "__module__", "").startswith(PACKAGE)]
    return any(re.search(r"\bLoraConfig\b", inspect.getsource(f)) for f in [item.function, *ours])


def pytest_runtest_setup(item: pytest.Item) -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        record.failures[report.nodeid.partition("::")[2]] = last_line(report)
        record.count("failed")
    elif report.skipped and hasattr(report, "wasxfail"):
        record.count("xfailed", report.wasxfail)
    elif report.skipped:
        assert isinstance(report.longrepr, tuple)
        record.count("skipped", str(report.longrepr[2]).removeprefix("Skipped: "))
    elif report.when == "call":
        record.count("passed")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        record.failures[report.nodeid.partition("::")[2] or report.nodeid] = last_line(report)
        record.count("failed")


def last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What went wrong, in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return text.strip().splitlines()[0][:300] if text.strip() else "?"


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := os.environ.get(RECORD):
        record.write(Path(path))
