"""What the reports can do."""

import html
import json
import math

import pytest
from peft import get_peft_model

from aurora_lora import calibrate, merge_gap
from aurora_lora.deploy.calibrate import CalibrationReport, LayerCalibration
from aurora_lora.deploy.merge_quantized import LayerMerge, QuantizedMerge
from aurora_lora.deploy.predictions import EndToEndGap

ENDS = tuple(
    EndToEndGap(form, kl, 0.1, 0.5) for form, kl in (("without adapter", 2.0), ("nearest", 1.0), ("by inputs", 0.1))
)


def reports(losses):
    """One of each, whose layers are 0.a, 1.a, ... with these losses."""
    layers = [f"blocks.{i}.a" for i in range(len(losses))]
    explained = [
        LayerCalibration(name, "default", 1200, 1 - loss, 1e-3) for name, loss in zip(layers, losses, strict=True)
    ]
    merged = [LayerMerge(name, "nf4", 2 * loss, loss) for name, loss in zip(layers, losses, strict=True)]
    return {
        "calibrate": CalibrationReport(tuple(explained), 1, 0.5),
        "merge_quantized": QuantizedMerge(tuple(merged), ENDS, 12, True, 8, 1, 0.5),
    }


@pytest.mark.parametrize("kind", ["calibrate", "merge_quantized"])
def test_a_report_is_shown_as_a_table_of_the_layers_that_matter(kind):
    losses = [i / 100 for i in range(1, 31)]
    report = reports(losses)[kind]
    shown = str(report)
    assert max(map(len, shown.splitlines())) <= 80
    rows = [line.split() for line in shown.splitlines() if line.split()[0:1] and line.split()[0].endswith(".a")]
    assert [row[0] for row in rows] == [f"{i}.a" for i in range(29, 9, -1)]  # the worst first, the others counted
    assert "and 10 layers" in shown
    expected = {"calibrate": ["default", "1,200", "70.00%", "1.00e-03"], "merge_quantized": ["nf4", "60.00%", "30.00%"]}
    assert rows[0][1:] == expected.get(kind, rows[0][1:])
    assert report._repr_html_() == f"<pre>{html.escape(shown)}</pre>"


@pytest.mark.parametrize("kind", ["calibrate", "merge_quantized"])
def test_the_worst(kind):
    report = reports([0.1, 0.4, math.nan, 0.2])[kind]
    assert [layer.layer for layer in report.worst()] == ["blocks.2.a", "blocks.1.a", "blocks.3.a"]
    assert len(report.worst(1)) == 1
    with pytest.raises(ValueError, match="n=0 is not allowed: it must be a whole number of at least 1"):
        report.worst(n=0)


@pytest.mark.parametrize("kind", ["calibrate", "merge_quantized"])
def test_as_json(kind):
    report = reports([0.1, math.nan])[kind]
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [layer["layer"] for layer in found["layers"]] == ["blocks.0.a", "blocks.1.a"]


def test_the_forms_and_merges_of_a_gap(make_bert, config, batches, labelled):
    model = get_peft_model(make_bert(), config())
    calibrate(model, batches)
    gap = merge_gap(model, labelled, merges=True, metric=lambda p, _: {"mean": p.mean(), "none": float("nan")})
    metric = json.loads(json.dumps(gap.to_dict(), allow_nan=False))["end_to_end"][0]["metric"]
    assert (type(metric["mean"]), metric["none"]) == (float, None)
