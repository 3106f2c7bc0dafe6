"""What composes: our experiments, a user's own, overrides and sweeps; and what is refused before anything is
checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.catalogue import catalogue, list_experiments
from runner.config.check import check
from runner.config.compose import compose, expand_sweep
from runner.config.errors import ConfigurationError
from runner.config.layers import rescale
from runner.config.shown import show
from tests.configuring import KV_ONLY, body, design, faults

EXPERIMENTS = ("n300_kv_only", "n300_controls", "n300_as_published")
MODELS = ("organism", "mistral_7b_instruct_v0_2")

# --- the experiments that come with the program


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_resolves_for_every_model(name: str, model: str) -> None:
    found = design(f"+experiment={name}", f"model={model}")
    assert (found.name, found.n, found.conditions[0].name) == (name, 300, "baseline")
    assert found.contrasts.primary == "score"
    assert found.question


def test_reference_depth_is_the_identity_on_a_model_of_that_depth() -> None:
    small, large = (design("+experiment=n300_controls", f"model={model}") for model in MODELS)
    layers = [d.condition(c).writes[-1].layers for d in (small, large) for c in ("kv_v_l27", "kv_v_l5")]
    assert layers == [(7,), (1,), (27,), (5,)]
    assert small.layer_notes == ("layer 5 of 32 is layer 1 of 9", "layer 27 of 32 is layer 7 of 9")
    assert large.layer_notes == ()


def test_published_layers_stay_apart_on_the_organism() -> None:
    assert len({rescale(i, 9, 32) for i in (5, 18, 25, 27)}) == 4


def test_published_experiment_has_the_published_guard_and_sampler() -> None:
    found = design("+experiment=n300_as_published")
    transfer = found.condition("transfer_l27")
    kv, v = transfer.writes
    assert (kv.rope, kv.align, v.min_positions, v.during) == ("keep", "right", 16, "decode")
    assert transfer.replay_last_token
    assert dict(transfer.expects) == {"v_proj": "inert"}
    assert [found.condition(n).sampling.top_k for n in ("baseline", "transfer_l27")] == [50, 0]
    assert found.condition("random").writes[0].value.role == "self"
    assert found.contrasts.statistics == "as_published"


def test_controls_contain_the_conditions_of_the_plain_experiment() -> None:
    plain, controls = design(KV_ONLY), design("+experiment=n300_controls")
    for condition in plain.conditions:
        assert controls.condition(condition.name) == condition


def test_listing_names_every_experiment_with_its_question() -> None:
    listed = dict(list_experiments())
    assert set(EXPERIMENTS) <= set(listed)
    assert all(question.endswith("?") for question in listed.values())
    assert "kv_plus_v" in catalogue()


def test_show_gives_the_comments_and_the_conditions_in_words() -> None:
    text = show("n300_kv_only", ["model=mistral_7b_instruct_v0_2"])
    assert "# Does the donor's KV cache alone" in text
    assert "the donor's KV cache (keys and values) replaces" in text
    with pytest.raises(ConfigurationError, match="did you mean 'n300_kv_only'"):
        show("n300_kv_onyl")


# --- overrides and files that cannot be composed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=n300_kv_only", r"did you mean '\+experiment=n300_kv_only'"),
        ("+experiment=n300_kv_onyl", "got 'n300_kv_onyl'; did you mean 'n300_kv_only'"),
        ("model=organsm", "did you mean 'organism'"),
        ("+model=organism", "did you mean 'model=organism'"),
        ("--dry-run", "did you mean 'dry_run=true'"),
        ("hydra/launcher=ray", "did you mean 'launch=local'"),
        ("hydra.launcher=ray", "did you mean 'launch=local'"),
        ("hydra.run.dir=/tmp", "cannot be changed"),
        ("+hydra.callbacks.x._target_=os.system", "cannot be changed"),
        ("sampling.temprature=1", "unknown key 'temprature' of sampling; did you mean 'temperature'"),
        ("+sampling.seed=1", "did you mean 'sampling.seed=1'"),
        ("sampling.seed=1,2", "swept with -m"),
        ("limit='", "expected key=value"),
    ],
)
def test_overrides_that_do_not_compose_say_what_would(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        check(compose([override]))
    assert "command line" in str(caught.value)


def test_wrong_overrides_are_told_at_once_and_with_all_other_mistakes() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(compose([KV_ONLY, "limitt=3", "sampling.sed=1", "contrasts.primary=scor"]))
    assert [p.key for p in caught.value.problems] == ["limitt", "sampling.sed", "contrasts.primary"]


def test_a_key_that_stands_deeper_is_named() -> None:
    assert "did you mean 'experiment.n'?" in faults(KV_ONLY, "n=300")
    assert "a new key is added with '+conditions.kv_only.prompt='" in faults(
        KV_ONLY, "conditions.kv_only.prompt=donor"
    )


def test_no_experiment_at_all_lists_those_that_exist() -> None:
    assert "n300_kv_only" in faults("limit=3")


def test_sweeps_expand_to_the_product_in_order() -> None:
    jobs = expand_sweep([KV_ONLY, "a.b=5,18", "+c=range(1,3)", "d=[1,2]"])
    assert jobs == [[KV_ONLY, f"a.b={b}", f"+c={c}", "d=[1,2]"] for b in (5, 18) for c in (1, 2)]
    assert expand_sweep(["x=choice(a,b)"]) == [["x=a"], ["x=b"]]
    assert expand_sweep([]) == [[]]
    with pytest.raises(ConfigurationError, match="interval"):
        expand_sweep(["x=interval(1,2)"])


def test_yaml_that_is_broken_is_told_with_its_line(tmp_path: Path) -> None:
    folder = body("a: {kv: {site: kv_cache\nb: 3", tmp_path)
    assert "mine.yaml:" in faults("+experiment=mine", folder=folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conditions: [baseline, a]", "mine.yaml: conditions: expected a mapping, {name: ...}, got a list"),
        ("readouts: {behaviour: 1}", "mine.yaml: readouts: expected a list, [...], got a mapping"),
        ("contrasts: {extra: {a: b}}", "mine.yaml: contrasts.extra: expected a list"),
        ("prompts: {donors: [1]}", "mine.yaml: prompts.donors: expected a mapping"),
    ],
)
def test_lists_in_place_of_mappings_are_told_with_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        f"# @package _global_\nexperiment: {{name: mine, n: 5}}\nsampling: [1]\n{text}\n", encoding="utf-8"
    )
    told = faults("+experiment=mine", folder=tmp_path)
    assert message in told
    assert "mine.yaml: sampling: expected a mapping" in told


def test_lists_in_place_of_mappings_are_told_on_the_command_line() -> None:
    told = faults(KV_ONLY, "conditions=[a]", "readouts={a:1}")
    assert "command line: conditions: expected a mapping" in told
    assert "command line: readouts: expected a list" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "experiment: {name: mine, n: 5}\nconditions: {baseline: {}}\n",
            "'# @package _global_' as the first",
        ),
        ("defaults: [n300_kv_only]\nexperiment: {n: 5}\n", "'# @package _global_' as the first line"),
        ("# @package _global_\n", "expected an experiment (a mapping of keys), got an empty file"),
    ],
)
def test_experiment_files_that_set_nothing_at_the_root_say_why(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    told = faults("+experiment=mine", folder=tmp_path)
    assert "mine.yaml" in told and message in told
    assert len(told.splitlines()) == 1


def test_listing_goes_on_after_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "broken.yaml").write_text("a: 1\nb: {c: 2\nd: 3\n", encoding="utf-8")
    (tmp_path / "experiment" / "binary.yaml").write_bytes(b"a: \xff\n")
    listed = dict(list_experiments(tmp_path))
    assert listed["broken"].startswith("cannot be read: line 3: ")
    assert listed["binary"].startswith("cannot be read: ")
    assert listed["n300_kv_only"].endswith("?")
    assert all("\n" not in line for line in listed.values())
    assert "kv_plus_v" in catalogue(tmp_path)


@pytest.mark.parametrize("key", ["output_root", "+model.path", "prompts.donors.bank"])
def test_values_may_begin_with_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anyone")
    composed = compose([KV_ONLY, f"{key}=~/a b~c"])
    level: object = composed.mapping
    for part in key.lstrip("+").split("."):
        level = level[part]  # type: ignore[index]
    assert level == "~/a b~c"
    assert expand_sweep([f"{key}=~/a,~/b"]) == [[f"{key}='~/a'"], [f"{key}='~/b'"]]
    if key == "output_root":
        assert check(composed).output_root == "/home/anyone/a b~c"
    assert "/home/anyone/x" in faults(KV_ONLY, "+model.path=~/x")


def test_python_tags_in_yaml_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = body(f"a: !!python/object/apply:os.mkdir ['{marker}']", tmp_path)
    assert "not readable as plain YAML" in faults("+experiment=mine", folder=folder)
    assert not marker.exists()


def test_hydra_settings_inside_a_file_are_refused_and_do_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    rest = f"hydra:\n  callbacks:\n    x: {{_target_: pathlib.Path.touch, self: '{marker}'}}"
    folder = body("a: {v: {site: v_proj, layers: 1, op: zero}}", tmp_path, rest=rest)
    assert "Hydra's own settings cannot be changed" in faults("+experiment=mine", folder=folder)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["_target_", "_partial_", "_args_", "_recursive_", "_convert_"])
def test_keys_that_name_code_are_refused_anywhere(key: str) -> None:
    assert "names code" in faults(KV_ONLY, f"+conditions.kv_only.kv.{key}=os.system")


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "${oc.decode:'1'}", "${oc.create:{}}", "${a.${model.name}}"]
)
def test_resolvers_are_refused(tmp_path: Path, value: str) -> None:
    folder = body("a: {v: {site: v_proj, layers: 1, op: zero}}", tmp_path, rest=f'output_root: "{value}"')
    assert "only plain interpolations" in faults("+experiment=mine", folder=folder)


def test_interpolations_to_nothing_to_themselves_and_missing_values_are_told(tmp_path: Path) -> None:
    rest = 'published: "${model.nam}"\nreference_depth: ???\nsampling: {seed: "${sampling}"}'
    told = faults(
        "+experiment=mine", folder=body("a: {v: {site: v_proj, layers: 1, op: zero}}", tmp_path, rest=rest)
    )
    assert "model.nam" in told
    assert "reference_depth: missing" in told
    assert "sampling.seed: '${sampling}' refers to" in told


# --- a user's own folder


def test_users_experiment_extends_ours(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n"
        "  - n300_kv_only\n  - /intervention@conditions.l18: kv_plus_v\n  - _self_\n"
        "experiment: {name: mine}\nconditions: {l18: {v_proj: {layers: 18}}}\n",
        encoding="utf-8",
    )
    found = design("+experiment=mine", folder=tmp_path)
    assert found.n == 300
    assert found.condition("l18").writes[1].layers == (5,)
    assert "mine" in dict(list_experiments(tmp_path))


def test_file_that_would_shadow_ours_is_refused(tmp_path: Path) -> None:
    folder = body("a: {v: {site: v_proj, layers: 1, op: zero}}", tmp_path, name="n300_kv_only")
    assert "another name" in faults(KV_ONLY, folder=folder)
    assert "expected a folder" in faults(KV_ONLY, folder=tmp_path / "none")


def test_missing_ready_body_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /intervention@conditions.a: kv_onyl\n", encoding="utf-8"
    )
    told = faults("+experiment=mine", folder=tmp_path)
    assert "mine.yaml" in told
    assert "did you mean 'kv_only'" in told
