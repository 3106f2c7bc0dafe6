"""The combined page of a sweep: what was swept, what every job found, and how the jobs differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from analyses.figures import Drawn
from analyses.report.compare_page import conditions_table, effects_table, found_sentence
from analyses.report.page import Section, page
from analyses.report.parts import (
    Banner,
    Cell,
    Verdict,
    bullets,
    command,
    drawing,
    folded,
    head,
    heading,
    name,
    number,
    paragraph,
    sentences,
    table,
    together,
    verdicts,
)
from analyses.runs.compare import compare
from analyses.runs.comparison import Comparison, Versus
from analyses.summary.sweeps import SWEPT, SweepJob, sweep_rows, value_in_table
from analyses.tables.run import Run, TableError, load_run
from analyses.wording import count, listed, plural

FILE = "report.html"
_MOST_COLUMNS = 8  # jobs side by side; of more each finding has lines of its own
_MOST_TESTS = 400  # conditions x jobs that are compared
_MOST_CONDITIONS = 60
_MOST_COMMANDS = 12
_SIGNS = {"fail": "\u2715", "warn": "!"}


def write_sweep_report(folder: Path, jobs: Sequence[SweepJob], drawn: Drawn) -> Path:
    """Write `report.html` into the folder of a sweep, whole or not at all; returns its path. jobs: as they
    ended; drawn: the figures of the sweep."""
    path, aside = folder / FILE, folder / f".{FILE}.{os.getpid()}.part"
    text = sweep_page(folder, jobs, drawn)
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return path


def sweep_page(folder: Path, jobs: Sequence[SweepJob], drawn: Drawn) -> str:
    """The HTML of a sweep, self-contained but for the links to its jobs' own pages beside it."""
    rows = sweep_rows(jobs)
    ended = [job for job in jobs if job.folder is not None and job.summary]
    keys = list(dict.fromkeys(key for job in jobs for key in job.values))
    experiments = list(dict.fromkeys(job.experiment for job in ended))
    bad = [job for job in jobs if job.status]
    banners = []
    if bad:
        told = [f"job {jobs.index(job) + 1} ended with status {job.status}" for job in bad[:5]]
        banners = [Banner("fail" if len(ended) < len(jobs) else "warn", "Status", f"{listed(told)}.")]
    facts = [
        ("jobs", count(len(jobs))),
        ("swept", listed(keys)),
        ("experiment", listed(experiments) or "none"),
        ("sweep", folder.name),
    ]
    title = f"{listed(keys)} in {listed(experiments)}" if experiments else listed(keys)
    sections = [Section("jobs", "The jobs", _jobs(jobs, folder), note=count(len(jobs)), wide=True)]
    if rows:
        sections.append(Section("found", "What they found", _found(rows, jobs), wide=True))
    if drawn.svg:
        sections.append(Section("figures", "Figures", _figures(drawn)))
    differences = list(_differences(jobs))
    if differences:
        sections.append(Section("differences", "Differences between jobs", together(*differences), wide=True))
    if said := _sentences(jobs, folder):
        sections.append(Section("verdicts", "What each job says", said))
    sections.append(Section("gates", "Gates of all jobs", _gates(jobs)))
    sections.append(Section("again", "How to run it again", _again(jobs)))
    return page(f"Sweep: {title}", sections, header=head(f"Sweep {folder.name}", title, facts, banners))


def label_of(job: SweepJob) -> str:
    """A job by what was swept: `sampling.temperature=0.8, model=organism`."""
    return ", ".join(f"{key}={value}" for key, value in job.values.items())


