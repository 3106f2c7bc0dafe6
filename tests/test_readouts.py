"""Probes as readouts: what YAML may say of them, which tokens they mean, what a run leaves of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer as Made
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from analyses.summary.summary import summarise
from analyses.tables.run import load_run, value_columns
from backends.hub import fetch
from backends.measures import Probe, ScoreRow
from backends.positions import PositionError
from backends.tokenizer import Tokenizer
from backends.torch.backend import TorchBackend
from runner import status
from runner.config.errors import ConfigurationError
from runner.config.folders import conf_dir
from runner.config.readouts.readout import Readout, read_source, resolve_readouts
from runner.keys import canonical_probe
from runner.model_source import model_source
from runner.prepare import prepare
from runner.prompts.asked import Asker
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Item
from tests.configuring import design, faults

HEAD = "# @package _global_\n# ?\n"
FEW = ("quiet=true", "report=false", "backend.threads=1")
TWO_HOP = """
prompts:
  name: two_hop
  kind: pairs
  donors: {bank: donors, groups: all}
  targets: {bank: two_hop, groups: [composed], split: test}
  roles: {other: {bank: plain, groups: all}}
"""


def mine(
    folder: Path,
    readout: str,
    names: str,
    conditions: str = "",
    contrasts: str = "{family: none}",
    rest: str = TWO_HOP,
    **experiment: object,
) -> Path:
    """A user's folder with one experiment of the readouts given (YAML)."""
    (folder / "experiment").mkdir(exist_ok=True)
    told = "".join(f", {key}: {value}" for key, value in experiment.items())
    (folder / "experiment" / "mine.yaml").write_text(
        f"{HEAD}experiment: {{name: mine, n: 4{told}}}\nreadout: {readout}\nreadouts: {names}\n"
        f"contrasts: {contrasts}\nconditions:\n  baseline: {{}}\n{conditions}{rest}",
        encoding="utf-8",
    )
    return folder


KV = "  kv: {kv: {site: kv_cache, layers: all, op: replace, value: donor}}\n"


def one(folder: Path, readout: str, **more: object) -> Readout:
    found = design("+experiment=mine", folder=mine(folder, f"{{it: {readout}}}", "[it]", **more))
    return found.measured[0]


# --- what YAML may say


@pytest.mark.parametrize(
    ("words", "probe", "columns"),
    [
        (
            "{kind: next_token, tokens: [stop, bet], position: -2}",
            Probe("next_token", "it", tokens="it", position=-2),
            {"it": "number"},
        ),
        (
            "{kind: log_odds, tokens: stop, against: bet}",
            Probe("log_odds", "it", tokens="it", against="it.against"),
            {"it": "number"},
        ),
        ("{kind: rank, tokens: stop}", Probe("rank", "it", tokens="it"), {"it": "number"}),
        ("{kind: top_k, top: 3}", Probe("top_k", "it", top=3), {"it.ids": "integers", "it.probs": "numbers"}),
        ("{kind: kl}", Probe("kl", "it"), {"it": "number"}),
        (
            "{kind: lens, tokens: stop, layers: [0, late, 100%]}",
            Probe("lens", "it", tokens="it", layers=(0, 7, 8)),
            {"it.rank": "integers", "it.prob": "numbers", "it.top": "integers"},
        ),
        ("{kind: lens}", Probe("lens", "it", layers=tuple(range(9))), {"it.top": "integers"}),
        ("{kind: cross_entropy}", Probe("cross_entropy", "it"), {"it": "number"}),
        (
            "{kind: logprob, continuation: 'stop the bet'}",
            Probe("logprob", "it"),
            {"it": "number", "it.tokens": "numbers"},
        ),
        ("{kind: perplexity}", Probe("perplexity", "it"), {"it": "number"}),
        (
            "{kind: geometry, layers: [late, early], windows: [4, 3], site: resid_pre}",
            Probe("geometry", "it", layers=(7, 1), windows=(4, 3), site="resid_pre"),
            {"it": "number", "it.early": "number", "it.late": "number", "it.w3": "number"},
        ),
    ],
)
def test_each_kind_resolves_to_its_probe_and_columns(tmp_path, words, probe, columns) -> None:
    found = one(tmp_path, words)
    assert found.probe == probe
    assert dict(found.columns) == columns


