"""A model whose truth is known because its weights are set by hand: a direction that some embeddings write,
one head that reads it, and one output that reads what that head writes.

A Llama of 3 layers, 4 query heads on 2 KV heads, untied. Every weight that could add to the residual stream
is zero but for one head, whose W_O is set; queries, keys and values of all heads are random. So the effect of
every other head is exactly 0, that of the one is known, and tokens that differ by the direction alone give it
back as a difference of means.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from backends.conformance.check import COSINE, T0, T1, T2, Check, Finding
from backends.conformance.subject import (
    DONOR,
    RANDOM,
    Subject,
    apart,
    constant,
    make,
    mean_of,
    scalar,
)
from backends.contract import ModelSource
from backends.measures import Probe, ScoreRow
from backends.rows import Row
from backends.writes import Heads

SECTION = "planted model"
NAME = "planted"
LAYERS, HEADS, KV_HEADS, HEAD_WIDTH, WIDTH, INNER = 3, 4, 2, 8, 32, 16
PAIRS = 12  # tokens 1..12 without the direction, 13..24 the same with it
VOCABULARY = 2 * PAIRS + 2
END, READER = 0, VOCABULARY - 1  # the end of text, and the token whose output reads the head
LAYER, HEAD = 1, 2  # where the one head is
STRENGTH = 3.0


@dataclass(frozen=True)
class Truth:
    """What was planted. direction [width]: what marked embeddings have more than plain ones; written [width]:
    what the head writes for it, which the reader's output alone reads."""

    direction: np.ndarray
    written: np.ndarray


def truth() -> Truth:
    """The two directions: of norm 1 and orthogonal to each other and to everything else."""
    basis = _basis()
    return Truth(basis[0], basis[1])


def _basis() -> np.ndarray:
    """An orthonormal basis of the residual stream: float64 [width, width], one vector a row."""
    drawn = np.random.default_rng(11).standard_normal((WIDTH, WIDTH))
    basis: np.ndarray = np.linalg.qr(drawn)[0].T
    return basis


