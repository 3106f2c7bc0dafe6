"""The words behind a command: what stands free, what is `KEY=VALUE`, and what is wrong with either."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from runner.config.errors import ConfigurationError, Problem, listed, suggestion

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_KEY = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)  # SQL, which has `=` too, begins with a bare word
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Key(Generic[T_co]):
    """One `KEY=VALUE` of a command. read: the value of a word, or ValueError with what was expected and,
    if there is one, the nearest; shown: how the help writes its value; says: what it does."""

    name: str
    read: Callable[[str], T_co]
    default: T_co
    shown: str
    says: str


@dataclass(frozen=True)
class Command:
    """What a command is told by its help, and what words it takes.

    takes: how the free words are written (`RUN`, `RUN RUN [RUN ...]`); least and most: how many (None: any
    number); about: a few lines; keys: its `KEY=VALUE` words.
    """

    name: str
    about: str
    takes: str = ""
    least: int = 0
    most: int | None = 0
    keys: tuple[Key[Any], ...] = ()
    examples: tuple[str, ...] = ()

    def help(self) -> str:
        """The text of `patchbay NAME --help`."""
        keys = "[KEY=VALUE ...]" if self.keys else ""
        words = " ".join(word for word in ("patchbay", self.name, self.takes, keys) if word)
        lines = [words, "", *(f"  {line}".rstrip() for line in self.about.strip().splitlines())]
        if self.keys:
            shown = [f"{key.name}={key.shown}" for key in self.keys]
            width = max(map(len, shown))
            rows = zip(shown, self.keys, strict=True)
            lines += ["", "Keys:", *(f"  {word:<{width}}  {key.says}" for word, key in rows)]
        if self.examples:
            lines += ["", "Examples:", *(f"  {example}" for example in self.examples)]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Given:
    """The words of one call of a command: `free` in their order, and by key what was given or its default."""

    free: tuple[str, ...]
    _values: Mapping[str, object]

    def __getitem__(self, key: Key[T]) -> T:
        return cast("T", self._values.get(key.name, key.default))

    def has(self, key: Key[Any]) -> bool:
        """Whether the key was given on the command line."""
        return key.name in self._values


def read(command: Command, words: Sequence[str]) -> Given:
    """Take the words of a command apart. Raises ConfigurationError with every mistake at once: a key or an
    option that does not exist, a value that cannot be read, a key given twice, too few or too many words."""
    known = {key.name: key for key in command.keys}
    free: list[str] = []
    values: dict[str, object] = {}
    problems: list[Problem] = []

    def wrong(key: str, message: str) -> None:
        problems.append(Problem("command line", key, message))

    for word in words:
        found = _KEY.fullmatch(word)
        if found is None and not word.startswith("-"):
            free.append(word)
            continue
        name, value = (found[1], found[2]) if found else (word, "")
        if found is None or name.startswith("-"):
            wrong(name, _no_option(command, word))
        elif name not in known:
            keys = f"keys of {command.name}: {listed(known)}"
            wrong(name, f"no such key ({keys}){suggestion(name, known)}")
        elif name in values:
            wrong(name, "given twice")
        else:
            try:
                values[name] = known[name].read(value)
            except ValueError as error:
                expected, *hint = error.args
                wrong(name, f"{expected}, got '{value}'{''.join(hint)}")
    if len(free) < command.least or (command.most is not None and len(free) > command.most):
        got = " ".join(free) if free else "nothing"
        wrong(command.name, f"expected {command.takes or 'no words but KEY=VALUE'}, got {got}")
    if problems:
        raise ConfigurationError(problems)
    return Given(tuple(free), values)


def _no_option(command: Command, word: str) -> str:
    name, _, value = word.lstrip("-").partition("=")
    keys = {key.name: key for key in command.keys}
    key = keys.get(name.replace("-", "_"))
    if key is not None:
        return f"no such option; keys are given as {key.name}={value or key.shown}"
    return f"no such option (keys of {command.name}: {listed(keys)}){suggestion(name, keys)}"


def text(word: str) -> str:
    """Any text but the empty one."""
    if not word:
        raise ValueError("expected a value")
    return word


def folder(word: str) -> Path:
    """The path of a folder, which need not exist."""
    return Path(text(word)).expanduser()


def whole(least: int = 0) -> Callable[[str], int]:
    """A reader of whole numbers from `least` on."""

    def reader(word: str) -> int:
        if not re.fullmatch(r"\d+", word) or int(word) < least:
            raise ValueError(f"expected a whole number of {least} or more")
        return int(word)

    return reader


def flag(word: str) -> bool:
    """true or false."""
    if word.casefold() not in ("true", "false"):
        raise ValueError("expected true or false")
    return word.casefold() == "true"


def one_of(*known: str) -> Callable[[str], str]:
    """A reader of one of some words."""

    def reader(word: str) -> str:
        if word not in known:
            raise ValueError(f"expected one of {listed(known)}", suggestion(word, known))
        return word

    return reader


def names(word: str) -> tuple[str, ...]:
    """Names with commas between them, each once."""
    found = tuple(part.strip() for part in word.split(","))
    if not all(found):
        raise ValueError("expected names with commas between them")
    return tuple(dict.fromkeys(found))


def age(word: str) -> timedelta:
    """A span of time: 90m, 12h, 30d, 2w."""
    found = _AGE.fullmatch(word.strip())
    if found is None:
        raise ValueError("expected a number with m, h, d or w (90m, 12h, 30d, 2w)")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


OUTPUT_ROOT: Key[Path] = Key("output_root", folder, Path("outputs"), "DIR", "where results are (outputs)")


def formats(*known: str) -> Key[str]:
    """The key `format`; the first word is the default."""
    return Key("format", one_of(*known), known[0], "|".join(known), f"how it is written ({known[0]})")


@dataclass(frozen=True)
class Line:
    """A command line of Hydra overrides, taken apart."""

    words: tuple[str, ...]
    config_dir: Path | None
    multirun: bool


def take_apart(argv: Sequence[str]) -> Line:
    """Options and overrides of a command line. Raises ConfigurationError for an option that does not
    exist."""
    words: list[str] = []
    config_dir: Path | None = None
    multirun = False
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-m", "--multirun"):
            multirun = True
        elif word == "--config-dir" or word.startswith("--config-dir="):
            value = word.partition("=")[2] if "=" in word else (rest.pop(0) if rest else "")
            config_dir = Path(value).resolve()
            if not value or not config_dir.is_dir():
                raise ConfigurationError(
                    [Problem("command line", "--config-dir", f"'{value}' is not a folder")]
                )
        elif word.startswith("-"):
            raise ConfigurationError([Problem("command line", word, unknown_option(word))])
        else:
            words.append(word)
    return Line(tuple(words), config_dir, multirun)


_RUN_KEYS = ("dry_run", "resume", "allow_inert", "limit", "profile", "quiet", "output_root", "report")


def unknown_option(word: str) -> str:
    """What to write instead of an option that does not exist."""
    name, _, value = word.lstrip("-").partition("=")
    key = name.replace("-", "_")
    if key in _RUN_KEYS:
        return f"no such option; keys are given as {key}={value or 'true'}"
    known = ("--multirun", "--config-dir", "--help", "--version")
    return f"no such option (options: {', '.join(known)}){suggestion(word, known)}"


def wants_help(words: Iterable[str]) -> bool:
    """Whether a command's own help is asked for."""
    return any(word in ("-h", "--help") for word in words)
