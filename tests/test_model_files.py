"""The models that ship as YAML, any folder in place of one, and weights that are not there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from datetime import datetime, tzinfo
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pandas as pd
import pytest
import yaml
from tokenizers import Tokenizer as FileTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from backends import hub
from backends.contract import BackendError, ModelSource
from backends.tokenizer import Tokenizer
from backends.torch.sites import LAYOUTS
from organisms import weights_dir
from runner import status
from runner.config.folders import conf_dir
from runner.config.layers import rescale
from runner.model_source import load_backend, model_source
from tests.configuring import KV_ONLY, design
from tests.conftest import SMALL
from tests.models import FAMILIES, make_model


def read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


FILES = sorted((conf_dir() / "model").glob("*.yaml"))
HUB = [path for path in FILES if read(path)["source"] == "hub"]
CACHE_WRITES = ("kv_only", "kv_plain", "kv_pseudo", "kv_repetitive", "kv_self")  # of n300_kv_only
PUBLISHED = {"early": 5, "relay": 18, "late": 27}  # of 32 layers
EVERY_FILE = pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
EVERY_HUB_FILE = pytest.mark.parametrize("file", HUB, ids=lambda path: path.stem)
EVERY_FAMILY = pytest.mark.parametrize("family", sorted(FAMILIES))


def test_the_models_are_there() -> None:
    assert {read(file)["architecture"] for file in HUB} == set(LAYOUTS)


# --- every file


@EVERY_FILE
def test_a_file_fits_together(file: Path) -> None:
    model = read(file)
    assert model["name"] == file.stem
    assert model["architecture"] in LAYOUTS
    assert model["heads"] % model["kv_heads"] == 0 and model["head_width"] % 2 == 0
    wider = model["heads"] * model["head_width"] != model["width"]
    assert wider == model["architecture"].startswith("gemma")
    assert model["path"] is None  # there, so that model.path=FOLDER needs no plus
    words = (KV_ONLY, f"model={file.stem}", *kept_keys(model["architecture"]))
    assert design(*words).model.layers == model["layers"]


@EVERY_FILE
def test_landmarks_and_published_layers_stay_apart(file: Path) -> None:
    model = read(file)
    landmarks = model["landmarks"]
    assert landmarks == {name: rescale(layer, model["layers"], 32) for name, layer in PUBLISHED.items()}
    assert 0 <= landmarks["early"] < landmarks["relay"] < landmarks["late"] < model["layers"]
    assert len({rescale(layer, model["layers"], 32) for layer in (5, 18, 25, 27)}) == 4


@EVERY_HUB_FILE
def test_a_hub_model_is_pinned_and_named_after_its_id(file: Path) -> None:
    model = read(file)
    assert model["source"] == "hub"
    assert re.fullmatch(r"[0-9a-f]{40}", model["revision"])
    assert file.stem == re.sub(r"[-.]", "_", model["id"].partition("/")[2].lower())


def test_no_two_files_are_the_same_model() -> None:
    for key in ("id", "revision"):
        assert len({read(file)[key] for file in HUB}) == len(HUB)


def test_the_catalogue_tells_what_each_model_is(cli) -> None:
    said = cli("list")
    for file in HUB:
        first = file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").partition(". ")[0].rstrip(".")
        assert re.search(rf"^  {file.stem} +{re.escape(first)}\.?$", said.out, re.MULTILINE)
        gated = read(file)["id"].startswith(hub.GATED)
        assert gated == ("gated" in first)


def test_the_catalogue_says_how_each_is_chosen_and_breaks_lines_under_their_text(
    cli, tmp_path, monkeypatch
) -> None:
    banks = tmp_path / "conf" / "prompts" / "banks" / "organism"
    banks.mkdir(parents=True)
    (banks / "weather.jsonl").write_text('{"id": "a"}\n\n{"id": "b"}\n')
    monkeypatch.setenv("COLUMNS", "60")
    lines = cli("list", "--config-dir", str(tmp_path / "conf")).out.splitlines()
    assert "model: model=NAME" in lines
    assert "  weather           organism 2" in lines
    entry = next(line for line in lines if line.startswith("  n300_controls"))
    second = lines[lines.index(entry) + 1]
    text = entry.index("Is it")
    assert second[:text].isspace() and second[text] != " "
    assert all(len(line) <= 60 for line in lines if line.startswith("  "))


# --- any folder


def kept_keys(architecture: str) -> tuple[str, ...]:
    """What a command line says so that keys stay where they are, in a model that cannot move them."""
    if LAYOUTS[architecture].rotary is not None:
        return ()
    return tuple(f"+conditions.{name}.kv.rope=keep" for name in CACHE_WRITES)


def of_bytes(words: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most `size` tokens that has learned these words."""
    made = FileTokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    every = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=every, show_progress=False)
    made.train_from_iterator((f" {word}" for word in words), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


def local_folder(folder: Path, family: str, **changes: object) -> Path:
    """A tiny model of a family with the organism's tokenizer. Qwen2's class in transformers reads byte-level
    ones alone: it gets one of those."""
    tokenizer = AutoTokenizer.from_pretrained(weights_dir())
    words = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = {"vocab_size": len(tokenizer), "num_hidden_layers": 9, "max_position_embeddings": 512}
    make_model(folder, family, **{**words, **shape, **changes})
    if family == "qwen2":
        tokenizer = of_bytes(list(tokenizer.get_vocab()), len(tokenizer))
    tokenizer.save_pretrained(folder)
    return folder


@EVERY_FILE
def test_a_folder_takes_the_place_of_any_model(file: Path, tmp_path: Path) -> None:
    folder = local_folder(tmp_path / "mine", "gemma2", num_hidden_layers=26)
    for spelling in ("model.path", "+model.path"):
        found = design(KV_ONLY, f"model={file.stem}", f"{spelling}={folder}").model
        assert (found.source, found.id, found.revision, found.name) == ("local", None, None, "mine")
        assert (found.architecture, found.layers, found.heads, found.kv_heads) == ("gemma2", 26, 4, 2)
        assert (found.width, found.head_width, found.context) == (32, 8, 512)
        assert found.vocabulary == len(AutoTokenizer.from_pretrained(folder))
        kept = read(file)
        assert found.landmarks == {name: rescale(layer, 26, 32) for name, layer in PUBLISHED.items()}
        assert (found.language, found.dtype) == (kept["language"], kept["dtype"])
        assert found.chat_template == kept["chat_template"]


@EVERY_FAMILY
@pytest.mark.parametrize("spelling", ["model.path", "+model.path"])
def test_a_folder_of_every_architecture_runs(cli, tmp_path: Path, family: str, spelling: str) -> None:
    folder = local_folder(tmp_path / "mine", family)
    words = (KV_ONLY, *SMALL, "limit=2", "sampling.max_new_tokens=4", f"{spelling}={folder}")
    if LAYOUTS[family].rotary is None:
        refused = cli(*words)
        assert refused.status == status.CONFIGURATION
        assert "its positions are learned" in refused.err and "use rope: keep" in refused.err
        words += kept_keys(family)
    said = cli(*words)
    assert said.status == status.DONE, said.err
    run = tmp_path / "outputs" / "n300_kv_only" / "v0001"
    manifest = json.loads((run / "manifest.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    told = manifest["model"]
    assert (told["name"], told["source"], told["architecture"]) == ("mine", "local", family)
    assert (told["layers"], told["head_width"]) == (9, config.get("head_dim", 8))
    assert told["chat_template"] is False
    assert manifest["attention"] == ("sdpa" if LAYOUTS[family].fused else "eager")
    assert manifest["counts"]["failed"] == manifest["counts"]["invalid"] == 0


def test_a_folder_under_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    local_folder(tmp_path / "mine", "llama")
    found = design(KV_ONLY, "model.path=~/mine")
    assert model_source(found).path == str(tmp_path / "mine")
    assert load_backend(model_source(found), found).info.layers == 9


def test_a_folder_of_the_hubs_cache_is_named_after_its_model(tmp_path: Path) -> None:
    folder = tmp_path / "models--someone--Tiny-1B" / "snapshots" / ("0" * 40)
    assert design(KV_ONLY, f"model.path={local_folder(folder, 'llama')}").model.name == "Tiny-1B"


def test_the_chat_template_of_a_folder_is_used_where_asked_and_told(cli, tmp_path: Path) -> None:
    folder = local_folder(tmp_path / "mine", "qwen3")
    (folder / "chat_template.jinja").unlink()  # the organism's own
    words = (KV_ONLY, *SMALL, "limit=1", "sampling.max_new_tokens=2", f"model.path={folder}")
    refused = cli(*words, "model.chat_template=true")
    assert refused.status == status.CONFIGURATION
    assert "model 'mine': chat_template is true, but its tokenizer has none" in refused.err
    tokenizer = AutoTokenizer.from_pretrained(folder)
    word = next(word for word in sorted(tokenizer.get_vocab()) if word.isalpha())
    tokenizer.chat_template = f"{{{{ bos_token }}}}{word} {{{{ messages[0]['content'] }}}} {word}"
    tokenizer.save_pretrained(folder)
    for asked in ("false", "true"):
        assert cli(*words, f"model.chat_template={asked}").status == status.DONE
    runs = [tmp_path / "outputs" / "n300_kv_only" / version for version in ("v0001", "v0002")]
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs]
    assert [m["model"]["chat_template"] for m in manifests] == [False, True]
    bare, wrapped = (first_target(run) for run in runs)
    mark = tokenizer.convert_tokens_to_ids(word)
    assert wrapped == [bare[0], mark, *bare[1:], mark]


# As Llama 3.2 and Qwen3 have them: the day's date, and an answer that thinking comes before.
DATED = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
THINKING = "{% if enable_thinking is defined and not enable_thinking %} none{% else %} think{% endif %}"


def test_a_template_gives_the_same_text_on_every_day_and_no_thinking(monkeypatch) -> None:
    class Day(datetime):
        day_of_month = 1

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Day:
            return cls(2031, 5, cls.day_of_month, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    inner = ByT5Tokenizer()  # a token for each byte, so that ids tell the text
    inner.chat_template = f"{DATED}{{{{ date_string }}}}: {{{{ messages[0]['content'] }}}}{THINKING}"
    chat = Tokenizer(inner, fingerprint="0", chat=True, bos_id=None)
    message = [{"role": "user", "content": "hail"}]
    by_itself, as_fed = [], []
    for Day.day_of_month in (1, 2):
        by_itself.append(inner.apply_chat_template(message, tokenize=False))
        as_fed.append(chat.decode(chat.encode("hail")))
    assert by_itself == ["01 May 2031: hail think", "02 May 2031: hail think"]
    assert as_fed == ["26 Jul 2024: hail none"] * 2
    inner.chat_template = "{{ messages[0]['content'] }}"  # has no use for either
    assert chat.decode(chat.encode("hail")) == "hail"


def first_target(run: Path) -> list[int]:
    trials = pd.read_parquet(run / "trials.parquet")
    return list(trials[trials["condition"] == "baseline"]["target_ids"].iloc[0])


def test_a_vocabulary_other_than_declared_is_refused(tmp_path: Path) -> None:
    found = design(KV_ONLY, f"model.path={local_folder(tmp_path / 'mine', 'llama')}")
    wrong = replace(found, model=found.model.model_copy(update={"vocabulary": 99}))
    with pytest.raises(BackendError, match=r"vocabulary 99 declared, \d+ loaded"):
        load_backend(model_source(found), wrong)


# --- weights that are not there


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "reachable", lambda endpoint: False)
    return tmp_path / "hub"


def source_of(file: Path) -> ModelSource:
    return model_source(design(KV_ONLY, f"model={file.stem}"))


@EVERY_HUB_FILE
def test_a_dry_run_says_that_the_weights_are_not_here_and_how_to_fetch_them(cli, cache, file: Path) -> None:
    model = read(file)
    said = cli(KV_ONLY, f"model={file.stem}", "dry_run=true", *kept_keys(model["architecture"]))
    assert said.status == status.CONFIGURATION
    assert f"model '{file.stem}': the weights of {model['id']}" in said.err
    assert "are not in the local cache. Where there is a network, " in said.err
    assert f"`hf download {model['id']} --revision {model['revision']} " in said.err
    gated = model["id"].startswith(("meta-llama/", "google/"))
    assert ("HF_TOKEN" in said.err) == ("hf auth login" in said.err) == gated
    assert len(said.err.strip().splitlines()) == 1


def test_only_a_dry_run_leaves_the_network_alone(cli, cache, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "reachable", asked.append)
    words = (KV_ONLY, f"model={HUB[0].stem}")
    assert cli(*words, "dry_run=true").status == status.CONFIGURATION
    assert not asked
    for said in (cli(*words), cli("try", *words)):
        assert said.status == status.CONFIGURATION
        assert f"{asked.pop()} cannot be reached" in said.err


def test_the_command_leaves_out_only_what_is_not_needed() -> None:
    command = shlex.split(hub.download_command(source_of(HUB[0])))
    left = [command[index + 1] for index, word in enumerate(command) if word == "--exclude"]

    def kept(name: str) -> bool:
        return not any(fnmatch(name, pattern) for pattern in left)

    needed = ("config.json", "generation_config.json", "model-00001-of-00003.safetensors", "tokenizer.model")
    assert all(map(kept, (*needed, "model.safetensors.index.json", "tokenizer.json", "merges.txt")))
    large = ("consolidated.safetensors", "original/consolidated.00.pth", "pytorch_model-00001-of-00002.bin")
    assert not any(map(kept, large))


def test_weights_are_not_downloaded_where_that_is_not_wanted(cache, monkeypatch) -> None:
    def asked(endpoint: str) -> bool:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(hub, "reachable", asked)
    with pytest.raises(BackendError, match=r"are not in the local cache\. Where there is a network, `hf"):
        hub.fetch(source_of(HUB[0]), download=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackendError, match="HF_HUB_OFFLINE forbids to download"):
        hub.fetch(source_of(HUB[0]))


def test_a_whole_snapshot_is_taken_from_the_cache_and_half_a_one_is_not(cache) -> None:
    source = source_of(HUB[0])
    assert source.hub_id is not None and source.revision is not None
    folder = cache / f"models--{source.hub_id.replace('/', '--')}" / "snapshots" / source.revision
    folder.mkdir(parents=True)
    parts = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    (folder / "config.json").write_text("{}")
    with pytest.raises(BackendError, match=r"in part only, without model\.safetensors"):
        hub.fetch(source)
    (folder / hub.INDEX).write_text(json.dumps({"weight_map": {"a": parts[0], "b": parts[1], "c": parts[1]}}))
    (folder / parts[0]).touch()
    with pytest.raises(BackendError, match=rf"in part only, without {parts[1]}"):
        hub.fetch(source)
    (folder / parts[1]).touch()
    assert hub.fetch(source).path == str(folder)
    (folder / hub.INDEX).write_text("{")
    with pytest.raises(BackendError, match=rf"without a readable {hub.INDEX}"):
        hub.fetch(source)
    shutil.rmtree(folder)
    with pytest.raises(BackendError, match="are not in the local cache"):
        hub.fetch(source)


def test_many_missing_files_are_counted(tmp_path: Path) -> None:
    weights = {str(number): f"model-{number}.safetensors" for number in range(9)}
    (tmp_path / hub.INDEX).write_text(json.dumps({"weight_map": weights}))
    assert hub.missing_files(tmp_path) == ["config.json", "model-0.safetensors", "and 8 more files"]


def test_a_gated_model_without_a_token_says_where_it_goes() -> None:
    class GatedRepoError(Exception):
        pass

    assert "set HF_TOKEN" in hub.refusal(GatedRepoError(), "a/b at revision c")
