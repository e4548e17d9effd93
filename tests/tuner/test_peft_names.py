"""Which versions of PEFT the package works with, and what it says of others."""

import subprocess
import sys
import warnings

import pytest

from aurora_lora.tuner.peft_names import TESTED, warn_of_newer_peft

MISSING = """
import peft.utils
del peft.utils.get_quantization_kwargs
try:
    import aurora_lora
except ImportError as error:
    print(error)
"""

NEWER = """
import warnings
import peft
peft.__version__ = "0.99.1"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import aurora_lora
    import aurora_lora.tuner
print([str(w.message) for w in caught if "peft 0.99.1" in str(w.message)])
"""


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_missing_internal_name_says_which_versions_work():
    message = python(MISSING)
    assert "get_quantization_kwargs" in message
    assert "needs peft 0.21 or newer" in message
    assert f"tested up to {TESTED}" in message


def test_a_newer_peft_warns_once():
    message = python(NEWER)
    assert message.count("is newer") == 1
    assert "pip install 'peft<=" in message


def test_the_tested_one_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_newer_peft(f"{TESTED}.7")
        warn_of_newer_peft(TESTED)
    with pytest.warns(UserWarning, match="was tested with peft up to"):
        warn_of_newer_peft("1.0.0.dev0")
