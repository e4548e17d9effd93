"""Reading YAML by the core schema of YAML 1.2, strictly: no key twice, no other tags, and errors that name the line.

`on`, `017`, `1:30` and `2024-02-30` are no switch, no octal number, no minutes and no date, as in YAML 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import UserError, one_line
from ..files import reading

_TAG = "tag:yaml.org,2002:"
_CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
"""Which plain words are which type (YAML 1.2.2, section 10.3.2)."""
_BYTES, _DEPTH, _SIZE = 10_000_000, 100, 100_000
"""How long a file may be, how deep it may be nested, and how many values it may have, each counted as often as it is
referred to."""


class _Loader(yaml.SafeLoader):
    """Without what YAML 1.1 has in mind for plain words and tags."""


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {}


class _TextLoader(_Loader):
    """Takes every plain word but null for text."""


_TextLoader.yaml_implicit_resolvers = {}
_TextLoader.add_implicit_resolver(f"{_TAG}null", re.compile(rf"^(?:{_CORE['null']})\Z"), None)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text, and escapes odd line ends."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        is_plain = all(char.isprintable() or char == "\n" for char in text)
        return self.represent_scalar(f"{_TAG}str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _Dumper.represent_text)

for _kind, _words in _CORE.items():
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_words})\Z"), None)


def _scalar(kind: str, convert: Callable[[str], Any]) -> None:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)
        try:
            if re.fullmatch(_CORE.get(kind, "(?s:.*)"), text):
                return convert(text)
        except (ValueError, UnicodeEncodeError):
            pass
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise yaml.constructor.ConstructorError(None, None, f"{shown!r} is no {kind}", node.start_mark)

    _Loader.add_constructor(_TAG + kind, construct)


def _int(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _float(text: str) -> float:
    return float(text.replace(".", "", 1) if text.lstrip("+-").lower() in (".inf", ".nan") else text)


def _text(text: str) -> str:
    text.encode()  # half of a surrogate pair is no text
    return text


_scalar("null", lambda _: None)
_scalar("bool", lambda text: text.lower() == "true")
_scalar("int", _int)
_scalar("float", _float)
_scalar("str", _text)


def _sequence(loader: _Loader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "this is no list", node.start_mark)
    return [loader.construct_object(child, deep=True) for child in node.value]


def _mapping(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, "these are no fields", node.start_mark)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        problem = None
        if not isinstance(key, str):
            problem = f"{key!r} is no name of a field: put it in quotes if it is one"
        elif key in values:
            problem = f"'{key}' is given twice"
        if problem is not None:
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        values[key] = loader.construct_object(value_node, deep=True)
    return values


def _unknown_tag(loader: _Loader, node: yaml.Node) -> NoReturn:
    problem = f"could not determine a constructor for the tag {node.tag!r}"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_constructor(_TAG + "seq", _sequence)
_Loader.add_constructor(_TAG + "map", _mapping)
_Loader.add_constructor(None, _unknown_tag)


def _check_size(node: yaml.Node, depth: int = 0, sizes: dict[int, int] | None = None) -> int:
    """How many values a node stands for; aliases are followed, so that a few lines cannot stand for billions."""
    sizes = {} if sizes is None else sizes
    if id(node) not in sizes:
        sizes[id(node)] = _SIZE  # a node that leads to itself
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        children = [child for entry in below for child in (entry if isinstance(entry, tuple) else (entry,))]
        if depth >= _DEPTH and children:
            raise yaml.constructor.ConstructorError(None, None, f"more than {_DEPTH} levels deep", node.start_mark)
        sizes[id(node)] = 1 + sum(_check_size(child, depth + 1, sizes) for child in children)
    if sizes[id(node)] > _SIZE:
        raise yaml.constructor.ConstructorError(None, None, f"more than {_SIZE:,} values", node.start_mark)
    return sizes[id(node)]


def _apart(value: Any) -> Any:
    """A copy of a value in which what an anchor and its aliases stand for is several: one can be changed alone."""
    if isinstance(value, dict):
        return {key: _apart(one) for key, one in value.items()}
    return [_apart(one) for one in value] if isinstance(value, list) else value


def parse(text: str, source: str) -> Any:
    """The value of a YAML text; `source` names it in errors.

    Raises:
        UserError: it is not valid YAML; the message names the line.
    """
    return _parse(text, source, _Loader)


def parse_typed(text: str, source: str, *, is_text: bool) -> Any:
    """The value of a text that was typed on a command line: YAML without comments, which nobody types there.

    Args:
        text: what was typed.
        source: names it in errors.
        is_text: whether it is for a field of texts alone, or of lists of them. Then it is taken as it was typed
            (`Comment #2`, `Review: text`, `0`), unless it is null, or begins as a list or as a text in quotes does.

    Raises:
        UserError: it is not valid YAML, or has a comment, which would be lost.
    """
    plain = text.strip()
    if is_text and not plain.startswith(("[", "{", "'", '"', "!!")):
        try:
            return None if re.fullmatch(_CORE["null"], plain) else _text(plain)
        except UnicodeEncodeError:
            raise UserError(f"{source}: this is no UTF-8 text") from None
    try:
        value = _parse(text, source, _TextLoader if is_text else _Loader)
    except UserError as error:
        hint = "; a text that begins with a bracket or a quotation mark stands in quotes itself" if is_text else ""
        raise UserError(f"{error}{hint}") from error
    if _has_comment(text):
        raise UserError(
            f"{source}: what stands behind # would be left out, as a comment in YAML: a text with # in it stands in "
            "double quotes within those of the shell, such as 'key=\"a #1\"'"
        )
    return value


def _has_comment(text: str) -> bool:
    """Whether valid YAML has a comment: between its tokens."""
    end = 0
    for token in yaml.scan(text):
        if "#" in text[end : token.start_mark.index]:
            return True
        end = max(end, token.end_mark.index)
    return False


def _parse(text: str, source: str, kind: type[_Loader]) -> Any:
    """The value of a YAML text, read by a loader that knows which plain words are which type; see `parse`."""
    try:
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return _apart(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: {one_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{source}: more than {_DEPTH} levels deep") from error


def read(path: Path) -> Any:
    """The value of a YAML file.

    Raises:
        UserError: the file cannot be read or is not valid YAML.
    """
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        UserError: the file cannot be read.
    """
    with reading(path), path.open("rb") as file:
        data = file.read(_BYTES + 1)  # a device may have no end
    if len(data) > _BYTES:
        raise UserError(f"{path}: more than {_BYTES:,} bytes are no recipe")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text") from error


def dump(value: Any) -> str:
    """YAML in the order given."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
