"""A configuration file as it is written: YAML that holds what JSON can, `${NAME}` for what only the environment knows,
and the line of everything in it.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import yaml

Place = tuple[str | int, ...]
"""Where in the file: `("deployments", 2, "weight")`."""

_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_MERGE = "tag:yaml.org,2002:merge"
_REFERENCE = re.compile(r"\$(\$?)\{([^{}]*)\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_JSON = "what JSON has: a text, number, true, false, null, list or object"


class ConfigError(Exception):
    """The file cannot be applied; the message is the one line that the operator reads. It repeats no value: any of them
    may be a secret in the wrong place.
    """


class _Loader(yaml.SafeLoader):
    """Dates stay text, as in JSON: the fields that take them read ISO 8601."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Document:
    """A file that was read: `data`, and where each part of it stands."""

    def __init__(self, path: Path, root: yaml.Node | None, data: Any) -> None:
        self.path = path
        self._root = root
        self.data = self._plain(data, ())

    def error(self, place: Place, message: str) -> ConfigError:
        """What is wrong, and where."""
        told = f"{_written(place)}: {message}" if place else message
        return ConfigError(f"{self.path}:{self.line(place)}: {told}")

    def line(self, place: Place) -> int:
        """The line of a part, or of what it should be in where it is not there."""
        node, line = self._root, 1
        for step in place:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return line

    def _plain(self, value: Any, place: Place) -> Any:
        """The value with its references replaced. Raises `ConfigError` for what JSON has not."""
        if isinstance(value, str):
            return self._expanded(value, place)
        if isinstance(value, list):
            return [self._plain(item, (*place, index)) for index, item in enumerate(value)]
        if isinstance(value, dict):
            if not all(isinstance(name, str) for name in value):
                raise self.error(
                    place, "got a name that is no text; takes names in quotes where they look like numbers"
                )
            return {name: self._plain(item, (*place, name)) for name, item in value.items()}
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        raise self.error(place, f"takes {_JSON}")

    def _expanded(self, text: str, place: Place) -> str:
        try:
            expanded = _REFERENCE.sub(_referred, text)
            expanded.encode()
        except LookupError as error:
            raise self.error(place, str(error.args[0])) from None
        except UnicodeEncodeError:
            raise self.error(place, "takes text in UTF-8") from None
        return expanded


def read(path: Path) -> Document:
    """Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: takes a file that can be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: takes text in UTF-8") from None
    try:
        root, data = _parsed(text)
        return Document(path, root, data)
    except yaml.MarkedYAMLError as error:
        # Not `str(error)`, which quotes the line: it may hold a secret.
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise ConfigError(f"{path}:{line}: takes YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{path}: takes YAML") from None
    except RecursionError:  # an alias within what it stands for
        raise ConfigError(f"{path}: nested too deeply") from None


def _parsed(text: str) -> tuple[yaml.Node | None, Any]:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, {}
        _refuse_twice(root, set())
        return root, loader.construct_document(root)
    finally:
        loader.dispose()


def _refuse_twice(node: yaml.Node, seen: set[int]) -> None:
    """YAML's own readers take the last of two fields of one name, in silence."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[Any] = set()
        for key, value in node.value:
            if key.tag != _MERGE and isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    raise yaml.MarkedYAMLError(problem=f"{key.value[:100]} is there twice", problem_mark=key.start_mark)
                names.add(key.value)
            _refuse_twice(value, seen)


def _child(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    """The line and the node of one part."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line + 1, node.value[step]
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # what `<<` brought comes first, and counts for less
            if key.value == step:
                return key.start_mark.line + 1, value
    return None


def _referred(match: re.Match[str]) -> str:
    """What `${NAME}` stands for; `$${NAME}` is written for `${NAME}` itself. Raises `LookupError`."""
    escaped, name = match.groups()
    if escaped:
        return match[0][1:]
    if not _VARIABLE.match(name):
        raise LookupError("takes ${NAME}, the name of an environment variable; $${…} for the characters themselves")
    if value := os.environ.get(name):
        return value
    if file := os.environ.get(f"{name}_FILE"):
        return _content(name, file)
    raise LookupError(f"${{{name}}}: got nothing; takes the environment variable {name}, or {name}_FILE")


def _content(name: str, file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise LookupError(f"{name}_FILE: takes a file of text that can be read") from None


def _written(place: Place) -> str:
    """`deployments[2].weight`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
