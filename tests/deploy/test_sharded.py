"""Calibration, the gap report and the probe on a model that FSDP2 has sharded: the same as unsharded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="FSDP2 of torch 2.6 does not run on a CPU"
)
def test_calibrate_gap_and_probe_on_a_sharded_model(tmp_path):
    script, address = str(Path(__file__).with_name("sharded.py")), f"file://{tmp_path}/rendezvous"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", script]
    ranks = [
        subprocess.Popen([*command, str(rank), address], stdout=-1, stderr=-1, text=True, env=environment)
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=280) for rank in ranks]
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, errors[-3000:]
    lines = outputs[0][0].splitlines()
    assert "forms {'calibrated'}" in lines
    assert "probed" in lines
    assert any(re.match(r"merge model\.layers\.0\S+: The base weight is sharded", line) for line in lines)
    assert lines[-1] == "done"
