"""Where a value is read - another layer, other positions - and noise in place of a vector."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.contract import BackendError
from backends.positions import PositionError, Positions
from backends.rowplan import noise_stream, plan_row
from backends.rows import Row, Sampling
from backends.torch.backend import TorchBackend
from backends.writes import SELF, Constant, Value, Write
from runner.config.stages.artefact_files import as_bytes
from runner.config.stages.known import Artefact
from runner.config.writes.words import write_in_words
from runner.keys import canonical
from tests.configuring import body, design, faults
from tests.models import CPU, GREEDY, make_model, prompt, write
from tests.test_write_keys import spans_of
from tests.writing import RESID, TWO_HOP, WIDTH, refused, resolved, vector, wrong

# --- In YAML ------------------------------------------------------------------------------------------------


def test_a_source_can_be_read_at_another_layer(tmp_path: Path) -> None:
    values = {
        "donor": ("source", "donor"),
        "'donor:repetitive'": ("source", "repetitive"),
        "other_donor": ("source", "other_donor"),
        "self": ("source", SELF),
        "orthogonal": ("orthogonal", "donor"),
    }
    for word, layer in (("3", 3), ("late", 7), ("84%", 8)):
        found = resolved(tmp_path, *(f"{RESID}, value: {value}, from_layer: {word}" for value in values))
        for (kind, role), (one, told) in zip(values.values(), found, strict=True):
            assert one.value == Value(kind, role, layer=layer)  # type: ignore[arg-type]
            assert f"in layer {layer}" in told and one.layers == (4,)


def test_the_layer_that_is_written_is_no_other_layer(tmp_path: Path) -> None:
    same, own, said, mixed = resolved(
        tmp_path,
        f"{RESID}, value: donor, from_layer: 4, positions: last:2",
        f"{RESID}, value: self, positions: last:3",
        f"{RESID}, value: 'layer:4', positions: last:4",
        "site: resid_post, layers: [3, 4], value: donor, from_layer: 4",
    )
    assert same[0].value == Value("source", "donor") and "in layer" not in same[1]
    assert said[0].value == own[0].value == Value("source", SELF)
    assert mixed[0].value.layer == 4  # layer 3 is written with it too
    twice = f"a: {{w: {{{RESID}, value: donor, from_layer: 4}}}}\nb: {{w: {{{RESID}, value: donor}}}}"
    assert "conditions 'a' and 'b' resolve to the same" in faults(
        "+experiment=mine", folder=body(twice, tmp_path)
    )


def test_layer_n_is_the_own_run_at_that_layer(tmp_path: Path) -> None:
    text = f"a: {{w: {{{RESID}, value: 'layer:2'}}}}\nb: {{w: {{{RESID}, value: self, from_layer: 2}}}}"
    assert "conditions 'a' and 'b' resolve to the same" in faults(
        "+experiment=mine", folder=body(text, tmp_path)
    )


def test_the_layer_that_is_read_is_told_on_the_reference_depth(tmp_path: Path) -> None:
    text = f"a: {{w: {{{RESID}, value: donor, from_layer: 27}}}}"
    found = design("+experiment=mine", folder=body(text, tmp_path, rest="reference_depth: 32"))
    assert found.condition("a").writes[0].value.layer == 7
    assert "layer 27 of 32 is layer 7 of 9" in found.layer_notes


def test_a_grid_of_the_layer_that_is_read_and_the_one_written(tmp_path: Path) -> None:
    grid = "{w.from_layer: [6, late], w.layers: [1, 2]}"
    folder = body(f"a: {{w: {{site: resid_post, value: donor}}, grid: {grid}}}", tmp_path)
    cells = design("+experiment=mine", folder=folder).conditions[1:]
    assert [(c.writes[0].value.layer, c.writes[0].layers[0]) for c in cells] == [
        (6, 1),
        (6, 2),
        (7, 1),
        (7, 2),
    ]
    assert dict(cells[2].grid) == {"w.from_layer": "late", "w.layers": 1}


def test_positions_of_the_source_are_counted_apart(tmp_path: Path) -> None:
    one, many, decode, both, own = resolved(
        tmp_path,
        f"{RESID}, value: donor, positions: last:3, from_positions: 'index:-2'",
        f"{RESID}, value: donor, positions: first:2, from_positions: last:2, op: add, alpha: 2",
        f"{RESID}, value: donor, from_positions: last:2, during: decode, hold: cycle",
        f"{RESID}, value: donor, positions: index:-1, from_positions: last:1, during: both, hold: last",
        f"{RESID}, value: self, positions: first:4, from_positions: 'index:0', from_layer: late",
    )
    assert one[0].source_positions == Positions("index", count=-2)
    assert (
        "the residual stream after the layer at the prompt's last 3 positions is replaced by that at the "
        "donor's position -2 (one row for all)." in one[1]
    )
    assert "at the donor's last 2 positions is added to that at the prompt's first 2 positions" in many[1]
    assert (decode[0].positions, decode[0].source_positions) == (Positions("last", count=2), None)
    assert "row t mod 2 of the donor's last 2 positions" in decode[1]
    assert both[0].source_positions == Positions("last", count=1) and "one row for all" not in both[1]
    assert "is replaced by that at the prompt's own first position in layer 7 (one row for all)." in own[1]


def test_equal_positions_are_no_other_positions(tmp_path: Path) -> None:
    text = f"{RESID}, value: donor, positions: last:2"
    folder = body(f"a: {{w: {{{text}, from_positions: last:2}}}}\nb: {{w: {{{text}}}}}", tmp_path)
    assert "conditions 'a' and 'b' resolve to the same" in faults("+experiment=mine", folder=folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("value: 'layer:3', from_layer: 5", "layer:3 says the layer already; expected one or the other"),
        ("value: donor, from_layer: 9", "from_layer: expected a layer from 0 to 8"),
        ("value: donor, from_layer: erly", "did you mean 'early'"),
        ("value: donor, from_layer: 1-3", "expected one layer"),
        ("value: random, from_layer: 3", "from_layer says at which layer the source is read, and the value "),
        ("value: 'mean:targets', from_layer: 3", "the value mean:targets has none; remove it"),
        ("value: file:v.npy, from_layer: 3", "the vectors of a file are for the layers"),
        ("value: 'random:file:v.npy', from_layer: 3", "the vectors of a file are for the layers"),
        ("op: zero, from_layer: 3", "op zero has none; remove it"),
        (
            "value: random, from_positions: index:-1",
            "from_positions are counted on the source, and the value",
        ),
        ("value: file:v.npy, from_positions: index:-1", "the value file:v.npy has none"),
        ("op: zero, from_positions: index:-1", "op zero has none; remove it"),
        ("value: donor, from_positions: lst:2", "from_positions: 'lst:2' is not a set of positions"),
        ("value: donor, from_positions: role:e1", "from_positions: no prompt bank marks 'e1' for the donors"),
        (
            "value: shuffled_window, positions: last:4, from_positions: first:4",
            "shuffled_window permutes the rows of the window that `positions` name",
        ),
        (
            "value: donor, positions: last:4, from_positions: first:3",
            "expected one position, or 4 for last:4, got first:3",
        ),
        ("value: donor, positions: index:-1, from_positions: first:3", "expected one position, got first:3"),
        (
            "value: donor, during: decode, hold: last, positions: last:2, from_positions: last:3",
            "nothing reads positions beside from_positions; expected one of them",
        ),
        (
            "value: donor, during: decode, hold: lockstep, from_positions: last:3",
            "lockstep takes the donor's own generated tokens in turn",
        ),
        ("value: 'random:vile:v.npy'", "expected one of random, random:artefact:NAME, random:file:PATH, got"),
    ],
)
def test_what_has_no_other_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", vector())
    found = wrong(tmp_path, f"{RESID}, {words}")
    assert said in found and len(found.splitlines()) == 1


def test_sites_whose_values_have_no_other_place_are_refused(tmp_path: Path) -> None:
    cache = "site: kv_cache, layers: all, value: donor"
    refused(
        tmp_path,
        [
            (f"{cache}, from_layer: 3", "kv_cache takes each layer's keys and values from the same layer"),
            (f"{cache}, from_positions: index:-1", "align says which slots of two caches meet; remove it"),
            ("site: embed, value: donor, from_layer: 3", "embed has no layers of which another one"),
            ("site: logits, value: donor, from_layer: 3", "logits has no layers of which another one"),
        ],
    )


def test_spans_of_the_source_are_found_in_the_source(tmp_path: Path) -> None:
    text = "w: {site: resid_post, layers: 4, value: %s, positions: %s, from_positions: %s}"
    crossed = spans_of(tmp_path, f"a: {{{text % ('donor', 'role:e1.last', 'role:r2.last')}}}")
    assert set(crossed) == {"e1", "donor/r2"}
    read_alone = spans_of(tmp_path, f"a: {{{text % ('donor', 'last:2', 'role:e1.last')}}}")
    assert set(read_alone) == {"donor/e1"}
    own = spans_of(tmp_path, f"a: {{{text % ('self', 'index:-1', 'role:e1.first')}}}")
    assert set(own) == {"e1"}
    inner = (
        "v: {site: resid_post, layers: 2, value: self, positions: 'index:-1', from_positions: role:r1.last}"
    )
    under = "w: {site: resid_post, layers: 4, value: donor, positions: 'index:-1', under: b}"
    assert set(spans_of(tmp_path, f"a: {{{under}}}\nb: {{{inner}}}")) == {"donor/r1"}
    found = design(
        "+experiment=mine",
        folder=body(f"a: {{{text % ('donor', 'role:e1.last', 'role:r2.last')}}}", tmp_path, rest=TWO_HOP),
    )
    told = " ".join(found.condition("a").words)
    assert "the last position of the prompt's span 'e1' is replaced by that at the last position of" in told


# --- Noise in place of a vector -----------------------------------------------------------------------------


def test_noise_in_place_of_a_vector_is_told_from_noise_that_is_matched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", vector())
    (one, told), (plain, _), (other, of_other) = resolved(
        tmp_path,
        f"{RESID}, op: add, value: 'random:file:v.npy', draws: 3",
        f"{RESID}, op: add, value: random",
        f"{RESID}, op: add, value: 'orthogonal:file:v.npy'",
        overrides=("experiment.repeats=3",),
    )
    assert one.value.kind == "random" and one.value.constant is not None and one.value.draws == 3
    assert one.drawn and canonical(one) != canonical(replace(plain, value=replace(plain.value, draws=3)))
    digest = one.value.constant.digest[:12]
    assert (
        f"a Gaussian vector (of the norm of the vector in 'v.npy' (sha256 {digest}), 3 different draws over "
        "the repeats) is added to" in told
    )
    assert f"a Gaussian vector (orthogonal to the vector in 'v.npy' (sha256 {digest}), and of its" in of_other
    assert other.value.constant == one.value.constant


@pytest.fixture
def direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """An artefact of another run in the folder where the command runs: two positions, nine layers."""
    monkeypatch.chdir(tmp_path)
    vectors = vector(1, 2, 9, WIDTH)
    made = Artefact(
        "direction", vectors, ("position", "layer", "width"), "resid_pre", tuple(range(9)),
        positions=(-2, -1), key="k", model="organism", dtype="float32",
    )  # fmt: skip
    Path("direction.safetensors").write_bytes(as_bytes(made))
    return vectors


def test_a_vector_of_an_artefact_is_that_of_its_layer_and_position(
    tmp_path: Path, direction: np.ndarray
) -> None:
    text = "site: resid_post, layers: [1, 2], op: add, value: '%sartefact:direction.safetensors'"
    chosen = "from_layer: 3, from_positions: 'index:-1'"
    (one, told), (layered, _), (noise, of_noise), (side, _) = resolved(
        tmp_path,
        f"{text % ''}, {chosen}",
        f"{text % ''}, from_positions: 'index:-2'",
        f"{text % 'random:'}, {chosen}",
        f"{text % 'orthogonal:'}, {chosen}",
    )
    assert one.value.constant is not None and layered.value.constant is not None
    for layer in (1, 2):
        np.testing.assert_array_equal(one.value.constant.at(layer), direction[1, 3])
        np.testing.assert_array_equal(layered.value.constant.at(layer), direction[0, layer])
    assert one.value.layer is None and one.source_positions is None
    assert noise.value.constant == side.value.constant == one.value.constant
    assert (noise.value.kind, side.value.kind) == ("random", "orthogonal")
    assert "the vector of artefact 'direction'" in told and "layer 3" in told and "position -1" in told
    assert "a Gaussian vector (of the norm of the vector of artefact 'direction'" in of_noise


@pytest.mark.parametrize("form", ["artefact", "random:artefact", "orthogonal:artefact"])
def test_what_an_artefact_does_not_have_is_told_once(
    tmp_path: Path, direction: np.ndarray, form: str
) -> None:
    text = f"{RESID}, op: add, value: '{form}:direction.safetensors'"
    for more, said in (
        ("from_layer: 9, from_positions: 'index:-1'", "w.from_layer: expected a layer from 0 to 8"),
        ("from_layer: 3, from_positions: 'indx:-1'", "w.from_positions: 'indx:-1' is not a set of positions"),
        ("from_layer: 3, from_positions: 'index:-3'", "w.value: expected a position of the artefact"),
    ):
        found = wrong(tmp_path, f"{text}, {more}")
        assert said in found and len(found.splitlines()) == 1


def test_a_vector_of_an_artefact_is_told_as_such() -> None:
    constant = Constant("abc", np.ones(4, dtype=np.float32), "artefact 'direction', position -1, layer 4")
    for kind, told in (("constant", "the vector of"), ("random", "(of the norm of the vector of")):
        one = Write(
            "w",
            "resid_pre",
            (2,),
            "add",
            Value(kind, constant=constant),
            Positions("all"),
            "prefill",  # type: ignore[arg-type]
        )
        sentence = write_in_words("resid_pre", one, 9, replayed=False)[0]
        assert f"{told} artefact 'direction', position -1, layer 4 (sha256 abc)" in sentence


@pytest.mark.parametrize("form", ["random:file", "orthogonal:file"])
def test_trap_16_noise_in_place_of_no_direction_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    undefined = vector()
    undefined[3] = np.inf
    np.save("zero.npy", np.zeros(WIDTH, dtype=np.float32))
    np.save("undefined.npy", undefined)
    np.save("cached.npy", vector(0, WIDTH // 2))
    text = f"{RESID}, op: add, value: '{form}"
    refused(
        tmp_path,
        [
            (f"{text}:zero.npy'", "the vector in 'zero.npy' is zero, which is no direction"),
            (f"{text}:undefined.npy'", "expected finite numbers (in float32), got 1"),
            (f"site: kv_cache, layers: all, value: '{form}:cached.npy'", "kv_cache takes rows of a cache"),
        ],
    )


# --- In the plan of a row -----------------------------------------------------------------------------------

DONOR = tuple(range(20, 30))
TARGET = tuple(range(1, 8))


def planned(one: Write, **more: object) -> tuple[list[int], list[int]]:
    row = Row(TARGET, Sampling(0.0, 4), (one,), {"donor": DONOR}, **more)  # type: ignore[arg-type]
    pairs = plan_row(row).writes[0].prefill
    assert pairs is not None and pairs.source is not None
    return pairs.target.tolist(), pairs.source.tolist()


def test_one_row_stands_for_all_positions_or_each_has_its_own() -> None:
    def at(positions: str, read: str | None) -> Write:
        found = write("w", "resid_pre", positions=positions)
        return replace(found, source_positions=None if read is None else Positions.parse(read))

    assert planned(at("last:3", "index:2")) == ([4, 5, 6], [2, 2, 2])
    assert planned(at("first:2", "last:2")) == ([0, 1], [8, 9])
    assert planned(at("all", None)) == ([0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8, 9])
    spans = {"e1": (1, 3), "donor/r2": (4, 6)}
    assert planned(at("role:e1", "role:r2"), spans=spans) == ([1, 2], [4, 5])
    with pytest.raises(
        PositionError, match=r"'w' writes 7 positions \(all\) and reads 10 \(all of the prompt"
    ):
        planned(at("all", "all"))
    with pytest.raises(PositionError, match=r"expected one, or as many"):
        planned(at("role:e1", "role:r2"), spans={"e1": (1, 3), "donor/r2": (4, 7)})


def test_a_cache_takes_neither_other_positions_nor_noise_of_a_vector() -> None:
    cache = write("kv", "kv_cache")
    row = Row(TARGET, GREEDY, (replace(cache, source_positions=Positions("all")),), {"donor": DONOR})
    with pytest.raises(PositionError, match="align says which slots of two caches meet"):
        plan_row(row)
    constant = Constant("1", np.ones(4, dtype=np.float32))
    row = replace(row, writes=(replace(cache, value=Value("random", constant=constant)),))
    with pytest.raises(PositionError, match="kv_cache takes no fixed vector"):
        plan_row(row)


def test_the_stream_of_a_drawn_vector_knows_the_vector_and_neither_site_nor_shared_layers() -> None:
    row = Row(TARGET, GREEDY, value_stream=5)
    one, other = (Value("random", constant=Constant(d, np.ones(4, dtype=np.float32))) for d in "12")
    layered = Value("random", constant=Constant("1", np.ones((4, 4), dtype=np.float32)))

    def stream(value: Value, site: str, layer: int) -> int:
        return noise_stream(row, replace(write("w", site), value=value), layer)

    assert stream(one, "resid_pre", 0) == stream(one, "mlp_out", 3) != stream(other, "resid_pre", 0)
    assert stream(layered, "resid_pre", 0) != stream(layered, "resid_pre", 1)
    assert stream(Value("random"), "resid_pre", 0) != stream(Value("random"), "resid_post", 0)


# --- In a model ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> TorchBackend:
    return TorchBackend(make_model(tmp_path_factory.mktemp("llama"), "llama", seed=5), CPU)


def read_at(positions: str, read: str, **more: object) -> Write:
    found = write("w", "resid_post", (1,), positions=positions, **more)  # type: ignore[arg-type]
    return replace(found, source_positions=Positions.parse(read))


@pytest.mark.parametrize("hold", ["last", "cycle", "mean"])
def test_every_new_token_gets_the_row_that_is_read(backend: TorchBackend, hold: str) -> None:
    """In decode one row is the same window by whichever word it is named."""
    rng = random.Random(4)
    ids, donor = prompt(rng, 9), prompt(rng, 12)
    both = read_at("last:2", "index:3", during="both", hold=hold)
    apart = (
        replace(both, name="p", during="prefill", hold=None),
        replace(
            both, name="d", during="decode", positions=Positions("index", count=3), source_positions=None
        ),
    )
    rows = [Row(ids, GREEDY, writes, {"donor": donor}) for writes in ((both,), apart, ())]
    found, expected, plain = backend.decode(rows)
    assert found.output_ids == expected.output_ids != plain.output_ids
    receipt = found.receipts["w"]
    assert (receipt.asked_prefill, receipt.positions_prefill) == (2, 2)
    assert receipt.positions_decode == receipt.asked_decode == len(found.output_ids) - 1


def test_a_sliding_window_takes_one_row_for_all_its_positions(backend: TorchBackend) -> None:
    rng = random.Random(6)
    ids, donor = prompt(rng, 9), prompt(rng, 12)
    one = read_at("last:3", "index:-1", during="decode", hold="sliding")
    repeated = write("w", "resid_post", (1,), positions="last:3", during="decode", hold="sliding")
    rows = [Row(ids, Sampling(0.0, 6), (each,), {"donor": donor}, recompute=True) for each in (one, repeated)]
    found, other = backend.decode(rows)
    assert found.receipts["w"].positions_decode == 3 * (len(found.output_ids) - 1)
    assert found.output_ids != other.output_ids
    with pytest.raises(PositionError, match="writes 3 positions"):
        plan_row(replace(rows[0], writes=(replace(one, source_positions=Positions("last", count=2)),)))


def test_a_removed_vector_of_noise_is_gone_from_the_whole_stream(backend: TorchBackend) -> None:
    """Noise in place of a direction is one direction: taken out of all that is added to the stream, it is in
    no layer of it."""
    ids = prompt(random.Random(8), 9)
    value = Value("random", constant=Constant("d", np.ones(32, dtype=np.float32)))
    writes = tuple(
        replace(write(site, site, op="project_out"), value=value) for site in ("attn_out", "mlp_out")
    )
    embed = replace(write("embed", "embed", (0,), op="project_out"), value=value)
    drawn = replace(write("drawn", "resid_pre", (0,)), value=value)
    direction = backend.capture([Row(ids, GREEDY, (drawn,))], [("resid_pre", 0)])[0]
    row = direction.activations["resid_pre", 0][0].astype(np.float64)
    assert np.linalg.norm(row) == pytest.approx(32**0.5)
    last = ("resid_post", 3)
    clean, ablated = (
        found.activations[last].astype(np.float64) @ (row / np.linalg.norm(row))
        for found in backend.capture([Row(ids, GREEDY), Row(ids, GREEDY, (embed, *writes))], [last])
    )
    assert np.abs(ablated).max() < 1e-5 * np.abs(clean).max()


@pytest.mark.parametrize("kind", ["random", "orthogonal"])
@pytest.mark.parametrize(
    ("number", "said"), [(0.0, "is zero, which is no direction"), (np.nan, "is not finite")]
)
def test_trap_16_noise_in_place_of_no_direction_ends_the_run(
    backend: TorchBackend, kind: str, number: float, said: str
) -> None:
    table = np.ones((4, 32), dtype=np.float32)
    table[2] = number
    value = Value(kind, constant=Constant("z", table))  # type: ignore[arg-type]
    one = replace(write("w", "resid_pre", (1, 2)), value=value)
    with pytest.raises(BackendError, match=f"'w': the vector at layer 2 {said}"):
        backend.decode([Row(prompt(random.Random(1), 6), GREEDY, (one,))])
    assert backend.decode([Row(prompt(random.Random(1), 6), GREEDY, (replace(one, layers=(1,)),))])
