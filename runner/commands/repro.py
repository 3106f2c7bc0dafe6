"""`repro`: a sample of a run's trials, run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from runner.commands.words import OUTPUT_ROOT, Command, Key, folder, formats, read, whole
from runner.status import CONFIGURATION, DONE, FAILED_TRIALS

if TYPE_CHECKING:
    from runner.repro import Reproduction

SAMPLE: Key[int] = Key("sample", whole(1), 20, "N", "how many trials (20), spread over the conditions")
SEED: Key[int] = Key("seed", whole(), 0, "N", "which trials are drawn (0)")
CONFIG_DIR: Key[Path | None] = Key("config_dir", folder, None, "DIR", "your own files, where they have moved")
FORMAT = formats("table", "json")
COMMAND = Command(
    name="repro",
    about=(
        "Run a sample of a run's trials again, from its own configuration, choices and artefacts, and say\n"
        "which come out as they did: tokens, scores and receipts. In low precision batches are run as they\n"
        "were. Writes repro-TIME.json into the run's folder, and nothing else.\n"
        "Exit status: 0 all the same, near-ties aside; 4 some differ; 2 it cannot be run again, and why."
    ),
    takes="RUN",
    least=1,
    most=1,
    keys=(SAMPLE, SEED, CONFIG_DIR, FORMAT, OUTPUT_ROOT),
    examples=("patchbay repro n300_controls/v0001", "patchbay repro refusal_direction sample=60 seed=1"),
)


def run(words: Sequence[str], console: Console) -> int:
    """Run the sample, print what came of it and store it beside the run."""
    given = read(COMMAND, words)  # mistakes are told before anything heavy is loaded
    from rich.text import Text

    from analyses.runs.folders import run_name
    from analyses.tables.run import load_run
    from runner.repro import CannotRepeat, reproduce
    from runner.repro_terminal import print_reproduction
    from runner.results.find_run import find_run
    from runner.results.stored import own_config_dir

    path = find_run(given.free[0], given[OUTPUT_ROOT]).resolve()
    stored = load_run(path)
    as_json = given[FORMAT] == "json"

    def note(sentence: str) -> None:
        if not as_json:
            console.print(Text(sentence, style="dim"))

    try:
        config_dir = own_config_dir(stored.manifest, given[CONFIG_DIR])
        found = reproduce(stored, run_name(path), config_dir, given[SAMPLE], given[SEED], note)
    except CannotRepeat as error:
        console.print(Text(str(error), style="red"))
        return CONFIGURATION
    body = _plain(found)
    if as_json:
        import orjson

        print(orjson.dumps(body, option=orjson.OPT_INDENT_2, default=str).decode())
    else:
        print_reproduction(found, console)
    written = _write(path, body)
    if not as_json:
        told = (
            f"stored: {written}" if written is not None else f"{path} cannot be written to: nothing is stored"
        )
        console.print(Text(told, style="dim"))
    return DONE if found.sound else FAILED_TRIALS


def _plain(found: Reproduction) -> dict[str, Any]:
    verdicts = ("same", "near_tie", "differs", "failed")
    return {**asdict(found), "counts": {each: found.number(each) for each in verdicts}, "sound": found.sound}


def _write(folder: Path, body: Mapping[str, Any]) -> Path | None:
    """Write what came of it under a name that nothing has; None where the folder cannot be written to."""
    from datetime import UTC, datetime

    import orjson

    data = orjson.dumps(body, option=orjson.OPT_INDENT_2, default=str)
    time, number = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"), 1
    while True:
        path = folder / (f"repro-{time}.json" if number == 1 else f"repro-{time}-{number}.json")
        try:
            with path.open("xb") as file:
                file.write(data + b"\n")
            return path
        except FileExistsError:
            number += 1
        except OSError:
            return None
