"""What users get wrong and machines lack: each a clear sentence, its status, and nothing lost."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path

import pandas as pd
import pytest

from backends import hub
from backends.contract import BackendError
from backends.torch.loading import load
from organisms import weights_dir
from runner import __main__ as entry
from runner import status
from tests.conftest import SMALL
from tests.models import CPU, make_model

KV_ONLY = "+experiment=n300_kv_only"


@pytest.fixture
def local_model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(weights_dir(), folder)
    return folder


def no_outputs(folder: Path) -> bool:
    return not (folder / "outputs").exists()


def test_no_network_and_no_weights_is_one_sentence(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda endpoint: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    said = cli(KV_ONLY, "model=mistral_7b_instruct_v0_2")
    assert said.status == status.CONFIGURATION
    assert "not in the local cache" in said.err and "+model.path=FOLDER" in said.err
    assert "Traceback" not in said.err and len(said.err.strip().splitlines()) == 1
    assert no_outputs(tmp_path)


def test_a_gated_model_says_what_to_do():
    class GatedRepoError(Exception):
        pass

    assert "ask for access" in hub.refusal(GatedRepoError(), "a/b at revision c")
    assert "hf auth login" in hub.refusal(GatedRepoError(), "a/b at revision c")


def test_a_local_model_runs_and_corrupt_weights_are_named(cli, tmp_path, local_model):
    words = (KV_ONLY, *SMALL, f"+model.path={local_model}")
    assert cli(*words).status == status.DONE
    weights = local_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    said = cli(*words)
    assert said.status == status.CONFIGURATION
    assert "corrupt" in said.err and str(local_model) in said.err and "Traceback" not in said.err
    weights.unlink()
    said = cli(*words)
    assert said.status == status.CONFIGURATION and "model.safetensors" in said.err


def test_an_unknown_architecture_lists_what_was_looked_for(cli, tmp_path, local_model):
    config = json.loads((local_model / "config.json").read_text())
    config["model_type"], config["architectures"] = "olmo2", ["Olmo2ForCausalLM"]
    (local_model / "config.json").write_text(json.dumps(config))
    said = cli(KV_ONLY, *SMALL, f"+model.path={local_model}")
    assert said.status == status.CONFIGURATION
    assert "olmo2" in said.err and "llama, mistral, mixtral" in said.err


def test_a_declared_shape_that_is_not_the_models_is_refused(tmp_path):
    source = make_model(tmp_path / "tiny")
    with pytest.raises(BackendError, match="6 layers declared, 4 loaded"):
        load(dataclasses.replace(source, layers=6), CPU)
    with pytest.raises(BackendError, match=r"v_proj: out_features 16, 32 declared"):
        load(dataclasses.replace(source, kv_heads=4), CPU)


@pytest.mark.parametrize("layers", [8, 12])
def test_weights_that_are_not_those_of_the_config_are_refused(cli, tmp_path, local_model, layers):
    config = json.loads((local_model / "config.json").read_text())
    config["num_hidden_layers"] = layers
    (local_model / "config.json").write_text(json.dumps(config))
    said = cli(KV_ONLY, *SMALL, f"+model.path={local_model}")
    assert said.status == status.CONFIGURATION
    missing = layers > 9
    assert ("not in the files" if missing else "but not in the model") in said.err
    assert f"model.layers.{10 if missing else 8}." in said.err


def test_weights_of_another_size_are_named_with_both(cli, local_model):
    config = json.loads((local_model / "config.json").read_text())
    config["intermediate_size"] = 100
    (local_model / "config.json").write_text(json.dumps(config))
    said = cli(KV_ONLY, *SMALL, f"+model.path={local_model}")
    assert said.status == status.CONFIGURATION
    assert "(64, 192) in the files, (64, 100) by config.json" in said.err


def test_weights_that_are_not_finite_are_refused(cli, local_model):
    from safetensors.torch import load_file, save_file

    tensors = load_file(local_model / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][2, 5] = float("nan")
    save_file(tensors, local_model / "model.safetensors", metadata={"format": "pt"})
    said = cli(KV_ONLY, *SMALL, f"+model.path={local_model}")
    assert said.status == status.CONFIGURATION
    assert "model.layers.3.mlp.up_proj.weight: has values that are not finite" in said.err


def test_keys_that_cannot_be_re_rotated_are_refused_before_a_folder_exists(cli, tmp_path, local_model):
    config = json.loads((local_model / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (local_model / "config.json").write_text(json.dumps(config))
    said = cli(KV_ONLY, *SMALL, f"+model.path={local_model}")
    assert said.status == status.CONFIGURATION and "use rope: keep" in said.err
    assert no_outputs(tmp_path)


def test_a_missing_tokenizer_is_named(cli, local_model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (local_model / name).unlink()
    said = cli(KV_ONLY, *SMALL, f"+model.path={local_model}")
    assert said.status == status.CONFIGURATION and "tokenizer" in said.err and "Traceback" not in said.err


def bank(folder: Path, *texts: str) -> Path:
    path = folder / "mine.jsonl"
    lines = [json.dumps({"id": f"t{i}", "group": "g", "text": text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def outcome(cli, tmp_path: Path, *texts: str) -> pd.DataFrame:
    path = bank(tmp_path, *texts)
    said = cli(KV_ONLY, *SMALL, f"prompts.targets.bank={path}", "prompts.targets.groups=all")
    assert "Traceback" not in said.err
    return pd.read_parquet(tmp_path / "outputs" / "n300_kv_only" / "v0001" / "trials.parquet")


def test_prompts_that_cannot_run_are_invalid_with_the_reason_and_the_others_run(cli, tmp_path):
    good = "my aunt ordered a bicycle on sunday."
    found = outcome(cli, tmp_path, good, "naïve 🦊 zebra-stripes", f"{good} " * 200)
    reasons = found.dropna(subset="reason").groupby("target")["reason"].first()
    statuses = found.groupby("target")["status"].agg(set)
    assert all(one in ({"ok"}, {"invalid"}) for one in statuses)
    if "t1" in statuses:
        assert "does not know" in reasons["t1"] and "🦊" in reasons["t1"]
    if "t2" in statuses:
        assert "do not fit in the model's 1024" in reasons["t2"]
    assert statuses["t0"] == {"ok"}
    assert {"t1", "t2"} & set(statuses.index)


def test_a_donor_with_unknown_words_invalidates_what_reads_it(cli, tmp_path):
    path = bank(tmp_path, "zorblax unicorns", "zorblax dragons")
    extra = [
        "+conditions.ceiling={prompt: donor}",
        "+conditions.other={kv: {site: kv_cache, layers: all, value: other_donor}}",
    ]
    cli(KV_ONLY, *SMALL, f"prompts.donors.bank={path}", "prompts.donors.groups=all", *extra)
    found = pd.read_parquet(tmp_path / "outputs" / "n300_kv_only" / "v0001" / "trials.parquet")
    statuses = found.groupby("condition")["status"].agg(set)
    assert all(statuses[name] == {"invalid"} for name in ("kv_only", "ceiling", "other"))
    assert all(statuses[name] == {"ok"} for name in ("baseline", "kv_plain", "kv_self"))


def test_a_run_without_a_valid_trial_does_not_end_with_0(cli, tmp_path):
    path = bank(tmp_path, "zorblax unicorns", "zorblax dragons")
    said = cli(KV_ONLY, *SMALL, f"prompts.targets.bank={path}", "prompts.targets.groups=all")
    assert said.status == status.FAILED_TRIALS


def test_an_empty_prompt_is_refused_at_the_door(cli, tmp_path):
    path = bank(tmp_path, "my aunt ordered a bicycle on sunday.", " ")
    said = cli(KV_ONLY, *SMALL, f"prompts.targets.bank={path}", "prompts.targets.groups=all")
    assert said.status == status.CONFIGURATION and "mine.jsonl:2: text" in said.err
    assert no_outputs(tmp_path)


def test_trap_21_a_prompt_shorter_than_a_window_is_invalid_and_counted(cli, tmp_path):
    write = "{site: v_proj, layers: 27, value: donor, positions: 'last:16', during: prefill}"
    said = cli(
        KV_ONLY, *SMALL, f"+conditions.windowed={{v_proj: {write}}}", "prompts.targets.groups=[mathematical]"
    )
    assert said.status == status.DONE
    folder = tmp_path / "outputs" / "n300_kv_only" / "v0001"
    found = pd.read_parquet(folder / "trials.parquet")
    windowed = found[found["condition"] == "windowed"]
    assert (windowed["status"] == "invalid").any()
    assert windowed["reason"].dropna().str.contains("a window of 16 is longer than a prompt of").all()
    assert (found[found["condition"] != "windowed"]["status"] == "ok").all()
    gates = json.loads((folder / "summary.json").read_text())["gates"]
    assert any(g["gate"] == "valid_rate" for g in gates)


def test_a_donor_shorter_than_the_target_writes_what_it_has(cli, tmp_path):
    said = cli(KV_ONLY, *SMALL, "prompts.targets.groups=[long]")
    assert said.status == status.DONE and "fired in part" in said.out
    found = pd.read_parquet(tmp_path / "outputs" / "n300_kv_only" / "v0001" / "trials.parquet")
    kv = found[found["condition"] == "kv_only"]
    assert (kv["kv.positions_prefill"] <= kv["kv.asked_prefill"]).all()
    assert (kv["kv.positions_prefill"] < kv["kv.asked_prefill"]).any()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder_is_a_sentence(cli, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs").chmod(stat.S_IRUSR | stat.S_IXUSR)
    said = cli(KV_ONLY, *SMALL)
    assert said.status == status.CONFIGURATION and "output_root=FOLDER" in said.err


def test_an_output_folder_that_is_a_file_is_a_sentence(cli, tmp_path):
    (tmp_path / "outputs").write_text("a file")
    said = cli(KV_ONLY, *SMALL)
    assert said.status == status.CONFIGURATION and "output_root=FOLDER" in said.err


def test_no_cuda_device_is_a_sentence(cli):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    said = cli(KV_ONLY, *SMALL, "backend.device=cuda")
    assert said.status == status.CONFIGURATION and "sees no CUDA device" in said.err


def test_unknown_commands_and_options_name_the_nearest(cli):
    said = cli("shwo", "n300_kv_only")
    assert said.status == status.CONFIGURATION and "did you mean 'show'" in said.err
    said = cli(KV_ONLY, "--dry-run")
    assert said.status == status.CONFIGURATION and "dry_run=true" in said.err
    said = cli(KV_ONLY, "--multirum")
    assert said.status == status.CONFIGURATION and "--multirun" in said.err


def test_a_folder_that_shadows_our_packages_is_refused(tmp_path, monkeypatch, capsys):
    assert entry.shadowed_packages() is None
    (tmp_path / "analyses").mkdir()
    (tmp_path / "analyses" / "__init__.py").touch()
    import subprocess
    import sys

    home = Path(entry.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "runner", "list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status.CONFIGURATION
    assert "shadows it" in done.stderr and str(tmp_path / "analyses") in done.stderr


def test_trap_40_errors_are_found_before_torch_is_imported(tmp_path):
    import subprocess
    import sys

    home = Path(entry.__file__).resolve().parent.parent
    program = """if True:
        import json, sys
        from runner.command import dispatch
        for words in json.loads(sys.argv[1]):
            print("status", dispatch(words), file=sys.stderr)
            assert "torch" not in sys.modules and "transformers" not in sys.modules, words
    """
    cases = {
        ("conditions.kv_only.kv.layers=99",): "99",
        ("+conditions.kv_only.kv.heads=[kv7]",): "kv7",
        ("prompts.pairing.replace=false", "experiment.n=1000"): "1000",
        ("contrasts.primary=scroe",): "did you mean 'score'",
        ("+contrasts.margn=3",): "contrasts.margn: unknown key",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([[KV_ONLY, *words] for words in cases])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(home), "COLUMNS": "400"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *told, rest = done.stderr.split(f"status {status.CONFIGURATION}\n")
    assert len(told) == len(cases) and not rest, done.stderr
    for text, expected in zip(told, cases.values(), strict=True):
        assert expected in text
    assert no_outputs(tmp_path)


def test_trap_40_no_bare_except_and_nothing_passes_in_silence():
    home = Path(entry.__file__).resolve().parent.parent
    for package in ("runner", "backends", "analyses", "organisms"):
        for path in (home / package).rglob("*.py"):
            text = path.read_text()
            assert "except:" not in text, path
            for line, following in zip(text.splitlines(), text.splitlines()[1:], strict=False):
                if line.strip().startswith("except Exception"):
                    assert following.strip() not in ("pass", "continue"), path