def test_a_patchscope_takes_the_ids_of_its_own_prompt(tmp_path) -> None:
    words = (
        "{kind: patchscope, scope: {prompt: 'stop ; bet ; choice :', position: -1, layer: 2}, layers: 5-6}"
    )
    made = design("+experiment=mine", "limit=1", folder=mine(tmp_path, f"{{it: {words}}}", "[it]"))
    prepared = prepare(made, tmp_path)
    (probe,) = prepared.design.probes
    assert probe.layers == (5, 6) and probe.scope is not None
    assert probe.scope.ids == prepared.tokenizer.encode("stop ; bet ; choice :")
    assert (probe.scope.position, probe.scope.layer) == (-1, 2)
    outside = design("+experiment=mine", "readout.it.scope.position=9", folder=tmp_path)
    with pytest.raises(ConfigurationError, match=r"position from -7 to 6 .* got 9"):
        prepare(outside, tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{kind: next_tokne, tokens: stop}", "readout.it.kind: expected one of .* did you mean 'next_token'"),
        ("{kind: next_token}", "readout.it.tokens: missing: .* next_token needs tokens"),
        ("{kind: kl, tokens: stop}", "readout.it.tokens: .* kl reads kind, version, position"),
        ("{kind: logprob}", "readout.it.continuation: missing"),
        ("{kind: patchscope}", "readout.it.scope: missing"),
        ("{kind: lens, layers: [3, 9]}", "readout.it.layers: expected a layer from 0 to 8 .* got 9"),
        ("{kind: geometry, layers: [early]}", "readout.it.layers: expected two layers"),
        ("{kind: geometry, layers: [1, early]}", "readout.it.layers: expected two different layers, got 1"),
        ("{kind: geometry, windows: [16, 1]}", "readout.it.windows: expected at least 2 positions"),
        ("{kind: geometry, windows: [16, 16]}", "readout.it.windows: expected different numbers"),
        ("{kind: geometry, site: kv_cache}", "readout.it.site: expected a site with a row"),
        ("{kind: rank, tokens: []}", "readout.it.tokens: expected texts that are not empty"),
        ("{kind: rank, tokens: {english: [stop]}}", "the language 'organism', got them for english"),
        (
            "{kind: rank, tokens: 'fact:othr/answer'}",
            "readout.it.tokens: .* got 'othr'; did you mean 'other'",
        ),
        ("{kind: rank, tokens: 'fact:anser'}", "states the fact 'anser'.*did you mean 'answer'"),
        ("{kind: top_k, top: 0}", "readout.it.top: expected more than 0, got 0"),
        ("{kind: kl, version: 2}", "readout.it.version: expected 1, got 2"),
        ("{kind: kl, colour: red}", "readout.it.colour: unknown key"),
    ],
)
def test_what_a_readout_cannot_mean_is_said_at_the_door(tmp_path, words, told) -> None:
    said = faults("+experiment=mine", folder=mine(tmp_path, f"{{it: {words}}}", "[it]"))
    assert len(said.splitlines()) == 1
    assert re.search(told, said), said


def test_all_mistakes_of_readouts_are_told_at_once(tmp_path) -> None:
    readout = "{score: {kind: kl}, text: {kind: kl}, a: {kind: rank}, b: {kind: lens, layers: 40}}"
    folder = mine(tmp_path, readout, "[behaviour, score, text, a, b, none]", KV, "{primary: scor}")
    said = faults("+experiment=mine", folder=folder)
    for part in (
        "its column score is one of readout 'behaviour'",
        "'text' is a column of every table already",
        "readout.a.tokens: missing",
        "readout.b.layers: expected a layer",
        "got 'none'",
    ):
        assert part in said
    assert "contrasts.primary" not in said  # which columns there are rests on what is wrong above


