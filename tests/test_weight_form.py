"""`weights`: a direction out of the model's weights for one condition, against hooks that take it out of the
residual stream, and what is told where that is not the same."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from backends.contract import BackendError, Footprint, Start
from backends.measures import Probe, ScoreRow
from backends.rows import Row, by_weights
from backends.torch.backend import TorchBackend
from backends.writes import Constant
from runner import run, status
from runner.config.resolve import Design
from runner.config.writes.vectors import Extracted, GroupedConstant, NoVector, foreign
from runner.config.writes.weights import weights_for
from runner.execute import Executor, Result
from runner.plan import Plan
from runner.plan_gates import plan_gates
from runner.prepare import Prepared, prepare
from runner.schedule import batches
from tests.configuring import design, faults
from tests.models import CPU, GREEDY, make_model, prompt, write
from tests.test_model_files import local_folder

WIDTH, LAYERS = 64, 9
EVERYWHERE = "op: project_out, during: both"
READOUTS = """
readout:
  drift: {kind: kl}
  gap: {kind: log_odds, tokens: stop, against: bet}
  said: {kind: logprob, continuation: "stop the bet"}
  lens: {kind: lens, tokens: stop}
readouts: [behaviour, perplexity, drift, gap, said, lens]
"""
VALUES = ["score", "perplexity", "drift", "gap", "said"]


def vector(folder: Path, *shape: int, seed: int = 1, name: str = "r") -> Path:
    """A Gaussian direction, or one for each layer, in a file."""
    path = folder / f"{name}.npy"
    np.save(path, np.random.default_rng(seed).standard_normal(shape or (WIDTH,)).astype(np.float32))
    return path


def mine(folder: Path, conditions: str, rest: str = READOUTS, n: int = 4) -> Path:
    """A user's folder with one experiment: a baseline and these conditions (YAML, one a line)."""
    lines = "".join(f"  {line}\n" for line in conditions.strip().splitlines())
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / "mine.yaml").write_text(
        f"# @package _global_\nexperiment: {{name: mine, n: {n}}}\nsampling: {{max_new_tokens: 12}}\n"
        f"conditions:\n  baseline: {{}}\n{lines}{rest}",
        encoding="utf-8",
    )
    return folder


def hooks(path: Path) -> str:
    """The writes that take a direction out of everything that the residual stream holds."""
    value = f'value: "file:{path}", {EVERYWHERE}'
    return (
        f"{{e: {{site: embed, {value}}}, m: {{site: resid_mid, layers: all, {value}}}, "
        f"p: {{site: resid_post, layers: all, {value}}}}}"
    )


def changed(path: Path, more: str = "") -> str:
    return f'{{weights: {{orthogonalise: "file:{path}"{more}}}}}'


