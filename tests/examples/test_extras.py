"""Examples where a package is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_a_missing_extra_is_one_line() -> None:
    script, package, name = "trl_sft.py", "trl", "chat"
    code = f"""
import runpy, sys
sys.modules[{package!r}] = None  # importing it now fails
sys.path.insert(0, {str(EXAMPLES)!r})
sys.argv = [{script!r}]
runpy.run_path({str(EXAMPLES / script)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"the Python package {package!r} is missing: pip install 'aurora-lora[{name}]' installs it"
    assert "Traceback" not in done.stderr
