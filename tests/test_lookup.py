"""Large tables are looked up without a loop over rows, and say the same as a loop would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.tables.lookup import Lookup
from analyses.tables.pairs import donor_labels, pair
from analyses.tables.prompts import Roles, ids_by_role, token_codes, types_of_pandas
from analyses.tables.run import load_run
from benchmarks.synthetic import make_run

LISTS = st.lists(st.none() | st.lists(st.integers(0, 5), max_size=4), max_size=30)
MAPS = st.lists(
    st.none() | st.dictionaries(st.sampled_from("ab"), st.lists(st.integers(0, 3), max_size=3)), max_size=20
)


def held(values: list[object], kind: pa.DataType, cut: int = 0) -> pd.Series:
    """A column as a Parquet file gives it, in two chunks, the first `cut` rows left out."""
    half = len(values) // 2
    whole = pa.chunked_array([pa.array(values[:half], kind), pa.array(values[half:], kind)], kind)
    return pa.table({"x": whole.slice(cut)}).to_pandas(types_mapper=types_of_pandas)["x"]


@settings(max_examples=60, deadline=None)
@given(LISTS, st.integers(0, 5))
def test_equal_tokens_have_equal_codes_however_the_table_holds_them(values: list[object], cut: int) -> None:
    wanted = [tuple(each) if each else None for each in values[cut:]]  # type: ignore[arg-type]
    for column in (held(values, pa.list_(pa.int32()), cut), pd.Series(values[cut:], dtype=object)):
        codes, lengths = token_codes(column)
        assert list(lengths) == [0 if each is None else len(each) for each in wanted]
        assert [code < 0 for code in codes] == [each is None for each in wanted]
        for i, one in enumerate(wanted):
            assert [codes[j] == codes[i] for j in range(i)] == [wanted[j] == one for j in range(i)]


@settings(max_examples=60, deadline=None)
@given(MAPS, st.integers(0, 5))
def test_prompts_are_found_by_role_however_the_table_holds_them(values: list[object], cut: int) -> None:
    kind = pa.map_(pa.string(), pa.list_(pa.int32()))
    pairs = [None if each is None else list(each.items()) for each in values]  # type: ignore[attr-defined]
    wanted = [ids_by_role(each) for each in values[cut:]]
    for column in (held(pairs, kind, cut), pd.Series(values[cut:], dtype=object)):
        roles = Roles.of(column)
        found: list[dict[str, tuple[int, ...]]] = [{} for _ in wanted]
        for role, codes in roles.codes.items():
            for row, code in enumerate(codes):
                if code >= 0:
                    found[row][role] = roles.tokens(int(code))
        assert found == wanted


def test_a_table_in_memory_is_paired_as_one_from_a_file(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", 600, donors=12, targets=20))
    plain = pq.read_table(run.folder / "trials.parquet").to_pandas()
    conditions = run.manifest["conditions"]
    for first, second in (("kv_only", "baseline"), ("kv_only", "kv_plain"), ("v_only_l5", "kv_pseudo")):
        one = pair(run.trials, first, second, "score", conditions)
        other = pair(plain.sample(frac=1, random_state=3), first, second, "score", conditions)
        assert one.test() == other.test() and one.test().p is not None
        assert list(one.donors) == list(other.donors) and one.target.index.equals(other.target.index)
        assert list(one.difference) == list(other.difference)
    mine = run.trials[run.trials["condition"] == "kv_plain"]
    labels = donor_labels(mine, "length_matched")
    assert labels.nunique() == mine["donor"].nunique()
    assert all(isinstance(label, tuple) for label in labels)  # no item's own donor: told by its tokens
    assert list(donor_labels(plain.loc[mine.index], "length_matched")) == list(labels)


def test_units_are_told_apart_also_where_most_combinations_do_not_occur() -> None:
    n = 300
    frame = pd.DataFrame(
        {
            "stage": [f"s{i:04d}" for i in range(n)],
            "condition": "a",
            "item": [f"{i:04d}" for i in range(n)],
            "repeat": range(n),
            "status": "ok",
            "value": np.arange(n, dtype=float),
        }
    )
    lookup = Lookup.of(pd.concat([frame, frame.assign(condition="b", value=0.0)], ignore_index=True))
    assert lookup.units.size == n
    paired = pair(lookup, "a", "b", "value")
    assert list(paired.difference) == list(range(n))
    assert list(paired.target.index[7]) == ["s0007", "0007", 7]
    assert lookup.distinct(lookup.items) == (n, 0, 0, 1)


def test_what_one_table_is_asked_twice_is_computed_once(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", 100, donors=5, targets=5))
    lookup = Lookup.of(run.trials)
    assert Lookup.of(lookup) is lookup
    first = pair(lookup, "kv_only", "baseline", "score")
    assert pair(lookup, "kv_only", "baseline", "score") is first and first.test() is first.test()
    assert pair(lookup, "kv_only", "baseline", "score", run.manifest["conditions"]) is not first


def test_two_valid_trials_of_one_unit_are_refused(tmp_path: Path) -> None:
    trials = load_run(make_run(tmp_path / "run", 100, donors=5, targets=5)).trials
    twice = pd.concat([trials, trials.iloc[[3]]], ignore_index=True)
    with pytest.raises(ValueError, match="baseline: two valid trials of item 0003, repeat 0"):
        pair(twice, "kv_only", "baseline", "score")


def test_a_run_is_analysed_without_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 400, donors=8, targets=10)
    code = (
        "import sys; from analyses.tables.run import load_run; "
        "from analyses.summary.summary import summarise; from analyses.published.recheck import recheck; "
        f"found = summarise(load_run({str(folder)!r})); recheck('transfer'); "
        "assert len(found['contrasts']) == 13; "
        "print([name for name in ('torch', 'transformers', 'runner', 'backends') if name in sys.modules])"
    )
    home = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr[-2000:]
