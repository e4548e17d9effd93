"""Training, calibration and saving under DeepSpeed's ZeRO, of two processes on a CPU."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize(("stage", "threshold"), [(2, 0), (3, 100_000), (3, 0)])
def test_train_calibrate_and_save(stage, threshold, tmp_path):
    """The adapter is whole (in stage 2, and small tensors in stage 3) or in parts; one process finds the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("zero.py"))]
    command += map(str, (stage, threshold, tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    ranks = []
    for rank in ("0", "1"):
        own = {**environment, "RANK": rank, "LOCAL_RANK": rank}
        ranks.append(subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=own))
    outputs = [rank.communicate(timeout=280) for rank in ranks]
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, errors[-3000:]
    lines = outputs[0][0].splitlines()
    assert {f"stage {stage}", "forms {'calibrated'}", "saved {'calibrated'}", "same matrices"} <= set(lines)
    refusals = [line for line in lines if re.match(r"merge model\.layers\.0\S+: The base weight is sharded", line)]
    assert len(refusals) == (stage == 3)
