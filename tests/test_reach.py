"""Gates of the plan: what a readout cannot see of a write, and where it reads only what was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from backends.measures import Probe
from backends.positions import Positions
from backends.rowplan import plan_row
from backends.rows import Row, Sampling
from backends.torch.backend import TorchBackend
from backends.writes import Constant, Features, Heads, Value, Write
from runner.config.readouts.readout import Readout
from runner.config.resolve import Condition, Design
from runner.plan import Plan, Trial
from runner.plan_gates import plan_gates
from runner.reach import Flow, flow_of
from tests.configuring import KV_ONLY, design
from tests.models import CPU, make_model, write

DEPTH = 4
BLOCK = (
    "resid_pre",
    "q_proj",
    "k_proj",
    "v_proj",
    "head_z",
    "attn_out",
    "attn_out_normed",
    "resid_mid",
    "mlp_out",
    "mlp_out_normed",
    "resid_post",
)
TEXT = Readout("behaviour", "behaviour", 1, {"score": "number"})
VECTOR = Value("constant", constant=Constant("d", np.ones(8, dtype=np.float32), "d"))


@lru_cache(maxsize=1)
def organism() -> Design:
    return design(KV_ONLY)


def flow(*writes: Write, length: int = 6, replay: bool = False) -> Flow:
    row = Row(tuple(range(2, 2 + length)), Sampling(0.0, 4), writes, {"donor": tuple(range(20, 20 + length))})
    return flow_of(plan_row(replace(row, replay_last_token=replay)), writes[0], DEPTH)


def places(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def probe(name: str, kind: str, **fields: object) -> Readout:
    columns = {name: "number"} if kind not in ("lens", "patchscope") else {f"{name}.prob": "numbers"}
    return Readout(name, kind, 1, columns, Probe(kind, name, **fields))  # type: ignore[arg-type]


NEXT = probe("p", "next_token")
LENS = probe("lens", "lens", layers=(0, 1, 2, 3))


def found(
    conditions: Mapping[str, Sequence[Write]],
    readouts: Sequence[Readout],
    *,
    primary: str = "p",
    tokens: int = 4,
    length: int = 6,
    expects: Mapping[str, str] | None = None,
    continuations: Mapping[str, tuple[int, ...]] | None = None,
) -> list[tuple[str, str, str, str]]:
    """(condition, gate, verdict, sentence) of made conditions on prompts of 6 and 7 tokens."""
    whole = organism()
    sampling = Sampling(0.0, tokens)
    made = [
        Condition(name, name, ("target",), tuple(writes), expects or {}, sampling)
        for name, writes in conditions.items()
    ]
    trials = [
        Trial(
            key=f"{condition.name}{more}",
            condition=condition.name,
            item=f"{more:04d}",
            repeat=0,
            donor="d",
            target="t",
            group="g",
            row=Row(
                tuple(range(2, 2 + length + more)),
                sampling,
                condition.writes,
                {"donor": tuple(range(20, 20 + length + more))},
            ),
            donor_ids={},
            invalid=None,
            continuations=continuations or {},
        )
        for condition in made
        for more in range(2)
    ]
    planned: Design = replace(
        whole,
        conditions=tuple(made),
        measured=tuple(readouts),
        contrasts=whole.contrasts.model_copy(update={"primary": primary}),
        model=whole.model.model_copy(update={"layers": DEPTH}),
    )
    gates = plan_gates(planned, Plan("measure", tuple(trials)))
    return [(gate["condition"], gate["gate"], gate["verdict"], gate["sentence"]) for gate in gates]


def test_an_attention_carries_a_change_forward_and_nothing_carries_it_back() -> None:
    seen = flow(write("v", "v_proj", (1,), positions="index:2"))
    assert places(seen.at["v_proj", 1]) == [2]
    assert places(seen.at["head_z", 1]) == places(seen.at["resid_post", 3]) == [2, 3, 4, 5]
    assert places(seen.at["resid_post", 0]) == [] and places(seen.at["k_proj", 1]) == []
    assert places(seen.logits) == [2, 3, 4, 5] and seen.onward


def test_what_is_written_after_the_last_attention_stays_where_it_is() -> None:
    seen = flow(write("r", "mlp_out", (3,), positions="first:2"))
    assert places(seen.logits) == [0, 1] and not seen.onward
    assert places(flow(write("r", "mlp_out", (2,), positions="first:2")).logits) == [0, 1, 2, 3, 4, 5]


def test_queries_and_keys_of_a_first_token_that_sees_itself_alone_do_nothing() -> None:
    assert not flow(write("q", "q_proj", (1,), positions="first:1")).onward
    assert places(flow(write("k", "k_proj", (1,), positions="first:1")).at["head_z", 1]) == [1, 2, 3, 4, 5]
    assert places(flow(write("q", "q_proj", (1,), positions="index:3")).at["head_z", 1]) == [3]


def test_cache_writes_come_after_the_prompt_and_before_its_last_token() -> None:
    seen = flow(write("kv", "kv_cache", (1,)))
    assert places(seen.at["resid_post", 0]) == [] and places(seen.at["v_proj", 1]) == []
    assert places(seen.at["resid_post", 1]) == places(seen.logits) == [5] and seen.onward


def test_decode_writes_touch_the_replayed_token_and_no_other_of_the_prompt() -> None:
    late = write("v", "v_proj", (1,), positions="last:2", during="decode")
    assert places(flow(late).logits) == [] and flow(late).onward
    assert places(flow(late, replay=True).logits) == [5]


def test_cut_edges_begin_at_the_first_query_that_has_one() -> None:
    cut = edges((1,), "all", "index:3")
    assert places(flow(cut).at["head_z", 1]) == [3, 4, 5]
    future = edges((1,), "first:2", "index:3")
    assert places(flow(future).logits) == [] and not flow(future).onward


def test_what_another_write_replaces_on_its_way_is_gone() -> None:
    early = write("early", "resid_post", (0,), positions="last:1")
    wall = write("wall", "resid_post", (2,), positions="all")
    assert places(flow(early, wall).at["resid_post", 1]) == [5]
    assert places(flow(early, wall).logits) == []
    assert places(flow(early, replace(wall, op="add")).logits) == [5]
    # The residual stream goes past the attention block.
    assert places(flow(early, replace(wall, site="attn_out")).logits) == [5]
    assert places(flow(early, replace(wall, value=Value("random"))).logits) == [5]
    feature = replace(wall, op="zero", features=Features("folder", "abc", "resid_post", (3,)))
    assert places(flow(early, replace(feature, site="sae", value=Value("none"))).logits) == [5]


def edges(layers: tuple[int, ...], queries: str, keys: str) -> Write:
    return Write(
        "cut",
        "attention_edge",
        layers,
        "mask",
        Value("none"),
        Positions.parse(queries),
        "prefill",
        keys=Positions.parse(keys),
    )


@pytest.mark.parametrize(("family", "exact"), [("llama", True), ("gemma2", True), ("gpt_neox", False)])
def test_what_is_said_to_be_out_of_reach_is_measured_to_be(tmp_path: Path, family: str, exact: bool) -> None:
    """Where windows are wide and blocks sequential, what is said to be in reach is measured to be, too."""
    backend = TorchBackend(make_model(tmp_path, family, **({"sliding_window": 64} if exact else {})), CPU)
    spots = [(s, at) for s in BLOCK if s in backend.info.sites for at in range(DEPTH)]
    ids = (0, *range(2, 9))
    sampling = Sampling(0.0, 1)
    (clean,) = backend.capture([Row(ids, sampling)], spots)
    for site, layer in [spot for spot in spots if spot[1] in (1, 3)]:
        for positions in ("index:3", "last:1", "first:1"):
            noise = write("w", site, (layer,), value="random", positions=positions)
            row = Row(ids, sampling, (noise,), value_stream=5)
            (found,) = backend.capture([row], spots)
            reach = flow_of(plan_row(row), noise, DEPTH)
            for spot in spots:
                old, new = clean.activations[spot], found.activations[spot]
                moved = np.abs(new - old).max(axis=1) > 1e-6 * np.abs(old).max()
                told = reach.at[spot]
                assert not (moved & ~told).any(), (site, layer, positions, spot, moved, told)
                assert not exact or (moved == told).all(), (site, layer, positions, spot, moved, told)


def test_ordinary_writes_raise_no_gate() -> None:
    writes = {
        "baseline": [],
        "kv": [write("kv", "kv_cache", (0, 1, 2, 3))],
        "v": [write("v", "v_proj", (2,), positions="last:3", during="decode")],
        "steer": [write("s", "resid_post", (1,), op="add", positions="all", during="both")],
    }
    assert found(writes, [TEXT], primary="score") == []


def test_trap_18_a_decode_write_with_a_first_token_probe_cannot_be_seen() -> None:
    late = write("v", "v_proj", (1,), positions="last:2", during="decode")
    (gate,) = found({"late": [late]}, [NEXT, LENS])
    assert gate[:3] == ("late", "reach", "fail")
    assert gate[3].startswith(
        "v in late acts in decode only, and no readout takes a decode step (p and lens)"
    )
    logprob = probe("style", "logprob")
    assert found({"late": [late]}, [logprob], continuations={"style": (3, 4)}) == []
    (one,) = found({"late": [late]}, [logprob], continuations={"style": (3,)})
    assert one[2] == "fail"


def test_trap_18_a_readout_before_every_write_is_0_by_construction() -> None:
    r_v = probe("r_v", "geometry", layers=(0, 2), windows=(3,))
    kv = write("kv", "kv_cache", (2, 3))
    steer = write("s", "resid_post", (2,), op="add", positions="all")
    conditions = {"kv": [kv], "steer": [steer], "again": [replace(steer, alpha=2.0)]}
    gates = found(conditions, [TEXT, r_v], primary="score")
    assert [gate[:3] for gate in gates] == [("kv", "reach", "warn"), ("steer", "reach", "warn")]
    assert gates[1][3] == (
        "r_v cannot show what the writes of steer and again do: r_v reads v_proj of layers 0 and 2, which is "
        "computed before s (resid_post of layer 2). Its difference from the same prompt without them is 0 by "
        "construction."
    )
    assert "kv changes the cache after the prompt has been run, and r_v reads v_proj" in gates[0][3]
    primary = found({"steer": [steer]}, [TEXT, r_v], primary="r_v")
    assert [gate[:3] for gate in primary] == [("steer", "reach", "fail")]


def test_trap_18_hook_order_the_output_of_a_block_is_read_before_the_input_of_the_next_is_written() -> None:
    lens = probe("lens", "lens", layers=(1,))
    (gate,) = found({"next": [write("r", "resid_pre", (2,), positions="last:1")]}, [NEXT, lens])
    assert gate[:3] == ("next", "reach", "warn") and "computed before r (resid_pre of layer 2)" in gate[3]


def test_trap_18_positions_that_nothing_read_depends_on() -> None:
    top = write("r", "resid_post", (3,), positions="first:3")
    (gate,) = found({"top": [top]}, [TEXT], primary="score")
    assert gate[:3] == ("top", "reach", "fail") and "no later position reads it" in gate[3]
    early = probe("early", "next_token", position=1)
    late = write("r", "resid_post", (1,), positions="last:1")
    (gate,) = found({"late": [late]}, [NEXT, early])
    assert gate[2] == "warn" and "no position that is read depends on those written" in gate[3]


def test_trap_18_edges_that_do_not_exist_and_edges_of_queries_that_nobody_reads() -> None:
    (future,) = found({"cut": [edges((1,), "first:2", "index:3")]}, [NEXT])
    assert future[2] == "fail" and "cuts edges that do not exist" in future[3]
    unread = edges((3,), "index:3", "first:2")
    (gate,) = found({"cut": [unread]}, [NEXT])
    assert gate[2] == "fail" and "before the last prompt token" in gate[3]
    assert found({"cut": [edges((3,), "index:-1", "first:2")]}, [NEXT]) == []
    assert found({"cut": [edges((2,), "index:3", "first:2")]}, [NEXT]) == []


def test_trap_18_a_write_that_another_replaces_further_up_is_told() -> None:
    early = write("early", "resid_post", (0,), positions="last:1")
    wall = write("wall", "resid_post", (2,), positions="all")
    (gate,) = found({"both": [early, wall]}, [NEXT])
    assert gate[2] == "fail"
    assert "what early changes is overwritten by wall before it is read" in gate[3]


def test_a_write_that_is_expected_to_be_inert_is_expected_to_be_out_of_reach() -> None:
    late = write("v", "v_proj", (1,), positions="last:2", during="decode")
    (gate,) = found({"late": [late]}, [NEXT], expects={"v": "inert"})
    assert gate[2] == "expected"


def test_perplexity_is_about_the_text() -> None:
    perplexity = probe("perplexity", "perplexity")
    late = write("v", "v_proj", (1,), positions="last:2", during="decode")
    assert found({"late": [late]}, [perplexity, TEXT], primary="score") == []
    (gate,) = found({"late": [late]}, [perplexity], primary="perplexity", tokens=1)
    assert gate[2] == "fail" and "before any decode step" in gate[3]


def test_cross_entropy_of_the_prompt_does_not_see_the_cache_and_the_last_token() -> None:
    cross = probe("ce", "cross_entropy")
    gates = found({"kv": [write("kv", "kv_cache", (0,))]}, [NEXT, cross])
    assert [gate[:3] for gate in gates] == [("kv", "reach", "warn")]
    gates = found({"last": [write("r", "resid_post", (1,), positions="last:1")]}, [NEXT, cross])
    assert [gate[:3] for gate in gates] == [("last", "reach", "warn")]
    assert found({"first": [write("r", "resid_post", (1,), positions="first:1")]}, [NEXT, cross]) == []


def test_the_entries_that_can_differ_are_said_once_for_all_conditions() -> None:
    conditions = {
        "baseline": [],
        "at1": [write("r", "resid_pre", (1,), positions="last:2")],
        "again1": [write("r", "resid_pre", (1,), positions="last:3")],
        "at3": [write("r", "resid_pre", (3,), positions="last:2")],
    }
    (gate,) = found(conditions, [NEXT, LENS])
    assert gate == (
        "at1",
        "reach",
        "expected",
        "lens has entries for layers 0 to 3, of which the writes can change those of layers 1 to 3 in at1 "
        "and again1 and layer 3 in at3. The others equal those without the writes, by construction.",
    )


def test_logit_writes_are_read_by_distributions_and_not_by_the_lens() -> None:
    ban = Write("ban", "logits", (3,), "add", VECTOR, Positions.parse("last:1"), "prefill")
    gates = found({"ban": [ban]}, [NEXT, LENS])
    assert [gate[:3] for gate in gates] == [("ban", "reach", "warn"), ("ban", "tautology", "warn")]
    assert gates[0][3].startswith("lens cannot show what the writes of ban do")
    assert "p reads the vector of logits, which is changed in place by ban in ban" in gates[1][3]


def test_trap_19_a_readout_of_the_tensor_that_is_replaced_is_a_tautology() -> None:
    r_v = probe("r_v", "geometry", layers=(0, 2), windows=(3, 2))
    same = write("v", "v_proj", (2,), positions="last:3")
    gates = found({"a": [same], "b": [replace(same, value=Value("random"))]}, [r_v], primary="r_v")
    assert gates == [
        (
            "a",
            "tautology",
            "fail",
            "r_v reads v_proj of layer 2, which is replaced by v in a and b: what is measured there is what "
            "was written, whatever the model does with it (a tautology).",
        )
    ]
    other = write("v", "v_proj", (1,), positions="last:3")
    assert found({"a": [other]}, [r_v], primary="r_v") == []
    assert found({"a": [same]}, [r_v], primary="r_v", expects={"v": "noop"}) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"positions": Positions.parse("last:1")},
            "is replaced by v in a at 1 of the 3 positions read: part of",
        ),
        ({"op": "add"}, "r_v reads v_proj of layer 2, which is changed in place by v in a: what is"),
        ({"heads": Heads("kv", (0,))}, "changed for some heads by v in a"),
    ],
)
def test_trap_19_a_readout_of_a_tensor_that_is_changed_in_part_is_said(
    changed: Mapping[str, object], said: str
) -> None:
    r_v = probe("r_v", "geometry", layers=(0, 2), windows=(3,))
    same = replace(write("v", "v_proj", (2,), positions="last:3"), **changed)  # type: ignore[arg-type]
    (gate,) = found({"a": [same]}, [r_v], primary="r_v")
    assert gate[:3] == ("a", "tautology", "warn") and said in gate[3]


def test_trap_19_the_lens_at_the_layer_and_position_that_is_replaced() -> None:
    patch = write("r", "resid_post", (1,), positions="last:2")
    gates = found({"patched": [patch]}, [NEXT, LENS])
    assert [gate[:3] for gate in gates] == [
        ("patched", "tautology", "warn"),
        ("patched", "reach", "expected"),
    ]
    assert "lens reads resid_post of layer 1, which is replaced by r in patched" in gates[0][3]
    (alone, *_) = found({"patched": [patch]}, [NEXT, probe("lens", "lens", layers=(1,))])
    assert alone[1:3] == ("tautology", "fail")
    elsewhere = probe("lens", "lens", layers=(1,), position=0)
    assert [gate[1] for gate in found({"patched": [patch]}, [NEXT, elsewhere])] == ["reach"]


def test_trap_19_writes_of_one_tensor_share_a_sentence() -> None:
    plus = write("plus", "resid_post", (1,), op="add", positions="all")
    both = [plus, replace(plus, name="minus", alpha=-1.0, order=1)]
    gates = found({"steer": both, "again": both}, [NEXT, LENS])
    assert [gate[:3] for gate in gates] == [
        ("steer", "tautology", "expected"),
        ("steer", "reach", "expected"),
    ]
    assert "changed in place by plus and minus in steer and again: what" in gates[0][3]


def test_trap_19_one_tensor_by_two_names_and_the_features_of_an_sae() -> None:
    read = probe("r_v", "geometry", layers=(0, 2), windows=(2,), site="resid_pre")
    (gate,) = found({"a": [write("r", "resid_post", (1,), positions="last:2")]}, [read], primary="r_v")
    assert gate[1:3] == ("tautology", "fail") and "resid_pre of layer 2" in gate[3]
    sae = Write(
        "f",
        "sae",
        (1,),
        "zero",
        Value("none"),
        Positions.parse("last:1"),
        "prefill",
        features=Features("folder", "abc", "resid_post", (3,)),
    )
    gates = found({"off": [sae]}, [NEXT, LENS])
    assert "changed in place by f in off" in gates[0][3]
    assert [gate[1:3] for gate in gates] == [("tautology", "expected"), ("reach", "expected")]