def run_mine(folder: Path, *overrides: str) -> tuple[int, Path]:
    words = ("+experiment=mine", "quiet=true", "report=false", "backend.threads=1")
    found = run([*words, f"output_root={folder / 'o'}", *overrides], config_dir=folder)
    assert found.folder is not None
    return found.status, found.folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A run of one direction in both forms, as a table by condition and item, with the folder it is in."""
    folder = tmp_path_factory.mktemp("forms")
    path = vector(folder)
    conditions = (
        f"hooks: {hooks(path)}\nchanged: {changed(path)}\nother: {changed(vector(folder, seed=2, name='s'))}"
    )
    ended, where = run_mine(mine(folder, conditions))
    assert ended == status.DONE
    table = pd.read_parquet(where / "trials.parquet").set_index(["condition", "item"])
    table.attrs["folder"] = str(where)
    return table


def test_changed_weights_say_what_hooks_say(both: pd.DataFrame) -> None:
    assert (both["status"] == "ok").all()
    base, hooked, weights = (both.loc[name] for name in ("baseline", "hooks", "changed"))
    assert weights["output_ids"].map(tuple).equals(hooked["output_ids"].map(tuple))
    for column in VALUES:
        assert weights[column].to_numpy() == pytest.approx(hooked[column].to_numpy(), rel=1e-3, abs=1e-5)
    for ours, theirs in zip(weights["lens.prob"], hooked["lens.prob"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    assert (base["drift"] == 0).all() and (weights["drift"] > 1e-3).all()
    assert not weights["output_ids"].map(tuple).equals(base["output_ids"].map(tuple))
    assert weights["gap"].to_numpy() != pytest.approx(both.loc["other"]["gap"].to_numpy(), rel=1e-2)


def test_a_condition_without_writes_but_with_weights_has_no_receipts(both: pd.DataFrame) -> None:
    assert both.loc["changed"].filter(like=".positions_").isna().all().all()


def test_the_manifest_and_the_words_name_the_direction(both: pd.DataFrame) -> None:
    manifest = json.loads((Path(both.attrs["folder"]) / "manifest.json").read_text())
    told = manifest["conditions"]["changed"]
    assert told["weights"]["orthogonalise"]["name"].endswith("r.npy")
    assert len(told["weights"]["orthogonalise"]["digest"]) == 64
    assert manifest["conditions"]["hooks"]["weights"] is None
    assert "taken out of the model's weights" in " ".join(told["words"])
    assert "Nothing is written" not in " ".join(told["words"])


def test_an_axis_can_run_over_the_layers_of_a_file(tmp_path: Path) -> None:
    path = vector(tmp_path, LAYERS, WIDTH)
    grid = f'cells: {{grid: {{weights.from_layer: [2, "late"]}}, weights: {{orthogonalise: "file:{path}"}}}}'
    found = design("+experiment=mine", folder=mine(tmp_path, grid))
    array = np.load(path)
    for name, layer in (("cells[weights.from_layer=2]", 2), ("cells[weights.from_layer=late]", 7)):
        condition = found.condition(name)
        assert condition.weights is not None
        assert (condition.weights.array == array[layer]).all()
        assert f"r.npy at layer {layer} " in " ".join(condition.words)


def planned(folder: Path, *overrides: str) -> tuple[Design, Prepared]:
    found = design("+experiment=mine", "backend.threads=1", *overrides, folder=folder)
    return found, prepare(found, folder)


def keys(plan: Plan, condition: str) -> list[str]:
    return [trial.key for trial in plan.trials if trial.condition == condition]


def test_a_direction_is_named_by_its_content_in_keys(tmp_path: Path) -> None:
    path = vector(tmp_path, LAYERS, WIDTH)
    np.save(tmp_path / "fifth.npy", np.load(path)[5])
    lines = (
        f"layer: {changed(path, ', from_layer: 5')}\nlate: {changed(path, ', from_layer: 6')}\n"
        f"alone: {{same_as: layer, {changed(tmp_path / 'fifth.npy')[1:]}"
    )
    _, prepared = planned(mine(tmp_path, lines))
    plan = prepared.plan
    assert keys(plan, "layer") == keys(plan, "alone")
    assert len({*keys(plan, "layer"), *keys(plan, "late"), *keys(plan, "baseline")}) == 12


def test_batches_hold_one_kind_of_weights_and_each_is_entered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [vector(tmp_path, seed=seed, name=f"v{seed}") for seed in (1, 2)]
    lines = "".join(f"c{i}: {changed(path)}\n" for i, path in enumerate(paths))
    _, prepared = planned(mine(tmp_path, lines, "readouts: [kl]\ncontrasts: {primary: kl}\n"))
    trials, backend = prepared.plan.trials, prepared.backend
    assert isinstance(backend, TorchBackend)
    ample = Footprint(1, 1, 1 << 40)
    found = [[trial.row.weights for trial in batch.trials] for batch in batches(trials, ample, None)]
    assert [len(each) for each in found] == [4, 4, 4] and all(len(set(each)) == 1 for each in found)
    assert found[0][0] is None
    entered: list[bytes] = []
    real = TorchBackend.orthogonalised

    def counted(self: TorchBackend, direction: np.ndarray) -> object:
        entered.append(direction.tobytes())
        return real(self, direction)

    monkeypatch.setattr(TorchBackend, "orthogonalised", counted)
    before = backend.decode([trial.row for trial in trials[:1]])
    results: list[Result] = []
    executor = Executor(
        backend, prepared.tokenizer, prepared.design.measured, results.extend, _Silent(), most_rows=1
    )
    executor.run(trials)
    assert [result["status"] for result in results] == ["ok"] * 12
    assert len(entered) == len(set(entered)) == 2
    assert backend.decode([trial.row for trial in trials[:1]]) == before
    drifts = {result["key"]: result["scores"]["kl"] for result in results}
    assert all((drifts[trial.key] == 0) == (trial.row.weights is None) for trial in trials)


class _Silent:
    def advanced(self, trials: int, tokens: int) -> None: ...
    def failed(self, trial: object, error: str) -> None:
        raise AssertionError(error)

    def note(self, sentence: str) -> None: ...


STAGED = """# @package _global_
defaults: [_self_, {override /prompts: refusal}]
experiment: {name: staged, n: 4}
stages:
  direction: {kind: extract, split: extract, site: resid_pre, positions: "last:2", each_position: true,
              of: donor, minus: target}
  use:
    kind: measure
    split: test
    conditions:
      baseline: {prompt: donor}
      hooks:
        prompt: donor
        e: {site: embed, VALUE}
        m: {site: resid_mid, layers: all, VALUE}
        p: {site: resid_post, layers: all, VALUE}
      changed: {prompt: donor, weights: {orthogonalise: "artefact:direction", FROM}}
    readouts: [refusal, kl]
    contrasts: {primary: refusal}
