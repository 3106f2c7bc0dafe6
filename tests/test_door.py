"""What is told before a model runs: sites that it lacks, keys that cannot be moved, words that nothing reads,
trials that cut edges leave blind, and tokenizers that transformers reads as others than they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as FileTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, PreTrainedTokenizerFast

from backends.architectures import ARCHITECTURES
from backends.contract import BackendError, ModelSource
from backends.positions import PositionError
from backends.rowplan import plan_for
from backends.rows import Row
from backends.sae import Sae, save
from backends.sae.types import Conventions
from backends.tokenizer import Tokenizer
from backends.torch.backend import TorchBackend
from backends.torch.sites import LAYOUTS
from backends.writes import MODULE_SITES, Heads, Value, Write
from organisms import FINAL, weights_dir
from runner.keys import canonical
from runner.prepare import check_writes, prepare
from tests.configuring import body, design, faults
from tests.conftest import Said
from tests.models import CPU, FAMILIES, GREEDY, make_model, write
from tests.writing import WIDTH, resolved, vector

ORGANISM = Path(weights_dir(FINAL))
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
EDGE = "site: attention_edge, op: mask"
CACHE = "site: kv_cache, layers: all"


def one(write_words: str, tmp_path: Path) -> Path:
    """A folder with an experiment of one condition `c` with the write `w`."""
    return body(f"c: {{w: {{{write_words}}}}}", tmp_path)


def local(folder: Path) -> tuple[str, ...]:
    return ("+experiment=mine", f"+model.path={folder}")


def plain_model(tmp_path: Path, family: str) -> Path:
    make_model(tmp_path / "model", family)
    return tmp_path / "model"


# --- what an architecture has


def test_the_tables_agree() -> None:
    assert set(ARCHITECTURES) == set(LAYOUTS) == set(FAMILIES)
    for name, layout in LAYOUTS.items():
        facts = ARCHITECTURES[name]
        assert facts.learned_positions is (layout.learned_positions is not None) is (layout.rotary is None)
        assert facts.post_norms is (layout.attn_norm is not None) is (layout.mlp_norm is not None)
        assert facts.parallel is None or facts.parallel in layout.configured(_Parallel()).lacks("resid_mid")


class _Parallel:
    use_parallel_residual = True


def test_a_config_without_the_key_of_parallel_residuals_means_that_it_is_true(tmp_path: Path) -> None:
    assert GPTNeoXConfig().use_parallel_residual is True
    folder = plain_model(tmp_path, "gpt_neox")
    config = json.loads((folder / "config.json").read_text())
    del config["use_parallel_residual"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "has no site resid_mid" in faults(
        *local(folder), folder=one("site: resid_mid, layers: 1, value: donor", tmp_path)
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_door_refuses_what_the_backend_refuses(family: str, tmp_path: Path) -> None:
    """Every site, and moved keys: the sentence of the one is that of the other."""
    source = make_model(tmp_path / "model", family, max_position_embeddings=512)
    backend = TorchBackend(source, CPU)
    writes = {f"c{n}": write("w", site, (0,)) for n, site in enumerate(MODULE_SITES)}
    writes["moved"] = write("w", "kv_cache")
    refused = {name: told(backend, each) for name, each in writes.items()}
    assert any(refused.values()) is (family not in ("gemma2", "gemma3_text"))
    lines = [f"{name}: {{w: {{{words(each)}}}}}" for name, each in writes.items()]
    folder = body("\n".join(lines), tmp_path)
    if not any(refused.values()):
        design(*local(tmp_path / "model"), folder=folder)
        return
    said = faults(*local(tmp_path / "model"), folder=folder).splitlines()
    assert len(said) == sum(sentence is not None for sentence in refused.values())
    for name, sentence in refused.items():
        own = [line for line in said if f": conditions.{name}.w." in line]
        assert len(own) == (sentence is not None)
        if sentence is not None:
            field = "rope" if name == "moved" else "site"
            expected = sentence.removeprefix("'w': ").removeprefix(f"model '{family}': ")
            assert "mine.yaml" in own[0] and f"{name}.w.{field}: " in own[0] and own[0].endswith(expected)


def words(each: Write) -> str:
    """A write of the test above as YAML."""
    layers = {"embed": "", "logits": "", "kv_cache": "layers: all, "}.get(each.site, "layers: 0, ")
    return f"site: {each.site}, {layers}value: donor"


def told(backend: TorchBackend, each: Write) -> str | None:
    try:
        backend.check([each])
    except BackendError as error:
        return str(error)
    return None


def test_keys_that_stay_where_they_are_need_no_rotary_positions(tmp_path: Path) -> None:
    source = make_model(tmp_path / "model", "gpt2", n_positions=512)
    stays = ("part: values", "rope: keep", "align: whole")
    lines = "\n".join(f"c{n}: {{w: {{{CACHE}, value: donor, {more}}}}}" for n, more in enumerate(stays))
    found = design(*local(tmp_path / "model"), folder=body(lines, tmp_path))
    backend = TorchBackend(source, CPU)
    check_writes(backend, found.conditions)
    ids, other = (0, 5, 9, 3), (0, 8, 2, 6, 4)
    rows = [
        Row(ids=ids, sampling=GREEDY, writes=each.writes, sources={"donor": other})
        for each in found.conditions
    ]
    assert all(decoded.invalid is None for decoded in backend.decode(rows))


def test_the_site_of_an_sae_is_looked_at(tmp_path: Path) -> None:
    conventions = Conventions("attn_out_normed", 5, None, "relu", None, False, 1.0, "free", "float32")
    made = Sae(conventions, vector(0, WIDTH, 8), vector(1, 8), vector(2, 8, WIDTH), vector(3), None)
    save(tmp_path / "sae", made)
    feature = f"site: sae, sae: {tmp_path / 'sae'}, op: set_feature, features: [1], value: 1"
    message = faults("+experiment=mine", folder=one(feature, tmp_path))
    assert "conditions.c.w.sae: architecture 'llama' has no site attn_out_normed" in message


def test_the_site_of_a_readout_is_looked_at(tmp_path: Path) -> None:
    words = (
        "readout: {geometry: {kind: geometry, layers: [1, 7], windows: [2], site: %s}}\nreadouts: [geometry]"
    )
    bodies = "contrasts: {family: none}"
    message = faults(
        "+experiment=mine", folder=body("", tmp_path, rest=f"{words % 'mlp_out_normed'}\n{bodies}")
    )
    assert "readout.geometry.site: architecture 'llama' has no site mlp_out_normed" in message
    assert len(message.splitlines()) == 1
    design("+experiment=mine", folder=body("", tmp_path, rest=f"{words % 'mlp_out'}\n{bodies}"))


def test_no_model_library_is_loaded_to_tell(tmp_path: Path) -> None:
    folder = one("site: attn_out_normed, layers: 1, value: donor", tmp_path)
    code = (
        "import sys\nfrom tests.configuring import faults\nfrom pathlib import Path\n"
        f"said = faults('+experiment=mine', folder=Path({str(folder)!r}))\n"
        "assert 'conditions.c.w.site' in said, said\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_nothing_that_computes_is_loaded_for_help_or_a_mistake() -> None:
    code = (
        "import sys\nfrom runner.__main__ import main\n"
        "assert main(['--help']) == 0 and main(['+experiment=n300_kv_onlyy']) == 2\n"
        "assert not {'torch', 'pandas', 'scipy', 'matplotlib', 'duckdb'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_vector_of_another_width_than_the_vocabulary_is_refused_where_that_is_known(tmp_path: Path) -> None:
    folder = plain_model(tmp_path, "llama")
    np.save(tmp_path / "v.npy", vector(0, 64))
    conditions = one(f"site: logits, op: add, value: 'file:{tmp_path / 'v.npy'}'", tmp_path)
    message = faults(*local(folder), folder=conditions)
    assert "conditions.c.w.value: " in message and "[120]" in message and "[64]" in message


def test_what_only_the_loaded_model_shows_names_every_condition(tmp_path: Path) -> None:
    backend = TorchBackend(make_model(tmp_path / "model"), CPU)
    np.save(tmp_path / "v.npy", vector(0, 64))
    logits = f"site: logits, op: add, value: 'file:{tmp_path / 'v.npy'}'"
    normed = "site: resid_post, layers: 1, value: donor"
    found = design(
        "+experiment=mine",
        folder=body(
            f"a: {{w: {{{logits}}}}}\nb: {{w: {{{logits}, alpha: 2}}}}\nc: {{v: {{{normed}}}}}", tmp_path
        ),
    )
    lacking = replace(found.conditions[3], writes=(write("v", "mlp_out_normed", (1,)),))
    with pytest.raises(BackendError) as caught:
        check_writes(backend, (*found.conditions[:3], lacking))
    lines = str(caught.value).splitlines()
    assert "2 mistakes" in lines[0] and len(lines) == 3
    assert "conditions.a.w (and 1 more: b.w): logits of model 'llama'" in lines[1]
    assert "conditions.c.v: architecture 'llama' has no site mlp_out_normed" in lines[2]


# --- words that nothing reads


@pytest.mark.parametrize(
    ("words", "field", "why"),
    [
        (f"{CACHE}, value: random, align: left", "align", "the value random has no other cache"),
        (f"{CACHE}, value: random, rope: keep", "rope", "the value random has no other cache"),
        (f"{CACHE}, op: zero, align: right", "align", "op zero has no other cache"),
        (f"{CACHE}, op: zero, rope: rerotate", "rope", "op zero has no other cache"),
        (f"{CACHE}, value: donor, part: values, rope: keep", "rope", "part: values writes none"),
        (f"{CACHE}, value: donor, positions: \"token:'a'\", align: left", "align", "wherever the two stand"),
    ],
)
def test_a_word_of_the_cache_that_nothing_reads_is_refused(
    words: str, field: str, why: str, tmp_path: Path
) -> None:
    said = faults("+experiment=mine", folder=one(words, tmp_path))
    assert f"conditions.c.w.{field}: " in said and f"{why}; remove it" in said


def test_words_of_the_cache_that_are_read_pass(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        f"{CACHE}, value: donor, align: left, rope: keep",
        f"{CACHE}, value: donor, align: left, part: values",
        f"{CACHE}, value: donor, align: concat, rope: keep",
        f"{CACHE}, value: shuffled_sequence, part: keys, rope: keep",
        f"{CACHE}, value: random, keep_sink: true",
    )
    assert [(each.align, each.rope) for each, _ in found] == [
        ("left", "keep"),
        ("left", "rerotate"),
        ("concat", "keep"),
        ("right", "keep"),
        ("right", "rerotate"),
    ]


@pytest.mark.parametrize("more", ["value: donor, align: whole, rope: keep", "value: self, align: left"])
def test_writes_that_are_one_computation_are_found(more: str, tmp_path: Path) -> None:
    usual = ", ".join(part for part in more.split(", ") if part not in ("rope: keep", "align: left"))
    folder = body(f"a: {{w: {{{CACHE}, {usual}}}}}\nb: {{w: {{{CACHE}, {more}}}}}", tmp_path)
    assert "conditions 'a' and 'b' resolve to the same" in faults("+experiment=mine", folder=folder)
    same = f"a: {{w: {{{CACHE}, {usual}}}}}\nb: {{same_as: a, w: {{{CACHE}, {more}}}}}"
    first, second = design("+experiment=mine", folder=body(same, tmp_path)).conditions[1:]
    assert canonical(first.writes[0]) == canonical(second.writes[0])


def test_a_grid_over_parts_keeps_its_rope_and_a_cell_too_many_is_found(tmp_path: Path) -> None:
    parts = f"a: {{w: {{{CACHE}, value: donor, rope: keep}}, grid: {{w.part: [keys, values, both]}}}}"
    cells = design("+experiment=mine", folder=body(parts, tmp_path)).conditions[1:]
    assert [each.writes[0].rope for each in cells] == ["keep", "rerotate", "keep"]
    crossed = (
        f"a: {{w: {{{CACHE}, value: donor}}, grid: {{w.part: [keys, values], w.rope: [keep, rerotate]}}}}"
    )
    said = faults("+experiment=mine", folder=body(crossed, tmp_path))
    assert "resolve to the same" in said and len(said.splitlines()) == 1


# --- trials that cut edges leave blind

BLIND = f"""a: {{w: {{{EDGE}, layers: all, positions: "index:-1", keys: all}}}}
b: {{w: {{{EDGE}, layers: all, positions: "index:-1", keys: "first:2"}}}}"""


def test_a_dry_run_counts_the_trials_that_a_run_finds_blind(cli: Callable[..., Said], tmp_path: Path) -> None:
    words = ("+experiment=mine", "--config-dir", str(body(BLIND, tmp_path)), "sampling.max_new_tokens=2")
    told = cli(*words, "dry_run=true").out
    assert told.count("nothing to attend to at layer 0") == told.count("invalid  ") >= 1
    found = prepare(design("+experiment=mine", folder=tmp_path), tmp_path)
    reasons = {(each.condition, each.invalid is None) for each in found.plan.trials}
    assert reasons == {("baseline", True), ("a", False), ("b", True)}
    blind = [each for each in found.plan.trials if each.condition == "a"]
    computed = found.backend.decode([each.row for each in blind])
    assert [each.invalid for each in blind] == [each.invalid for each in computed]


def cut(
    positions: str, keys: str, layers: tuple[int, ...] = (0, 1), heads: Sequence[int] | None = None
) -> Write:
    of = None if heads is None else Heads("query", tuple(heads))
    made = write("w", "attention_edge", layers, op="mask", value="none", positions=positions, heads=of)
    return replace(made, value=Value("none"), keys=type(made.positions).parse(keys))


@pytest.mark.parametrize(
    ("writes", "windows", "blind"),
    [
        ([cut("index:0", "index:0")], (None, None), (0, 0)),
        ([cut("index:3", "first:3")], (None, None), None),
        ([cut("index:5", "last:2")], (None, 2), (5, 1)),
        ([cut("index:5", "last:2", (0,))], (None, 2), None),
        ([cut("index:5", "first:3"), cut("index:5", "last:3")], (None, None), (5, 0)),
        ([cut("index:5", "first:3", heads=[0]), cut("index:5", "last:3", heads=[1])], (None, None), None),
        ([cut("index:5", "first:3", heads=[1]), cut("index:5", "last:3")], (None, None), (5, 0)),
        ([cut("all", "all", (1,), heads=[1])], (None, None), (0, 1)),
    ],
)
def test_blind_positions(
    writes: list[Write], windows: tuple[int | None, ...], blind: tuple[int, int] | None
) -> None:
    named = tuple(replace(each, name=f"w{n}") for n, each in enumerate(writes))
    row = Row(ids=(0, 5, 6, 7, 8, 9), sampling=GREEDY, writes=named)
    if blind is None:
        plan_for(row, windows, 2)
        return
    with pytest.raises(PositionError, match="position {} nothing to attend to at layer {}$".format(*blind)):
        plan_for(row, windows, 2)


# --- tokenizers


TEXT = (
    "the rain falls on the old harbour and two ships left at dawn",
    "one of them came back in the winter, the other never did.",
) * 4


def trained(kind: str) -> Any:
    """A small tokenizer of `tokenizers`: words, byte-level BPE, or BPE with metaspace."""
    specials = ["<unk>", "<s>", "</s>"]
    if kind == "words":
        made = FileTokenizer(models.WordLevel(unk_token="<unk>"))
        made.normalizer = normalizers.Lowercase()
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=specials))
    elif kind == "bytes":
        made = FileTokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=alphabet)
        made.train_from_iterator(TEXT, trainer)
    else:
        made = FileTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        made.decoder = decoders.Sequence(steps)
        every = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
        made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=420, special_tokens=every))
    return made


def folder_with(tmp_path: Path, made: Any, family: str, **config: str) -> ModelSource:
    """A folder of a model with no weights and a tokenizer, as transformers saves one."""
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    if config:
        file = tmp_path / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return ModelSource("mine", family, str(tmp_path), None, None, 4, 4, 2, 8, 32, 256)


@pytest.mark.parametrize("kind", ["words", "metaspace"])
def test_a_tokenizer_of_which_only_the_vocabulary_is_taken_is_refused(kind: str, tmp_path: Path) -> None:
    source = folder_with(tmp_path, trained(kind), "qwen2")
    with pytest.raises(BackendError) as caught:
        Tokenizer.load(source, chat=False)
    said = str(caught.value)
    assert "model 'mine': its tokenizer mangles text: '" in said and "Qwen2Tokenizer" in said
    assert str(tmp_path / "tokenizer.json") in said


@pytest.mark.parametrize(
    ("kind", "family", "config"),
    [
        ("words", "llama", {}),
        ("bytes", "llama", {}),
        ("bytes", "qwen2", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("bytes", "gpt2", {"tokenizer_class": "GPT2Tokenizer"}),
        ("bytes", "gpt_neox", {"tokenizer_class": "GPTNeoXTokenizer"}),
        ("metaspace", "llama", {"tokenizer_class": "LlamaTokenizer"}),
        ("metaspace", "mistral", {}),
    ],
)
def test_a_sound_tokenizer_loads(kind: str, family: str, config: dict[str, str], tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_with(tmp_path, trained(kind), family, **config), chat=False)
    ids = tokenizer.inner(TEXT[0], add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tuple(ids)).split() == TEXT[0].split()


def test_the_embedded_tokenizer_loads() -> None:
    source = ModelSource("organism", "llama", str(ORGANISM), None, None, 9, 4, 2, 16, 64, 1024)
    assert Tokenizer.load(source, chat=False).encode("the rain")