def _jobs(jobs: Sequence[SweepJob], folder: Path) -> Markup:
    keys = list(dict.fromkeys(key for job in jobs for key in job.values))
    rows = []
    for place, job in enumerate(jobs, start=1):
        counts = job.summary.get("counts") or {}
        model = (job.summary.get("model") or {}).get("name") or "\u2013"
        failing = sum(gate["verdict"] == "fail" for gate in job.summary.get("gates") or ())
        swept = [name(job.values.get(key, "\u2013")) for key in keys]
        ended = "done" if job.status == 0 else f"status {job.status}"
        counted = [number(_n(each)) for each in (counts.get("ok"), counts.get("failed"), failing)]
        rows.append([number(str(place)), *swept, _link(job, folder), model, ended, *counted])
    heads: tuple[str | Cell, ...] = (
        number("job"), *keys, "run", "model", "ended", number("valid trials"), number("failed"),
        number("gates failed"),
    )  # fmt: skip
    return table(heads, rows)


def _n(value: object) -> str:
    return count(value) if isinstance(value, int) else "\u2013"


def _link(job: SweepJob, folder: Path) -> Cell:
    """A job's run, with a link to its page where it has one."""
    if job.folder is None:
        return Cell("\u2013")
    told = f"{job.experiment}/{job.folder.name}"
    for file in (FILE, "summary.md"):
        if (job.folder / file).is_file():
            at = Path(os.path.relpath(job.folder / file, folder)).as_posix()
            return Cell(Markup('<a href="{}">{}</a>').format(at, told), "name")
    return name(told)


def _found(rows: Sequence[Mapping[str, Any]], jobs: Sequence[SweepJob]) -> Markup:
    """Findings, and means of conditions, with a column for each job."""
    parts = []
    for of in ("finding", "condition"):
        mine = [row for row in rows if ("finding" in row) == (of == "finding")]
        if mine:
            parts.append(_side_by_side(mine, of))
    return together(*parts)


def _side_by_side(rows: Sequence[Mapping[str, Any]], of: str) -> Markup:
    axes = [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith(SWEPT)]
    several = len({row["experiment"] for row in rows}) > 1
    cells: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
    columns: dict[tuple[str, ...], None] = {}
    for row in rows:
        values = [str(row[axis]) for axis in axes if row.get(axis) is not None]
        column = (", ".join(values), row["version"])
        stage = row.get("stage") if of == "condition" else None
        line = tuple(filter(None, (row["experiment"] if several else "", stage, row[of])))
        columns[column] = None
        cells.setdefault(line, {})[column] = value_in_table(row, of)
    swept = listed([axis.removeprefix(SWEPT) for axis in axes])
    what = "The findings" if of == "finding" else f"The mean {rows[0]['readout']} of each condition"
    about = paragraph(f"{what}, by {swept}.", "about")
    if len(columns) <= _MOST_COLUMNS:
        heads: list[str | Cell] = [of, *(number(values or version) for values, version in columns)]
        lines = [
            [name(": ".join(line)), *(number(found.get(column, "\u2013")) for column in columns)]
            for line, found in cells.items()
        ]
        return together(about, table(heads, lines))
    long = [
        [name(": ".join(line)), name(", ".join(filter(None, column))), number(value)]
        for line, found in cells.items()
        for column, value in found.items()
    ]
    return together(about, table((of, "job", number("value")), long))


def _figures(drawn: Drawn) -> Markup:
    return together(
        *(
            drawing(
                drawn.titles.get(each, each),
                svg,
                drawn.captions.get(each, ""),
                [(kind.upper(), f"figures/{each}.{kind}") for kind in ("png", "pdf")],
            )
            for each, svg in drawn.svg.items()
        )
    )