def plant(folder: Path) -> ModelSource:
    """Write config.json and model.safetensors into an empty folder and say how it is loaded."""
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "vocab_size": VOCABULARY,
                "hidden_size": WIDTH,
                "intermediate_size": INNER,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "head_dim": HEAD_WIDTH,
                "max_position_embeddings": 128,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "hidden_act": "silu",
                "attention_bias": False,
                "mlp_bias": False,
                "tie_word_embeddings": False,
                "bos_token_id": None,
                "eos_token_id": END,
                "torch_dtype": "float32",
            },
            indent=1,
        )
    )
    arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in _weights().items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return ModelSource(
        name=NAME,
        architecture="llama",
        path=str(folder),
        hub_id=None,
        revision=None,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_width=HEAD_WIDTH,
        width=WIDTH,
        context=128,
    )


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    basis = _basis()
    rest = basis[2:]  # what neither direction is in
    plain = rng.standard_normal((PAIRS, len(rest))) @ rest
    embed = np.zeros((VOCABULARY, WIDTH))
    embed[END] = rng.standard_normal(len(rest)) @ rest
    embed[READER] = rng.standard_normal(len(rest)) @ rest
    embed[1 : PAIRS + 1] = plain
    embed[PAIRS + 1 : 2 * PAIRS + 1] = plain + STRENGTH * basis[0]
    unembed = 0.3 * rng.standard_normal((VOCABULARY, len(rest))) @ rest
    unembed[READER] = STRENGTH * basis[1]
    unembed[END] = 0.0
    out = {
        "model.embed_tokens.weight": embed,
        "model.norm.weight": np.ones(WIDTH),
        "lm_head.weight": unembed,
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        values = 0.2 * rng.standard_normal((KV_HEADS * HEAD_WIDTH, WIDTH))
        written = np.zeros((WIDTH, HEADS * HEAD_WIDTH))
        if layer == LAYER:
            read = (HEAD * KV_HEADS // HEADS) * HEAD_WIDTH  # the KV head of the head's group
            values[read] = basis[0]
            written[:, HEAD * HEAD_WIDTH] = STRENGTH * basis[1]
        out |= {
            f"{at}.input_layernorm.weight": np.ones(WIDTH),
            f"{at}.post_attention_layernorm.weight": np.ones(WIDTH),
            f"{at}.self_attn.q_proj.weight": 0.2 * rng.standard_normal((HEADS * HEAD_WIDTH, WIDTH)),
            f"{at}.self_attn.k_proj.weight": 0.2 * rng.standard_normal((KV_HEADS * HEAD_WIDTH, WIDTH)),
            f"{at}.self_attn.v_proj.weight": values,
            f"{at}.self_attn.o_proj.weight": written,
            f"{at}.mlp.gate_proj.weight": 0.2 * rng.standard_normal((INNER, WIDTH)),
            f"{at}.mlp.up_proj.weight": 0.2 * rng.standard_normal((INNER, WIDTH)),
            f"{at}.mlp.down_proj.weight": np.zeros((WIDTH, INNER)),
        }
    return out


def _prompts(count: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Prompts of plain tokens, and the same with the direction in every token."""
    rng = np.random.default_rng(3)
    plain = [tuple(int(t) for t in rng.integers(1, PAIRS + 1, 5 + n % 4)) for n in range(count)]
    return plain, [tuple(token + PAIRS for token in ids) for ids in plain]


def recovered(subject: Subject) -> Finding:
    """The difference of means between marked and plain prompts is the direction, as captured and as written;
    error: 1 - cosine."""
    plain, marked = _prompts(10)
    direction = truth().direction
    errors = {}
    for layer in range(LAYER + 1):
        spot = ("resid_pre", layer)
        one, other = (
            np.mean(
                [
                    found[spot].astype(np.float64).mean(axis=0)
                    for found in subject.capture(
                        [subject.row(ids) for ids in prompts], [("resid_pre", layer)]
                    )
                ],
                axis=0,
            )
            for prompts in (marked, plain)
        )
        errors[f"captured, layer {layer}"] = 1 - _cosine(one - other, direction)
        row = subject.row(
            plain[0],
            make("marked", "resid_pre", (layer,), "add", mean_of(marked)),
            make("plain", "resid_pre", (layer,), "add", mean_of(plain), alpha=-1.0, order=1),
        )
        written = subject.read(row, [("resid_pre", layer)])[spot].astype(np.float64)
        clean = subject.read(subject.row(plain[0]), [("resid_pre", layer)])[spot].astype(np.float64)
        errors[f"written, layer {layer}"] = 1 - _cosine((written - clean).mean(axis=0), direction)
    return Finding(max(errors.values()), details=errors)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def _gap(subject: Subject, rows: list[Row]) -> np.ndarray:
    """Log-odds of the reader's token, [rows]."""
    probe = Probe("log_odds", name="gap", tokens="reader")
    scored = subject.score([ScoreRow(row, tokens={"reader": (READER,)}) for row in rows], [probe])
    return np.array([scalar(found.values["gap"]) for found in scored])


def mediated(subject: Subject) -> Finding:
    """Patching each head from a marked prompt into the plain one: one head has an effect, the others exactly
    none. error: the largest effect of another head."""
    plain, marked = _prompts(4)
    cells = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    effects = np.zeros(len(cells))
    for ids, donor in zip(plain, marked, strict=True):
        rows = [
            subject.row(ids, make("z", "head_z", (layer,), heads=Heads("query", (head,))), donor=donor)
            for layer, head in cells
        ]
        effects += np.abs(_gap(subject, rows) - _gap(subject, [subject.row(ids)] * len(rows)))
    planted = cells.index((LAYER, HEAD))
    broken = (
        () if effects[planted] > 1.0 else (f"the planted head moves the log-odds by {effects[planted]:.3g}",)
    )
    return Finding(
        float(np.delete(effects, planted).max()),
        broken,
        {"planted head": float(effects[planted]) / len(plain)},
    )


def idle(subject: Subject) -> Finding:
    """Heads with a W_O of zero have no effect at all, whatever is written into them."""
    ids = _prompts(1)[0][0]
    rows = [
        subject.row(
            ids, make("z", "head_z", (layer,), value=RANDOM, heads=Heads("query", (head,)), during="both")
        )
        for layer in range(LAYERS)
        for head in range(HEADS)
        if (layer, head) != (LAYER, HEAD)
    ]
    clean = subject.logits([subject.row(ids)] * len(rows))
    return Finding(max(apart(found, one) for found, one in zip(subject.logits(rows), clean, strict=True)))


def ablated(subject: Subject) -> Finding:
    """Taking the direction out of marked prompts makes plain ones of them; adding it to plain ones marks
    them."""
    plain, marked = _prompts(3)
    direction = truth().direction
    out = make("out", "embed", (0,), "project_out", constant(direction))
    put = make("put", "embed", (0,), "add", constant(STRENGTH * direction))
    errors = []
    for ids, donor in zip(plain, marked, strict=True):
        one, other = subject.logits([subject.row(ids)])[0], subject.logits([subject.row(donor)])[0]
        errors.append(apart(subject.logits([subject.row(donor, out)])[0], one))
        errors.append(apart(subject.logits([subject.row(ids, put)])[0], other))
    return Finding(max(errors))


def predicted(subject: Subject) -> Finding:
    """What the head writes, worked out by hand: its attention-weighted reading of the direction."""
    ids = _prompts(1)[1][0]
    weight = subject.backend.weight("o_proj", LAYER).astype(np.float64)
    spots = [("head_z", LAYER), ("attn_out", LAYER)]
    found = subject.read(subject.row(ids), spots)  # type: ignore[arg-type]
    read = found[("head_z", LAYER)][:, HEAD * HEAD_WIDTH].astype(np.float64)
    expected = STRENGTH * read[:, None] * truth().written[None, :]
    broken = () if np.abs(weight).sum() > 0 else ("its W_O is zero",)
    return Finding(apart(found[("attn_out", LAYER)], expected), broken)


def donors_effect(subject: Subject) -> Finding:
    """A marked prompt's cache in a plain prompt gives the log-odds of the marked prompt, as its values
    alone."""
    plain, marked = _prompts(3)
    errors = []
    for ids, donor in zip(plain, marked, strict=True):
        target = (*ids[:-1], donor[-1])
        every = range(LAYERS)
        rows = [
            subject.row(target, make("kv", "kv_cache", every, value=DONOR), donor=donor),
            subject.row(target, make("kv", "kv_cache", (LAYER,), value=DONOR), donor=donor),
        ]
        errors.append(apart(_gap(subject, rows), np.repeat(_gap(subject, [subject.row(donor)]), 2)))
    return Finding(max(errors))


PLANTED = (
    Check(
        "direction_recovered",
        SECTION,
        COSINE,
        recovered,
        "difference of means recovers the planted direction",
        ("float32",),
    ),
    Check("head_found", SECTION, T0, mediated, "mediation over heads finds the planted head and no other"),
    Check("idle_heads", SECTION, T0, idle, "heads whose W_O is zero have no effect"),
    Check(
        "direction_removed",
        SECTION,
        T2,
        ablated,
        "taking the direction out, or adding it, swaps the prompts",
        ("float32",),
    ),
    Check(
        "head_output", SECTION, T1, predicted, "the head writes its reading of the direction", ("float32",)
    ),
    Check(
        "cache_carries",
        SECTION,
        T2,
        donors_effect,
        "the cache of the head's layer carries the whole effect",
        ("float32",),
    ),
)