"""


def test_an_artefact_of_an_earlier_stage_names_the_direction(tmp_path: Path) -> None:
    of = 'from_layer: 4, from_positions: "index:-1"'
    text = STAGED.replace("VALUE", f"value: 'artefact:direction', {EVERYWHERE}, {of}").replace("FROM", of)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    ended, where = run_mine(tmp_path)
    assert ended == status.DONE
    table = pd.read_parquet(where / "trials.parquet").set_index("condition")
    assert table.loc["changed"]["kl"].to_numpy() == pytest.approx(
        table.loc["hooks"]["kl"].to_numpy(), rel=1e-3
    )
    assert table.loc["changed"]["kl"].min() > 1e-3
    (tmp_path / "experiment" / "mine.yaml").write_text(text.replace(f", {of}}}}}", "}}"), encoding="utf-8")
    said = faults("+experiment=mine", folder=tmp_path)
    assert "changed.weights.from_layer: missing" in said and "one for each of the layers 0, 1" in said


def test_a_vector_of_another_model_takes_nothing_out_of_this_one() -> None:
    vectors = np.ones(WIDTH, dtype=np.float32)
    own = Extracted("d", vectors, "r", fingerprint="a" * 64, model="mine")
    grouped = GroupedConstant("g", vectors, "r", groups=(("x", own), ("y", own)))
    for constant in (own, grouped):
        assert foreign(constant, "a" * 64, "mine") is None
        told = foreign(constant, "b" * 64, "other")
        assert told is not None and "was extracted from mine" in told and "this is other" in told
    assert weights_for(grouped, "y") == own and weights_for(None, "y") is None
    with pytest.raises(NoVector, match="the group 'z', found those of x, y"):
        weights_for(grouped, "z")


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_where_it_is_not_exact_trials_are_invalid_and_say_why(family: str, tmp_path: Path) -> None:
    model = local_folder(tmp_path / "model", family)
    path = vector(tmp_path, 32)
    folder = mine(tmp_path, f"changed: {changed(path)}", "readouts: [behaviour, kl]\n")
    ended, where = run_mine(folder, f"+model.path={model}")
    assert ended == status.DONE
    table = pd.read_parquet(where / "trials.parquet").set_index("condition")
    assert (table.loc["baseline"]["status"] == "ok").all()
    assert (table.loc["changed"]["status"] == "invalid").all()
    (reason,) = set(table.loc["changed"]["reason"])
    assert "its embeddings are tied" in reason
    assert ("norms stand between" in reason) == (family == "gemma2")
    summary = json.loads((where / "summary.json").read_text())
    assert summary["counts"]["invalid"] == 4 and summary["counts"]["failed"] == 0


@pytest.mark.parametrize(
    ("words", "key", "told"),
    [
        ('orthogonalise: "files:r.npy"', "orthogonalise", "expected one of artefact:NAME, file:PATH"),
        ('orthogonalise: "file:none.npy"', "orthogonalise", "found no 'none.npy'"),
        ('orthogonalise: "file:{short}"', "orthogonalise", "[64] or [9, 64], got [5]"),
        ('orthogonalise: "file:{zero}"', "orthogonalise", "is zero, which is no direction"),
        ('orthogonalise: "file:{each}"', "from_layer", "one for each of 9 layers"),
        ('orthogonalise: "file:{each}", from_layer: 9', "from_layer", "expected a layer from 0 to 8"),
        ('orthogonalise: "file:{one}", from_layer: 3', "from_layer", "one vector for all layers"),
        (
            'orthogonalise: "file:{one}", from_positions: "index:-1"',
            "from_positions",
            "a file has no positions",
        ),
        ("orthogonalise: artefact:dir", "orthogonalise", "got 'dir'"),
        ("orthogonalize: artefact:dir", "orthogonalize", "did you mean 'orthogonalise'?"),
    ],
)
def test_what_weights_cannot_mean_is_said_at_the_door(
    words: str, key: str, told: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "zero.npy", np.zeros(WIDTH, dtype=np.float32))
    paths = {
        "one": vector(tmp_path, name="one"),
        "each": vector(tmp_path, LAYERS, WIDTH, name="each"),
        "short": vector(tmp_path, 5, name="short"),
        "zero": tmp_path / "zero.npy",
    }
    said = faults("+experiment=mine", folder=mine(tmp_path, f"c: {{weights: {{{words.format(**paths)}}}}}"))
    assert f"conditions.c.weights.{key}: " in said and told in said


def test_conditions_that_change_the_same_weights_are_one(tmp_path: Path) -> None:
    path = vector(tmp_path)
    said = faults("+experiment=mine", folder=mine(tmp_path, f"a: {changed(path)}\nb: {changed(path)}"))
    assert "conditions 'a' and 'b' resolve to the same" in said


def test_no_source_is_read_under_changed_weights(tmp_path: Path) -> None:
    reads = "{v: {site: v_proj, layers: 3, value: donor, under: a, during: prefill}}"
    lines = f"a: {changed(vector(tmp_path))}\nb: {reads}"
    said = faults("+experiment=mine", folder=mine(tmp_path, lines))
    assert "conditions.b.v.under" in said and "'a' changes the model's weights" in said


def test_what_the_writes_cannot_reach_changed_weights_can(tmp_path: Path) -> None:
    """A last-layer write before the position that is read is dead; the readouts of its condition are not."""
    late = "w: {site: mlp_out, layers: 8, op: zero, positions: 'index:-1'}"
    lines = f"writes: {{{late}}}\nboth: {{{late}, {changed(vector(tmp_path))[1:]}"
    rest = (
        "readout: {lens: {kind: lens, layers: [1, 2]}, p: {kind: next_token, tokens: stop}}\n"
        "readouts: [lens, p]\ncontrasts: {primary: p}\n"
    )
    found, prepared = planned(mine(tmp_path, lines, rest))
    told = [gate["sentence"] for gate in plan_gates(prepared.design, prepared.plan)]
    (blind,) = [each for each in told if "0 by construction" in each]
    assert "the writes of writes do" in blind
    assert found.condition("both").weights is not None


# On a backend


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TorchBackend:
    return TorchBackend(make_model(tmp_path_factory.mktemp("llama")), CPU)


def direction(seed: int) -> Constant:
    array = np.random.default_rng(seed).standard_normal(32).astype(np.float32)
    return Constant(f"r{seed}", array)


def test_rows_of_one_call_have_each_their_own_weights(llama: TorchBackend) -> None:
    rng = random.Random(3)
    donor = prompt(rng, 9)
    patched = (write("v", "v_proj", (2,), positions="last:3", during="both", hold="cycle"),)
    plain = [
        Row(prompt(rng, length), GREEDY, writes, {"donor": donor})
        for length, writes in ((7, ()), (5, patched), (9, patched))
    ]
    kinds = (None, direction(1), None, direction(2), direction(1))
    rows = [replace(row, weights=kind) for row in plain for kind in kinds]
    assert [(kind, len(chosen)) for kind, chosen in by_weights(rows)] == [
        (None, 6),
        (direction(1), 6),
        (direction(2), 3),
    ]
    probes = [Probe("kl", "kl"), Probe("logprob", "said"), Probe("perplexity", "ppl")]
    scored = llama.score([ScoreRow(row, (5, 9)) for row in rows], probes)
    decoded = llama.decode(rows)
    for row, found, text in zip(rows, scored, decoded, strict=True):
        bare = replace(row, weights=None)
        if row.weights is None:
            (alone,), (said,) = llama.score([ScoreRow(bare, (5, 9))], probes), llama.decode([bare])
        else:
            with llama.orthogonalised(row.weights.array):  # sources are captured within
                (alone,), (said,) = llama.score([ScoreRow(bare, (5, 9))], probes), llama.decode([bare])
        assert text.output_ids == said.output_ids
        assert found.values["said"] == pytest.approx(alone.values["said"], rel=1e-4)
        # The rest is held against the unpatched model, which a row without weights does not know of there.
        (clean,) = llama.score([ScoreRow(bare, (5, 9))], [Probe("perplexity", "ppl")])
        assert found.values["ppl"] == pytest.approx(clean.values["ppl"], rel=1e-4)
        if row.weights is None:
            assert found.values["kl"] == pytest.approx(alone.values["kl"], rel=1e-3, abs=1e-7)
        else:
            assert found.values["kl"] > 1e-3


def test_a_prefix_of_other_weights_is_refused(llama: TorchBackend) -> None:
    ids = (0, 5, 6, 7)
    start = Start(llama.prefix(ids[:3]))
    rows = [Row(ids, GREEDY, weights=direction(1))]
    with pytest.raises(BackendError, match="weights of their own"):
        llama.decode(rows, start)
    with pytest.raises(BackendError, match="weights of their own"):
        llama.score([ScoreRow(rows[0])], [Probe("kl", "kl")], start)


def test_an_exception_within_leaves_the_weights_as_they_were(llama: TorchBackend) -> None:
    row = Row((0, 5, 6, 7), GREEDY)
    probes = [Probe("top_k", "top", top=120)]
    before = llama.score([ScoreRow(row)], probes)
    with pytest.raises(KeyboardInterrupt), llama.orthogonalised(direction(1).array):
        llama.score([ScoreRow(replace(row, weights=direction(1)))], [Probe("kl", "kl")])
        raise KeyboardInterrupt
    assert llama.score([ScoreRow(row)], probes) == before
