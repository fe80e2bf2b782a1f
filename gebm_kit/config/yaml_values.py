"""Values of a recipe's YAML, each with the line it was written on.

PyYAML splits the text into events; this module turns them into values itself. That bounds depth and time, and gives every
problem its line: YAML 1.1 would read ``0100`` as 64 and ``1:30`` as 90, and a tag may ask for any object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from gebm_kit.core.errors import shown
from gebm_kit.core.reading import Aliased, TooDeep, bounded_events

Key = tuple[str | int, ...]
"""Place of a value in a recipe: ``('eval', 'metrics', 0)``."""

MAX_DIGITS = 300
"""Longest integer that is read; the largest float has 309 digits."""

MAX_VALUES = 50_000
"""Most values of a document, keys apart; a long recipe has some hundreds."""

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = ("", "~", "null", "Null", "NULL")
_WORDS = {
    written: value
    for value, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for word in words
    for written in (word, word.capitalize(), word.upper())
}
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_GROUPED = re.compile(r"[-+]?[1-9][0-9]{0,2}(_[0-9]{3})+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+([eE][-+]?[0-9]+)?)")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_OTHER_BASE = re.compile(r"[-+]?0(x[0-9a-fA-F]+|b[01]+)")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_ODD_GROUPS = re.compile(r"[-+]?(0x[0-9a-fA-F_]+|0b[01_]+|[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*)")
_NO_TEXT = re.compile("[\\0\ud800-\udfff]")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?")
_TAGS = {f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_TYPES: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "null": type(None)}


class YamlError(ValueError):
    """Text that is not YAML, or YAML that is not read.

    Attributes:
        line: the line, counted from 1; None where it is not known.
        problem: what is wrong.
    """

    def __init__(self, line: int | None, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


@dataclass
class Document:
    """Values of a YAML document.

    Attributes:
        value: nested dicts, lists and scalars; None for an empty document.
        lines: the line of each key or item that begins on another line than what contains it.
        problems: line, key and sentence of every value that is refused. The value is then what was probably meant.
    """

    value: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[tuple[int, Key, str]] = field(default_factory=list)


def read_yaml(text: str) -> Document:
    """Read a YAML document of plain values: mappings with text keys, lists, text, numbers, true, false and null.

    Raises:
        YamlError: the text is not YAML, is nested too deep, has aliases or too many values, or holds several documents.
    """
    if bad := _NO_TEXT.search(text):
        what = "a null character" if bad[0] == "\0" else "bytes that are not UTF-8"
        raise YamlError(text.count("\n", 0, bad.start()) + 1, f"not valid YAML: the text holds {what}")
    events = bounded_events(yaml.parse(text, Loader=_PARSER))
    try:
        return _Reader(events).document()
    except TooDeep as error:
        raise YamlError(
            error.line, error.problem + (", or use ${...}" if isinstance(error, Aliased) else "")
        ) from error
    except yaml.YAMLError as error:
        mark, place = getattr(error, "problem_mark", None), getattr(error, "position", None)
        line = mark.line + 1 if mark else None if place is None else text.count("\n", 0, place) + 1
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise YamlError(line, f"not valid YAML: {problem}") from error


def plain_value(text: str) -> Any:
    """Return the value of a scalar without quotes, by YAML 1.1 and OmegaConf (``1e-4`` is a number).

    Raises:
        ValueError: YAML 1.1 reads it as something that few who write it mean; the message says how to write it.
    """
    if text in _NULL:
        return None
    if text in _WORDS:
        return _WORDS[text]
    if not (text[0].isascii() and (text[0].isdigit() or text[0] in "+-.")):
        return text
    if _DECIMAL.fullmatch(text) or _OTHER_BASE.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text):,} digits is not read; at most {MAX_DIGITS} are")
        return int(text, 0)
    if _FLOAT.fullmatch(text) or _SPECIAL.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1].isalpha() else text)
    if _GROUPED.fullmatch(text) and len(text) <= MAX_DIGITS:
        digits = text.replace("_", "")
        return int(digits) if digits.lstrip("+-").isdigit() else float(digits)
    return _refused_or_text(text)


def _refused_or_text(text: str) -> str:
    """Return the text, unless YAML 1.1 takes it for a number in base 8 or 60 or a date."""
    if len(text) > MAX_DIGITS:
        return text
    written = shown(text)[1:-1]
    if _OCTAL.fullmatch(text):
        bare = text.lstrip("+-0_").replace("_", "") or "0"
        sign = "-" if text[0] == "-" else ""
        raise ValueError(
            f"{written} begins with a zero, which YAML 1.1 reads as octal; write {sign}{bare}, or put text in quotes"
        )
    if _SEXAGESIMAL.fullmatch(text):
        raise ValueError(
            f"{written} has colons, which YAML 1.1 reads as a number in base 60; write the number out, or put text in quotes"
        )
    if "_" in text and _ODD_GROUPS.fullmatch(text):
        raise ValueError(f"{written} has underscores that do not group thousands; write the digits alone, or quotes")
    if _DATE.fullmatch(text):
        raise ValueError(f"{written} is a date in YAML; put it in quotes")
    return text


class _Reader:
    """Composer of values from events; its recursion is as deep as the document, which `bounded_events` limits."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.events = events
        self.found = Document()
        self.count = 0

    def document(self) -> Document:
        opened = 0
        for event in self.events:
            line = _line(event)
            if isinstance(event, yaml.DocumentStartEvent):
                opened += 1
                if opened > 1:
                    raise YamlError(line, "a second YAML document begins here (---); only one is read")
            elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
                self.found.lines[()] = line
                self.found.value = self.value(event, (), line)
        return self.found

    def value(self, event: Any, key: Key, line: int) -> Any:
        """Return the value that begins with ``event``, whose key stands on ``line``."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise YamlError(_line(event), f"more than {MAX_VALUES:,} values; a recipe has fewer")
        tag = self.tag(event, key)
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, key, tag)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.items(key, line)
        return self.mapping(key, line)

    def items(self, key: Key, line: int) -> list[Any]:
        items: list[Any] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            inner = (*key, len(items))
            here = _line(event)
            if here != line:
                self.found.lines[inner] = here
            items.append(self.value(event, inner, here))
        return items

    def mapping(self, key: Key, line: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            here = _line(event)
            name, sound = self.name(event, key)
            inner = (*key, name)
            if name in values:
                first = self.found.lines.get(inner, line)
                self.refuse(here, inner, f"written twice, first on line {first}")
            elif here != line:
                self.found.lines[inner] = here
            count = len(self.found.problems)
            value = self.value(next(self.events), inner, here)
            if sound:
                values[name] = value
            else:
                del self.found.problems[count:]  # what lies under a refused key is refused with it
        return values

    def name(self, event: Any, key: Key) -> tuple[str, bool]:
        """Return a key as text, and whether it can be one."""
        here = _line(event)
        if not isinstance(event, yaml.ScalarEvent):
            self.value(event, (*key, "?"), here)
            self.refuse(here, (*key, "?"), "a list or a mapping can't be a key; keys are plain words")
            return "?", False
        text: Any = event.value
        if event.tag is None and event.implicit[0]:
            if text == "<<":
                self.refuse(here, (*key, text), "merge keys are not allowed; write the values out, or use ${...}")
                return text, False
            try:
                text = plain_value(text)
            except ValueError:
                text = None
        if (
            not isinstance(text, str)
            or "${" in text
            or "." in text
            or _NO_TEXT.search(text)
            or event.tag not in (None, "!")
        ):
            written = shown(event.value) if isinstance(text, str) else event.value[:80]
            self.refuse(here, (*key, event.value), f"{written} can't be a key; keys are plain words")
            return event.value, False
        return text, True

    def scalar(self, event: Any, key: Key, tag: str | None) -> Any:
        line, text = _line(event), event.value
        if _NO_TEXT.search(text):
            self.refuse(line, key, f"{shown(text)} holds a character that no name and no path can have")
            return _NO_TEXT.sub("", text)
        if tag == "str" or (tag is None and not event.implicit[0]):
            return text
        try:
            value = plain_value(text)
        except ValueError as error:
            self.refuse(line, key, str(error))
            return _probable(text)
        if tag is None:
            return value
        if not isinstance(value, _TYPES.get(tag, ())) or (tag != "bool" and isinstance(value, bool)):
            self.refuse(line, key, f"not valid YAML: {shown(text)} is not a !!{tag}")
            return text
        return float(value) if tag == "float" and len(text) < MAX_DIGITS else value

    def tag(self, event: Any, key: Key) -> str | None:
        """Return the tag that is written before a value, without its prefix; None without one."""
        if event.tag is None:
            return None
        found = "str" if event.tag == "!" else _TAGS.get(event.tag)
        kinds = {yaml.ScalarEvent: set(_TYPES) | {"str"}, yaml.SequenceStartEvent: {"seq"}}
        if found in kinds.get(type(event), {"map"}):
            return found
        written = event.tag.replace("tag:yaml.org,2002:", "!!")
        allowed = "!!str, !!int, !!float, !!bool, !!null"
        self.refuse(
            _line(event),
            key,
            f"not valid YAML: the tag {written[:80]} is not allowed here; allowed: {allowed}",
        )
        return "str" if isinstance(event, yaml.ScalarEvent) else None

    def refuse(self, line: int, key: Key, problem: str) -> None:
        self.found.problems.append((line, key, problem))


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _probable(text: str) -> Any:
    """Return what a refused scalar probably means, so that one mistake is reported once."""
    digits = text.replace("_", "")
    return int(digits) if _OCTAL.fullmatch(text) and len(text) <= MAX_DIGITS else text
