"""Whether the figures of a file of published results can be true together: every one of them, recomputed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from analyses.published.claims import CLAIMS, Wrong, recheck_claims
from analyses.published.cross_model_rules import cross_model_rules
from analyses.published.rechecked import CONTRADICTORY, NOT_REPRODUCIBLE, Book, Rechecked, Rules, leaves
from analyses.published.transfer_rules import transfer_rules

EMBEDDED = Path(__file__).parent
NO_RULE = "no rule says what it follows from"
_RULES: Sequence[Rules] = (transfer_rules, cross_model_rules)
_BLOCKS = (
    "n300",
    "pilot",
    "aggressive",
    "true_kv",
    "geometry",
    "statistics_fixtures",
    "two_hop",
    "refusal_direction",
    "sycophancy_confidence",
    "back_patching_of_15",
    "function_vectors_layer_level",
    "cross_lingual_refusal",
    "papers",
)


class PublishedError(Exception):
    """A file of figures that cannot be rechecked. problems: (key, sentence) of every mistake."""

    def __init__(self, path: Path, problems: Sequence[tuple[str, str]]) -> None:
        self.path, self.problems = path, tuple(problems)
        lines = (f"{path}: {key}: {told}" if key else f"{path}: {told}" for key, told in problems)
        super().__init__("\n".join(lines))


def embedded() -> dict[str, Path]:
    """The files of published figures that patchbay has, by name."""
    return {path.stem: path for path in sorted(EMBEDDED.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a name: a path, else one of the embedded files (`transfer`, `published/transfer.yaml`).

    Raises PublishedError, which names what there is, for neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = embedded()
    if path.stem in known and path.suffix in ("", ".yaml") and str(path.parent) in (".", "published"):
        return known[path.stem]
    near = get_close_matches(path.stem, known, 1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise PublishedError(path, [("", f"expected a file, or one of {', '.join(known)}; found nothing{hint}")])


def recheck(path: Path | str) -> list[Rechecked]:
    """Every figure of a file, in the order of the file.

    The file has `claims`, each with what was printed of one test, or the form of the embedded ones. Raises
    PublishedError with every mistake: no file, no YAML, a key twice, a form that is neither, a figure that is
    no number.
    """
    path = find(str(path))
    data = _load(path)
    if CLAIMS in data:
        wrong: Wrong = [
            (str(key), f"expected nothing beside {CLAIMS}") for key in data if key not in (CLAIMS, "source")
        ]
        claims = data[CLAIMS]
        if not isinstance(claims, Mapping) or not claims:
            raise PublishedError(path, [(CLAIMS, f"expected claims by name, got {claims!r}")])
        found = recheck_claims(claims, wrong)
        if wrong:
            raise PublishedError(path, wrong)
        return found
    if not set(data) & set(_BLOCKS):
        raise PublishedError(
            path, [("", f"expected {CLAIMS}, or a block such as n300; got {', '.join(data)}")]
        )
    return _by_rules(path, data)


def unexpected(found: Sequence[Rechecked]) -> list[Rechecked]:
    """The contradictions that the file does not declare."""
    return [each for each in found if each.verdict == CONTRADICTORY and not each.expected]


def _by_rules(path: Path, data: Mapping[str, Any]) -> list[Rechecked]:
    book = Book(data, {})
    for rules in _RULES:
        try:
            rules(book)
        except ValueError as error:
            raise PublishedError(path, [("", str(error))]) from error
    return [
        book.found.get(key) or Rechecked(".".join(key), text, NOT_REPRODUCIBLE, None, NO_RULE)
        for key, text in leaves(data)
    ]


class _Loader(yaml.BaseLoader):
    """Scalars stay text, so that "2.20" keeps the digits that it was printed with; a key that stands twice is
    a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' stands twice", key.start_mark
                )
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _load(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())
        raise PublishedError(path, [("", f"expected YAML: {told}")]) from error
    if not isinstance(found, dict) or not found:
        raise PublishedError(path, [("", f"expected figures by name, got {found!r}")])
    return found