def _differences(jobs: Sequence[SweepJob]) -> Iterator[Markup]:
    """The jobs of each experiment, each held against the first of them."""
    by_experiment: dict[str, list[SweepJob]] = {}
    for job in jobs:
        if job.folder is not None and job.summary:
            by_experiment.setdefault(job.experiment, []).append(job)
    for experiment, mine in by_experiment.items():
        if len(mine) < 2:
            continue
        runs, labels, left = _runs(mine)
        if len(runs) < 2:
            continue
        conditions = _plain_conditions(runs)
        per_job = max(1, min(_MOST_CONDITIONS, len(conditions) or _MOST_CONDITIONS))
        most = max(2, _MOST_TESTS // per_job + 1)
        found = compare(runs[:most], conditions=conditions, names=labels[:most])
        if len(by_experiment) > 1:
            yield heading(experiment)
        yield _about(found, labels[0])
        for sentence in left:
            yield paragraph(sentence)
        if len(runs) > most:
            told = (
                f"The first {most} of {plural(len(runs), 'job')} are shown; patchbay compare holds others "
                "together."
            )
            yield paragraph(told)
        for one in found.versus:
            yield _versus(one)


def _runs(jobs: Sequence[SweepJob]) -> tuple[list[Run], list[str], list[str]]:
    """The runs of jobs, what they are called, and what cannot be read."""
    runs, labels, left = [], [], []
    for job in jobs:
        assert job.folder is not None
        try:
            runs.append(load_run(job.folder))
        except TableError as error:
            left.append(str(error))
            continue
        label = label_of(job)
        labels.append(f"{label} ({job.folder.name})" if label in labels else label)
    return runs, labels, left


def _plain_conditions(runs: Sequence[Run]) -> tuple[str, ...]:
    """Of experiments with large grids the conditions that are no cells; () where all are compared."""
    names = list(dict.fromkeys(str(each) for run in runs for each in run.trials["condition"].unique()))
    if len(names) <= _MOST_CONDITIONS:
        return ()
    return tuple(each for each in names if "[" not in each) or tuple(names[:_MOST_CONDITIONS])


def _about(found: Comparison, first: str) -> Markup:
    return paragraph(
        f"Each job against {first}, on the items that both have: paired, clustered by donor and target, Holm "
        f"over all {plural(found.family, 'test')}.",
        "about",
    )


def _versus(one: Versus) -> Markup:
    names = (one.first, one.second)
    parts = [heading(one.second), paragraph(one.headline), *(paragraph(note) for note in one.notes)]
    if one.shown:
        parts.append(sentences([found_sentence(each) for each in one.shown]))
    if one.conditions:
        parts.append(folded("Conditions", conditions_table(one, names)))
    if one.effects:
        parts.append(folded("Effects", effects_table(one, names)))
    return together(*parts)


def _sentences(jobs: Sequence[SweepJob], folder: Path) -> Markup | None:
    parts = []
    for job in jobs:
        findings = [each["sentence"] for each in job.summary.get("findings") or () if each.get("sentence")]
        told = findings or [each["sentence"] for each in job.summary.get("contrasts") or ()]
        if told:
            body = together(paragraph(_link(job, folder).text), bullets(told))
            parts.append(folded(f"{label_of(job)}: {plural(len(told), 'sentence')}", body))
    return together(*parts) if parts else None


def _gates(jobs: Sequence[SweepJob]) -> Markup:
    """What every gate says that fails or warns, once for all jobs that it says it of."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for job in jobs:
        for gate in job.summary.get("gates") or ():
            if gate["verdict"] in _SIGNS:
                key = (gate["verdict"], gate["gate"], f"{gate['condition']}: {gate['sentence']}")
                found.setdefault(key, []).append(label_of(job))
    if not found:
        return paragraph("None fails and none warns.")
    ended = sum(bool(job.summary) for job in jobs)
    order = sorted(found.items(), key=lambda entry: entry[0][0] != "fail")
    return verdicts(
        [
            Verdict(kind, _SIGNS[kind], gate, sentence, "all jobs" if len(of) == ended > 1 else "; ".join(of))
            for (kind, gate, sentence), of in order
        ]
    )


def _again(jobs: Sequence[SweepJob]) -> Markup:
    told = [f"python -m runner {' '.join(job.overrides)}" for job in jobs if job.overrides]
    parts = [paragraph("Each job alone; finished trials are taken over.", "about")]
    parts += [command(f"job-{place}", each) for place, each in enumerate(told[:_MOST_COMMANDS], start=1)]
    if len(told) > _MOST_COMMANDS:
        parts.append(paragraph(f"And {count(len(told) - _MOST_COMMANDS)} more, in summary.json."))
    return together(*parts)