@pytest.mark.parametrize(
    ("contrasts", "told"),
    [
        ("{primary: it.ids}", "contrasts.primary: expected a column with one number .*got the list 'it.ids'"),
        ("{primary: oods}", "contrasts.primary: .*(odds).* did you mean 'odds'"),
        ("{primary: odds, covariates: [n_promt]}", "contrasts.covariates.0: .*did you mean 'n_prompt'"),
        ("{primary: odds, covariates: [odds]}", "contrasts.covariates.0"),
        ("{primary: odds, covariates: [n_new, n_new]}", "covariates.1: 'n_new' is listed twice"),
    ],
)
def test_contrasts_are_about_columns_with_one_number(tmp_path, contrasts, told) -> None:
    readout = "{it: {kind: top_k}, odds: {kind: log_odds, tokens: stop}}"
    said = faults("+experiment=mine", folder=mine(tmp_path, readout, "[it, odds]", KV, contrasts))
    assert re.search(told, said), said


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ("{of: baselin, readout: kl, expect: same, value: 0}", "of: expected a condition .* did you mean"),
        ("{of: kv, readout: kll, expect: same, value: 0}", "readout: .* did you mean 'kl'"),
        ("{of: kv, readout: lens.top, expect: same, value: 0}", "is a list; say which entry"),
        ("{of: kv, readout: 'lens.top[3]', expect: same, value: 0}", "has the layers 5, 8, got 3"),
        ("{of: kv, readout: 'kl[0]', expect: same, value: 0}", "kl holds one number"),
        ("{of: kv, readout: kl, expect: same}", "expected something to hold it against"),
        ("{of: kv, readout: kl, expect: same, value: 0, against: baseline}", "expected one thing"),
        ("{of: kv, readout: kl, expect: higher, value: 0, within: 1}", "nothing reads it"),
        ("{of: kv, readout: kl, expect: hihger, value: 0}", "did you mean 'higher'"),
    ],
)
def test_a_check_names_columns_entries_and_conditions_that_exist(tmp_path, check, told) -> None:
    readout = "{kl: {kind: kl}, lens: {kind: lens, layers: [5, 8]}}"
    contrasts = f"{{primary: kl, checks: {{it: {check}}}}}"
    said = faults("+experiment=mine", folder=mine(tmp_path, readout, "[kl, lens]", KV, contrasts))
    assert "contrasts.checks.it" in said and re.search(told, said), said


def test_an_entry_of_a_list_by_layer_is_named_by_its_layer(tmp_path) -> None:
    readout = "{lens: {kind: lens, layers: [5, 8]}, kl: {kind: kl}}"
    checks = "{it: {of: baseline, readout: 'lens.top[late]', than: 'lens.top[8]', expect: same}}"
    found = design(
        "+experiment=mine",
        "readout.lens.layers=[late,8]",
        folder=mine(tmp_path, readout, "[lens, kl]", contrasts=f"{{family: none, checks: {checks}}}"),
    )
    (check,) = found.checks
    assert (check.column, check.entry, check.than_column, check.than_entry) == ("lens.top", 0, "lens.top", 1)


def test_repeats_of_what_draws_nothing_are_refused(tmp_path) -> None:
    folder = mine(tmp_path, "{kl: {kind: kl}}", "[kl]", repeats=2)
    assert "nothing is drawn by readouts of tensors alone" in faults("+experiment=mine", folder=folder)
    again = mine(tmp_path, "{kl: {kind: kl}}", "[behaviour, kl]", repeats=2)
    assert design("+experiment=mine", folder=again).repeats == 2


def test_the_prompt_of_a_condition_can_be_that_of_a_role(tmp_path) -> None:
    conditions = "  role: {prompt: 'donor:other'}\n  both: {prompt: 'donor:other+target'}\n"
    folder = mine(tmp_path, "{}", "[behaviour]", conditions)
    made = design("+experiment=mine", "limit=2", folder=folder)
    assert made.condition("role").words[0] == "The prompt is the other donor; the target is not seen."
    prepared = prepare(made, folder)
    item = prepared.items[1]
    rows = {t.condition: t for t in prepared.plan.trials if t.item == item.item_id}
    encode = prepared.tokenizer.encode
    assert rows["role"].row.ids == encode(item.roles["other"].text)
    assert rows["both"].row.ids == encode(item.roles["other"].text) + encode(item.target.text)[1:]
    assert rows["role"].donor_ids["other"] == encode(item.roles["other"].text)
    assert "other" not in rows["baseline"].donor_ids and not rows["role"].row.sources
    said = faults("+experiment=mine", "conditions.role.prompt=donor:othr", folder=folder)
    assert "expected a role of the prompts 'two_hop'" in said and "'othr'; did you mean 'other'?" in said
    assert "donor:ROLE" in faults("+experiment=mine", "conditions.role.prompt=donr", folder=folder)


