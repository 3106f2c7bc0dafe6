"""The record of a run: its manifest, searchable, and how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from analyses.report.page import Section
from analyses.report.parts import command, heading, pairs, paragraph, together
from analyses.tables.run import Run
from analyses.wording import count

MOST_DIFF = 20_000  # characters of an uncommitted diff on the page
MOST_ENTRIES = 1_500  # of a group; the rest is in manifest.json
_PACKAGES = (
    "patchbay",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "statsmodels",
    "pandas",
)
_ELSEWHERE = (
    "config", "packages", "git", "hardware", "model", "stages", "conditions", "prompts", "markers", "readout",
    "plan_gates", "findings", "figures", "analyses", "contrasts", "seeds", "times", "command", "attempts",
    "power", "factors",
)  # fmt: skip


def manifest_section(run: Run) -> Section:
    """The manifest in groups, each folded, with a search over all."""
    body = Markup(
        '<p><input type="search" class="finder screen" data-filters="manifest-groups" hidden '
        'placeholder="Find in the manifest" aria-label="Find in the manifest"></p>'
        '<div id="manifest-groups">{}</div>'
    ).format(Markup("").join(_group(title, entries) for title, entries in _groups(run.manifest) if entries))
    return Section("manifest", "Manifest", body)


def reproduce_section(run: Run) -> Section:
    """How to run it again, and how to tell that it is the same."""
    manifest = run.manifest
    git, packages = manifest.get("git") or {}, manifest.get("packages") or {}
    told = [str(each) for each in manifest.get("command") or ()]
    name = f"{run.folder.resolve().parent.name}/{run.folder.resolve().name}"
    bodies: list[Markup] = []
    if told:
        lines = [f"git checkout {git['commit']}"] if git.get("commit") else []
        bodies += [heading("Run it again"), command("command-run", "\n".join([*lines, shlex.join(told)]))]
    else:
        bodies.append(paragraph("The manifest does not say by which command this was run."))
    if git.get("dirty"):
        words = "The checkout had changes that are in no commit. They are in manifest.json under git.diff"
        cut = len(str(git.get("diff") or "")) > MOST_DIFF
        bodies.append(paragraph(f"{words}{', and in part below' if cut else ', and below'}."))
    if manifest.get("status") not in ("done", "finished", "complete") and told:
        again = shlex.join([*told, *([] if "resume=true" in told else ["resume=true"])])
        bodies += [heading("Go on with it"), command("command-resume", again)]
    again = f"patchbay repro {name}\npatchbay report {name}\npatchbay compare {name} OTHER"
    bodies += [
        heading("From its folder"),
        command("command-folder", again),
        paragraph(
            "repro runs a sample of its trials again and says how many differ; report makes this page anew; "
            "compare puts another run beside it.",
            "about",
        ),
        heading("What must agree"),
        pairs(_identity(manifest, packages)),
    ]
    return Section("reproduce", "How to reproduce", together(*bodies))


def _identity(manifest: Mapping[str, Any], packages: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, seeds = manifest.get("model") or {}, manifest.get("seeds") or {}
    found = [
        ("configuration", manifest.get("config_hash")),
        ("weights", model.get("fingerprint")),
        ("tokenizer", model.get("tokenizer_fingerprint")),
        ("model revision", model.get("revision")),
        ("semantics version", manifest.get("semantics")),
        ("dtype, attention", ", ".join(str(manifest[k]) for k in ("dtype", "attention") if manifest.get(k))),
        ("device", (manifest.get("hardware") or {}).get("device")),
        ("python", (manifest.get("hardware") or {}).get("python")),
        *((each, packages.get(each)) for each in _PACKAGES),
        *((f"seed, {key}", value) for key, value in seeds.items()),
    ]
    for stage, part in {"": manifest, **(manifest.get("stages") or {})}.items():
        for bank, each in ((part.get("prompts") or {}).get("banks") or {}).items():
            where = f"bank {bank}" + (f", stage {stage}" if stage else "")
            found.append((where, f"sha256 {each.get('sha256')}"))
    return [(key, str(value)) for key, value in found if value not in (None, "")]


def _groups(manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The parts of the manifest: title, and names with values."""
    run = {key: value for key, value in manifest.items() if key not in _ELSEWHERE}
    yield "Run", list(_flat({"command": shlex.join(map(str, manifest.get("command") or ()))} | run))
    yield "Times, in UTC and seconds", list(_flat(manifest.get("times") or {}))
    yield "Model", list(_flat(manifest.get("model") or {}))
    yield "Hardware", list(_flat(manifest.get("hardware") or {}))
    yield "Seeds", list(_flat(manifest.get("seeds") or {}))
    yield "Prompts", list(_flat(manifest.get("prompts") or {}))
    yield "Configuration", list(_flat(manifest.get("config") or {}))
    yield "Contrasts", list(_flat(manifest.get("contrasts") or {}))
    yield "Readouts", list(_flat(manifest.get("readout") or {}))
    yield "Markers", list(_flat(manifest.get("markers") or {}))
    for part in ("findings", "analyses", "figures", "power", "factors"):
        yield part.capitalize(), list(_flat(manifest.get(part) or {}))
    yield "Conditions as resolved", list(_flat(manifest.get("conditions") or {}))
    for name, stage in (manifest.get("stages") or {}).items():
        yield f"Stage {name}", list(_flat(stage))
    yield "Earlier attempts", list(_flat({"attempts": manifest.get("attempts") or []}, MOST_DIFF // 10))
    git = dict(manifest.get("git") or {})
    diff = str(git.pop("diff", "") or "")
    told = list(_flat(git))
    if diff:
        left = len(diff) - MOST_DIFF
        cut = f"\n... {count(left)} more characters are in manifest.json" if left > 0 else ""
        told.append(("diff", diff[:MOST_DIFF] + cut))
    yield "Git", told
    yield "Packages", list(_flat(manifest.get("packages") or {}))


def _flat(value: object, longest: int = 2_000, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values; a list of plain values is one."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, longest, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        for place, each in enumerate(value):
            yield from _flat(each, longest, f"{path}.{place}")
    elif path and value not in ({}, ""):
        told = _plain(value)
        yield path, told if len(told) <= longest else f"{told[:longest]} ... ({count(len(told))} characters)"


def _plain(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)


def _group(title: str, entries: Sequence[tuple[str, str]]) -> Markup:
    shown = pairs(entries[:MOST_ENTRIES])
    left = len(entries) - MOST_ENTRIES
    more = paragraph(f"{count(left)} more in manifest.json.", "about") if left > 0 else ""
    return Markup('<details><summary>{} <span class="aside">{}</span></summary>{}{}</details>').format(
        title, count(len(entries)), shown, more
    )
