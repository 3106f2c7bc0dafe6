"""Layer words, local models, what makes two configurations the same, and what checking one loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config.check import resolved_mapping
from runner.config.compose import compose
from runner.config.folders import conf_dir
from runner.config.layers import LayerError, rescale, resolve_layers
from runner.config.resolve import config_hash
from tests.configuring import KV_ONLY, design, faults

# --- layers


@given(st.integers(1, 100), st.integers(2, 100), st.data())
def test_rescaling_keeps_ends_order_and_identity(depth: int, reference: int, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, reference - 2))
    assert rescale(0, depth, reference) == 0
    assert rescale(reference - 1, depth, reference) == depth - 1
    assert 0 <= rescale(i, depth, reference) <= rescale(i + 1, depth, reference) < depth
    assert rescale(i, reference, reference) == i


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("all", tuple(range(9))),
        (0, (0,)),
        ("2-4", (2, 3, 4)),
        ([7, 2, "early"], (1, 2, 7)),
        ("84%", (8,)),
        ("0%", (0,)),
        ("100%", (8,)),
        ("50%", (5,)),
        ("late", (7,)),
    ],
)
def test_layer_words(word: int | str | list[int | str], expected: tuple[int, ...]) -> None:
    assert resolve_layers(word, 9, None, {"early": 1, "late": 7}) == expected


def test_layers_beyond_the_scale_are_refused() -> None:
    for word in (32, "30-32", -1, "-1", "101%"):
        with pytest.raises(LayerError):
            resolve_layers(word, 9, 32, {})


# --- local models, hashes, speed of imports


def local_model(folder: Path, **changes: object) -> Path:
    config = {
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "hidden_size": 896,
        "max_position_embeddings": 32768,
        "vocab_size": 151936,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_path_makes_any_model_local_and_its_files_count(tmp_path: Path) -> None:
    found = design(KV_ONLY, f"+model.path={local_model(tmp_path)}").model
    assert (found.source, found.architecture, found.name) == ("local", "qwen2", tmp_path.name)
    assert (found.layers, found.heads, found.kv_heads, found.head_width) == (24, 14, 2, 64)
    assert found.landmarks == {"early": 4, "relay": 13, "late": 20}
    wide = design(KV_ONLY, f"model.path={local_model(tmp_path, head_dim=128)}").model
    assert wide.head_width == 128


def test_declared_numbers_of_a_local_model_must_agree_with_its_files(tmp_path: Path) -> None:
    overrides = (KV_ONLY, "model.source=local", f"model.path={local_model(tmp_path)}")
    assert "model.layers: expected 24" in faults(*overrides)
    assert "expected the folder of a model" in faults(KV_ONLY, "model.path=/nonexistent")
    (tmp_path / "config.json").write_text("[", encoding="utf-8")
    assert "expected a JSON object" in faults(*overrides)
    assert "to state layers" in faults(KV_ONLY, f"model.path={local_model(tmp_path, num_hidden_layers=None)}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of the 14 query heads, got 3"),
        ({"num_hidden_layers": "24"}, "num_hidden_layers: expected a whole number, got '24'"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected more than 0, got 0"),
        ({"max_position_embeddings": True}, "max_position_embeddings: expected a whole number, got true"),
        ({"head_dim": -1}, "head_dim: expected more than 0, got -1"),
        ({"model_type": 3}, "model_type: expected a text, got 3"),
    ],
)
def test_wrong_numbers_of_a_local_model_are_told_of_its_own_file(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    told = faults(KV_ONLY, f"model.path={local_model(tmp_path, **changes)}")
    assert told == f"{tmp_path / 'config.json'}: {message}"


def test_hash_ignores_where_and_how_but_not_what() -> None:
    def hashed(*overrides: str) -> str:
        return config_hash(resolved_mapping(compose([KV_ONLY, *overrides])))

    base = hashed()
    aside = (
        "resume=true",
        "output_root=x",
        "profile=true",
        "quiet=true",
        "report=false",
        "dry_run=true",
        "allow_inert=true",
    )
    assert hashed(*aside, "backend.memory_budget=1GiB", "backend.max_rows=4", "backend.threads=1") == base
    assert hashed("backend.workers=2") == base
    for change in (
        "limit=5",
        "sampling.seed=0",
        "experiment.n=299",
        "backend.attention=eager",
        "model.dtype=bfloat16",
    ):
        assert hashed(change) != base


def test_limit_and_sizes_are_read() -> None:
    found = design(KV_ONLY, "limit=7", "backend.memory_budget=1.5GiB")
    assert (found.n, found.backend.memory_budget) == (7, 3 << 29)
    assert "such as 2GiB" in faults(KV_ONLY, "backend.memory_budget=2GX")


def test_checking_loads_no_model_library() -> None:
    code = (
        "import sys\nfrom runner.config.compose import compose\nfrom runner.config.check import check\n"
        f"check(compose(['{KV_ONLY}']))\n"
        "assert not {'torch', 'transformers', 'pandas', 'mlx'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=conf_dir().parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