def test_a_readout_that_nothing_measures_need_not_fit_the_model(tmp_path) -> None:
    folder = mine(
        tmp_path, "{it: {kind: lens, layers: 40, tokens: {english: [stop]}}, kl: {kind: kl}}", "[kl]"
    )
    assert design("+experiment=mine", folder=folder).probes == (Probe("kl", "kl"),)
    assert "expected a layer from 0 to 8" in faults("+experiment=mine", "readouts=[it]", folder=folder)


def test_every_readout_that_comes_with_the_program_is_there_by_name() -> None:
    names = sorted(path.stem for path in (conf_dir() / "readout").glob("*.yaml"))
    known = ["prompts.targets.bank=two_hop", "prompts.targets.groups=[composed]"]  # with facts to ask for
    found = design("+experiment=geometry", *known, f"readouts=[{','.join(names)}]", "contrasts.primary=kl")
    assert sorted(found.readouts) == names and found.decodes


def test_layers_of_a_readout_are_read_on_the_reference_scale_and_told(tmp_path) -> None:
    folder = mine(tmp_path, "{it: {kind: lens, layers: [5, 27]}}", "[it]")
    found = design("+experiment=mine", "reference_depth=32", folder=folder)
    assert found.probes[0].layers == (1, 7)
    assert found.layer_notes == ("layer 5 of 32 is layer 1 of 9", "layer 27 of 32 is layer 7 of 9")


# --- which tokens words mean


@cache
def bpe() -> Tokenizer:
    """A byte-level tokenizer with merges, in which a word takes its space along."""
    made = Made(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(["the capital is Paris", "go to Paris", "Paris is the capital"] * 20, trainer)
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=made), "made", False, None)


@cache
def organism() -> Tokenizer:
    return Tokenizer.load(fetch(model_source(design("+experiment=n300_kv_only"))), False)


def test_a_word_is_the_token_that_the_text_would_go_on_with() -> None:
    made = bpe()
    (spaced,) = made.continued("the capital is", "Paris")
    assert made.inner.convert_ids_to_tokens([spaced]) == ["ĠParis"]
    assert made.encode("the capital is Paris")[-1] == spaced
    (bare,) = made.continued("the capital is:\n", "Paris"[0])
    assert made.inner.convert_ids_to_tokens([bare]) == ["P"]
    with pytest.raises(PositionError, match="run together"):
        made.continued("the capital is: ", "Paris")  # the text's last space belongs to the word
    (word,) = organism().continued("slot machine ; choice :", "stop")
    assert organism().encode("choice : stop")[-1] == word


def asked(readout: Readout, item: Item, tokenizer: Tokenizer) -> tuple[object, list[str]]:
    asker = Asker(tokenizer, [readout])
    found = asker.of(item, item.target.text)
    return found, [str(problem) for problem in asker.problems]


def an_item(facts: dict, text: str = "the capital is", donor: dict | None = None) -> Item:
    target = Prompt("t1", "g", text, facts=facts)
    return Item("0000", Prompt("d1", "g", "go to", facts=donor or {}), target, {}, None, 0)


def test_a_word_of_several_tokens_is_an_error_that_names_them(tmp_path) -> None:
    readout = one(tmp_path, "{kind: rank, tokens: [Paris, Rome]}")
    _, problems = asked(readout, an_item({}), bpe())
    (said,) = problems
    assert "readout.it.tokens: 'Rome' is" in said and "ĠRom" not in said and "first_token: true" in said
    found, problems = asked(replace(readout, first_token=True), an_item({}), bpe())
    assert not problems and found.fault is None
    assert [len(ids) for ids in found.tokens.values()] == [2]
    fact = one(tmp_path, "{kind: rank, tokens: 'fact:answer'}")
    found, problems = asked(fact, an_item({"answer": "Rome"}), bpe())
    assert not problems and "'Rome' is" in found.fault  # of one item, not of the configuration


def test_facts_are_read_from_the_prompt_named(tmp_path) -> None:
    fact = one(tmp_path, "{kind: rank, tokens: 'fact:answer'}")
    of_donor = replace(fact, tokens=read_source("fact:donor/answer", "english"))
    item = an_item({"answer": ("Paris", "to")}, donor={"answer": "is"})
    paris, to = (bpe().continued("the capital is", word)[0] for word in ("Paris", "to"))
    assert asked(fact, item, bpe())[0].tokens == {"it": (paris, to)}
    assert asked(of_donor, item, bpe())[0].tokens == {"it": bpe().continued("the capital is", "is")}
    for facts, why in (
        ({"anser": "Paris"}, "prompt 't1' states no fact 'answer' (anser); did you mean 'anser'?"),
        ({"answer": True}, "is true or false, not a word"),
    ):
        found, problems = asked(fact, an_item(facts), bpe())
        assert why in found.fault and not problems


