import ast
import pickle
import re
from pathlib import Path

import aurora_lora
from aurora_lora.errors import ArgumentError

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


def test_an_error_reaches_another_process() -> None:
    error = pickle.loads(pickle.dumps(ArgumentError("`jobs`: 0 is not allowed")))
    assert (type(error), str(error)) == (ArgumentError, "`jobs`: 0 is not allowed")
