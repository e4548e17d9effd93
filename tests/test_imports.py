"""What an import loads, registers and says. Each test has a Python of its own, in which nothing is imported yet."""

import resource
import subprocess
import sys
import textwrap

import pytest

import aurora_lora


def python(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_peft_knows_the_method_once_both_are_imported() -> None:
    python("""
        import importlib.util, sys
        import aurora_lora
        assert not {"peft", "torch"} & set(sys.modules)
        assert importlib.util.find_spec("peft").origin.endswith("__init__.py")  # Transformers asks for it like this
        assert "peft" not in sys.modules
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known
        assert known["AURORA"] is aurora_lora.AuroraConfig
        peft = sys.modules["peft"]
        assert peft.__loader__.get_filename("peft") == peft.__file__
        assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("aurora_lora")]
    """)


def test_the_method_is_registered_at_once_where_peft_is_imported_already() -> None:
    python("""
        import sys, types
        sys.modules["peft"] = types.ModuleType("peft")
        sys.modules["aurora_lora.tuner"] = None  # importing it now fails
        try:
            import aurora_lora
        except ModuleNotFoundError as error:
            assert error.name == "aurora_lora.tuner"
        else:
            raise AssertionError("not imported")
    """)


def test_every_public_name_is_there() -> None:
    for name in (*aurora_lora.__all__, "tuner", "deploy", "ops"):
        assert getattr(aurora_lora, name) is getattr(aurora_lora, name)
        assert name in dir(aurora_lora)
    with pytest.raises(AttributeError, match="module 'aurora_lora' has no attribute 'calibrat'"):
        aurora_lora.calibrat  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.slow
def test_every_package_is_there_without_an_import_of_its_own_or_says_which_extra_it_needs() -> None:
    python("""
        import sys
        import aurora_lora
        packages = "tuner", "deploy", "ops", "methods", "data", "train", "diffusion", "lab"
        assert set(packages) <= set(dir(aurora_lora))
        assert not [name for name in packages if f"aurora_lora.{name}" in sys.modules]
        sys.modules["pydantic"] = None
        try:
            aurora_lora.methods.METHODS
        except aurora_lora.errors.UserError as error:
            assert "'pydantic' is missing: pip install 'aurora-lora[train]' installs it" in str(error), error
        else:
            raise AssertionError("imported")
        del sys.modules["pydantic"]
        for name in packages:
            assert getattr(aurora_lora, name) is sys.modules[f"aurora_lora.{name}"]
        assert aurora_lora.train.load_recipe and aurora_lora.data.TASKS and aurora_lora.methods.METHODS
    """)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_library(option: str) -> None:
    """They answer in a fraction of a second; torch, PEFT and Transformers take several."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python(f"""
        import sys
        from aurora_lora import cli
        sys.argv = ["aurora", "{option}"]
        try:
            cli.main()
        except SystemExit as done:
            assert done.code == 0
        assert not {{"torch", "peft", "transformers"}} & set(sys.modules)
    """)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ("Usage" if option == "--help" else aurora_lora.__version__) in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.slow
@pytest.mark.parametrize("package", ["aurora_lora", "aurora_lora.cli"])
def test_optional_packages_are_imported_without_their_complaints(package: str) -> None:
    """In a command PEFT is imported from within the room that registers the method."""
    pytest.importorskip("torchao")
    pytest.importorskip("bitsandbytes")
    done = python(f"""
        import logging, sys
        import {package}
        from peft import get_peft_config
        from transformers import BertForSequenceClassification
        assert {{"bitsandbytes", "torchao"}} <= set(sys.modules)
        assert (logging.getLogger("torchao").level == logging.NOTSET) == ("aurora_lora.cli" not in sys.modules)
        config = get_peft_config({{"peft_type": "AURORA", "target_modules": ["q"]}})
        assert type(config) is aurora_lora.AuroraConfig
    """)
    assert done.stderr == ""