def test_a_continuation_is_one_text_and_goes_on_from_the_prompt(tmp_path) -> None:
    fixed = one(tmp_path, "{kind: logprob, continuation: 'go to Paris'}")
    found, _ = asked(fixed, an_item({}), bpe())
    assert bpe().encode("the capital is") + found.continuations["it"] == bpe().encode(
        "the capital is go to Paris"
    )
    fact = one(tmp_path, "{kind: logprob, continuation: 'fact:answer'}")
    assert "a continuation is one" in asked(fact, an_item({"answer": ("a", "b")}), bpe())[0].fault


def test_a_token_on_both_sides_of_log_odds_is_a_fault(tmp_path) -> None:
    both = one(tmp_path, "{kind: log_odds, tokens: [Paris], against: [to, Paris]}")
    assert "in tokens and in against" in asked(both, an_item({}), bpe())[0].fault


def test_words_that_are_no_tokens_end_a_run_before_it_begins(cli, tmp_path) -> None:
    folder = mine(tmp_path, "{it: {kind: rank, tokens: [stop, zebra, 'stop bet']}}", "[it]")
    said = cli("--config-dir", str(folder), "+experiment=mine", *FEW)
    assert said.status == status.CONFIGURATION
    assert "readout.it.tokens: words that the tokenizer does not know: zebra" in said.err
    assert not (tmp_path / "outputs").exists()


# --- what a run leaves


