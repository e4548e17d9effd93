import ast
import pickle
import re
from pathlib import Path

import pytest

import aurora_lora
from aurora_lora import errors
from aurora_lora.errors import ArgumentError, counted

PACKAGE = Path(aurora_lora.__file__).parent
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if "cli" not in path.relative_to(PACKAGE).parts]
OPTION = re.compile(r"(?<![\w-])--[a-z]")


def options_named(code: str) -> list[str]:
    """The messages of what some code raises that name an option; whole commands, in backticks, may."""
    raised = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Raise)]
    texts = [part.value for node in raised for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and OPTION.search(re.sub("`aurora .*?`", "", text))]


def test_errors_of_the_library_name_no_option_of_the_command() -> None:
    for path in LIBRARY:
        assert not options_named(path.read_text(encoding="utf-8")), path


def test_such_a_message_is_found() -> None:
    assert options_named('raise ValueError(f"{path} is there: --overwrite replaces it")')
    assert not options_named('raise ValueError("<!-- a mark -->, which `aurora gap DIR --merges` writes")')


def test_an_error_reaches_another_process() -> None:
    error = pickle.loads(pickle.dumps(ArgumentError("`jobs`: 0 is not allowed")))
    assert (type(error), str(error)) == (ArgumentError, "`jobs`: 0 is not allowed")


def test_one_is_no_plural() -> None:
    shown = [counted(number, "test example") for number in (0, 1, 2, 1234)]
    assert shown == ["0 test examples", "1 test example", "2 test examples", "1,234 test examples"]


def test_a_wrong_argument_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="`examples` must be at least 1, got 0"):
        errors.check_count("examples", 0)
    with pytest.raises(ValueError, match="`rounds` must be at least 2, got 1"):
        errors.check_count("rounds", 1, least=2)