ALL = """
  p_answer: {kind: next_token, tokens: "fact:answer"}
  odds: {kind: log_odds, tokens: "fact:answer"}
  rank: {kind: rank, tokens: "fact:answer"}
  top: {kind: top_k, top: 3}
  drift: {kind: kl}
  lens: {kind: lens, tokens: "fact:answer", layers: [0, 5, 8]}
  entropy: {kind: cross_entropy}
  known: {kind: logprob, continuation: "fact:answer"}
  other: {kind: logprob, continuation: "stop the bet"}
  r_v: {kind: geometry, layers: [early, late], windows: [6, 4]}
"""
NAMES = "[p_answer, odds, rank, top, drift, lens, entropy, known, other, r_v]"


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every probe, without generated text, in two conditions."""
    import runner

    folder = mine(
        tmp_path_factory.mktemp("probed"), f"\n{ALL}", NAMES, KV, "{primary: odds, covariates: [n_prompt]}"
    )
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchBackend, "decode", lambda *_: calls.append(1))
        found = runner.run(["+experiment=mine", *FEW, f"output_root={folder / 'outputs'}"], config_dir=folder)
    assert found.status == status.DONE and found.folder is not None
    assert not calls, "nothing reads a text, and yet it was generated"
    return found.folder


def test_probes_alone_generate_nothing(probed) -> None:
    trials = pd.read_parquet(probed / "trials.parquet")
    assert (trials["status"] == "ok").all() and len(trials) == 8
    assert (trials["n_new"] == 0).all() and trials["finish"].isna().all()
    assert all(len(ids) == 0 for ids in trials["output_ids"]) and (trials["text"] == "").all()
    assert (trials["n_prompt"] == trials["target_ids"].map(len)).all()
    written = trials[trials["condition"] == "kv"]
    assert (written["kv.positions_prefill"] > 0).all() and (written["kv.relative_change"] > 0).all()


def test_columns_have_the_names_of_readouts_and_lists_their_types(probed) -> None:
    table = pq.read_table(probed / "trials.parquet")
    types = {name: table.schema.field(name).type for name in table.column_names}
    for name in ("p_answer", "odds", "rank", "drift", "entropy", "known", "other", "r_v", "r_v.w4"):
        assert types[name] == pa.float64(), name
    for name in ("top.ids", "lens.rank", "lens.top"):
        assert types[name] == pa.list_(pa.int64()), name
    for name in ("top.probs", "lens.prob", "known.tokens"):
        assert types[name] == pa.list_(pa.float64()), name
    assert set(value_columns(table.to_pandas())) >= {"odds", "r_v", "r_v.early", "r_v.w4"}
    assert "lens.rank" not in value_columns(table.to_pandas())


def test_values_agree_with_each_other_as_their_definitions_do(probed) -> None:
    trials = pd.read_parquet(probed / "trials.parquet")
    for row in trials.to_dict(orient="records"):
        p = row["p_answer"]
        assert row["odds"] == pytest.approx(math.log(p / (1 - p)), rel=2e-3)  # 1 - p has few digits
        assert row["lens.prob"][-1] == pytest.approx(p, rel=1e-4, abs=1e-9)
        assert row["lens.top"][-1] == row["top.ids"][0] and len(row["top.ids"]) == 3
        assert row["known"] == pytest.approx(sum(row["known.tokens"]), rel=1e-5)
        assert row["known.tokens"][0] == pytest.approx(math.log(p), rel=1e-3, abs=1e-5)
        assert len(row["other.tokens"]) == 3 and row["other"] != row["known"]
        assert row["r_v"] == pytest.approx(row["r_v.late"] / row["r_v.early"], rel=1e-5)
    baseline = trials[trials["condition"] == "baseline"]
    assert (baseline["drift"] == 0).all() and (baseline["rank"] == 0).all()
    assert (trials[trials["condition"] == "kv"]["drift"] > 0).all()


def test_the_manifest_says_what_each_readout_was(probed) -> None:
    manifest = json.loads((probed / "manifest.json").read_text())
    told = manifest["readout"]
    assert list(told) == manifest["readouts"]
    assert told["lens"] == {
        "kind": "lens",
        "version": 1,
        "columns": {"lens.rank": "integers", "lens.prob": "numbers", "lens.top": "integers"},
        "tokens": "fact:answer",
        "layers": [0, 5, 8],
        "position": -1,
    }
    assert told["r_v"]["layers"] == [1, 7] and told["r_v"]["windows"] == [6, 4]
    assert told["other"]["continuation"] == "stop the bet"


def test_the_summary_holds_what_is_scalar_and_the_adjusted_contrast(probed) -> None:
    text = (probed / "summary.md").read_text()
    summary = json.loads((probed / "summary.json").read_text())
    assert "lens.rank" not in summary["conditions"]["kv"]["readouts"]
    assert summary["conditions"]["kv"]["readouts"]["r_v.late"]["mean"] > 0
    (contrast,) = summary["contrasts"]
    assert contrast["readout"] == "odds" and "no pair differs in n_prompt" in contrast["adjusted"]["note"]
    assert contrast["adjusted"]["difference"] == pytest.approx(contrast["difference"])
    assert "### Adjusted" in text and ">= 8" not in text
    assert load_run(probed).trials["odds"].notna().all()


def test_results_with_lists_are_taken_over_and_others_are_not(probed, tmp_path) -> None:
    import runner

    folder = probed.parents[2]
    root = f"output_root={folder / 'outputs'}"
    again = runner.run(["+experiment=mine", *FEW, root], config_dir=folder)
    before, after = (pd.read_parquet(each / "trials.parquet") for each in (probed, again.folder))
    assert after["origin"].eq("mine/v0001").all()
    for column in ("lens.rank", "top.probs", "odds"):
        assert all(np.array_equal(a, b) for a, b in zip(before[column], after[column], strict=True)), column
    for change in ("readout.other.continuation=stop", "readout.top.top=4", "readouts=[odds,drift]"):
        planned = design("+experiment=mine", change, folder=folder)
        keys = {trial.key for trial in prepare(planned, folder).plan.trials}
        assert not keys & set(before["key"]), change


def test_a_token_set_is_part_of_the_key_and_its_order_is_not(tmp_path) -> None:
    def keys(words: str) -> list[str]:
        folder = mine(tmp_path, f"{{it: {{kind: next_token, tokens: {words}}}}}", "[it]")
        planned = design("+experiment=mine", "limit=2", folder=folder)
        return [trial.key for trial in prepare(planned, folder).plan.trials]

    assert keys("[stop, bet]") == keys("[bet, stop]") != keys("[stop]")


def test_parameters_at_their_defaults_do_not_enter_a_probe() -> None:
    assert json.loads(canonical_probe(Probe("kl", "a"))) == {"kind": "kl", "name": "a", "version": 1}
    assert canonical_probe(Probe("kl", "a", position=-2)) != canonical_probe(Probe("kl", "a"))


def test_text_and_probes_need_one_decode_and_one_score_of_a_batch(monkeypatch, tmp_path) -> None:
    import runner

    calls: list[tuple[str, tuple[str, ...]]] = []
    decode, score = TorchBackend.decode, TorchBackend.score

    def counted_decode(self, rows, start=None, together=None):
        calls.append(("decode", ()))
        return decode(self, rows, start, together)

    def counted_score(self, rows, probes, start=None):
        calls.append(("score", tuple(probe.name for probe in probes)))
        assert all(isinstance(row, ScoreRow) for row in rows)
        return score(self, rows, probes, start)

    monkeypatch.setattr(TorchBackend, "decode", counted_decode)
    monkeypatch.setattr(TorchBackend, "score", counted_score)
    readout = (
        "{drift: {kind: kl}, odds: {kind: log_odds, tokens: stop}, a: {kind: logprob, continuation: bet}}"
    )
    folder = mine(tmp_path, readout, "[behaviour, drift, odds, a, perplexity]", KV, "{primary: score}")
    found = runner.run(
        ["+experiment=mine", *FEW, "sampling.max_new_tokens=5", f"output_root={tmp_path / 'o'}"],
        config_dir=folder,
    )
    assert found.status == status.DONE
    batches = sum(name == "decode" for name, _ in calls)
    scored = [names for name, names in calls if name == "score"]
    assert scored == [("drift", "odds", "a"), ("perplexity",)] * batches
    trials = pd.read_parquet(found.folder / "trials.parquet")
    assert trials[["score", "drift", "odds", "a", "perplexity"]].notna().all().all()
    assert (trials["n_new"] > 0).all()


def test_a_prompt_shorter_than_a_window_makes_the_item_invalid(tmp_path) -> None:
    folder = mine(tmp_path, "{r_v: {kind: geometry, windows: [6, 64]}}", "[r_v]")
    planned = prepare(design("+experiment=mine", folder=folder), folder).plan
    assert {trial.invalid for trial in planned.trials} == {
        f"a window of 64 positions does not fit in a prompt of {len(t.row.ids)} tokens"
        for t in planned.trials
    }


def test_a_dry_run_says_that_nothing_is_generated(cli, tmp_path) -> None:
    folder = mine(tmp_path, "{drift: {kind: kl}}", "[drift]", KV, "{primary: drift}")
    said = cli("--config-dir", str(folder), "+experiment=mine", *FEW, "dry_run=true")
    assert said.status == status.DONE, said.err
    assert "none: no readout reads a text" in said.out


def test_an_unfinished_run_keeps_its_lists(probed, tmp_path) -> None:
    """The plan joined with the segments of a run that still goes on."""
    manifest = json.loads((probed / "manifest.json").read_text())
    table = pq.read_table(probed / "trials.parquet")
    from analyses.tables.join import PLAN_SCHEMA
    from runner.results.resume import from_row

    held = {name: kind for each in manifest["readout"].values() for name, kind in each["columns"].items()}
    (tmp_path / "segments").mkdir()
    rows = table.to_pylist()
    plan = pa.Table.from_pylist([{n: row[n] for n in PLAN_SCHEMA.names} for row in rows], schema=PLAN_SCHEMA)
    pq.write_table(plan, tmp_path / "plan.parquet")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    orders = {name: body["receipt_order"] for name, body in manifest["conditions"].items()}
    lines = [json.dumps(from_row(row, orders[row["condition"]], held)) for row in rows[:5]]
    (tmp_path / "segments" / "a.jsonl").write_text("\n".join(lines) + "\n")
    run = load_run(tmp_path)
    assert list(run.trials["status"]).count("ok") == 5
    assert [len(each) for each in run.trials["lens.prob"].dropna()] == [3] * 5
    assert "5 " not in (summarise(run)["unfinished"] or "") and "3 of 8" in summarise(run)["unfinished"]


def test_readouts_are_resolved_for_the_stage_that_measures(tmp_path) -> None:
    from runner.config.check import check
    from runner.config.compose import compose

    folder = mine(tmp_path, "{a: {kind: kl}, b: {kind: kl}}", "[b, a]")
    spec = check(compose(["+experiment=mine"], folder))
    assert [readout.name for readout in resolve_readouts(spec)] == ["b", "a"]
