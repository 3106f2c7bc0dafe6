"""The identities of backends/conformance hold on every architecture, on the embedded model and on a planted
one; random conditions are the same in a batch as alone, and receipts are what independent hooks count."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from backends.conformance import check as checks
from backends.conformance import suite
from backends.conformance.check import T1, T2, Check, Finding, Measurement
from backends.conformance.parity import parity
from backends.conformance.planted import plant
from backends.conformance.reach import reached
from backends.conformance.subject import Subject, apart, constant, make, mean_of, same_tokens
from backends.contract import BackendError, ModelInfo, ModelSource, OutOfMemory
from backends.positions import Positions
from backends.rows import Decoded
from backends.torch.backend import TorchBackend
from backends.torch.hooks import Board
from backends.writes import LAYERLESS, SELF, Heads, Value, Write
from organisms import FINAL, weights_dir
from tests.models import CPU, FAMILIES, make_model
from tests.plain_reference import module_of

MODELS = (*sorted(FAMILIES), "organism")


def load(name: str, folder: Path) -> TorchBackend:
    if name == "organism":
        shape = {"layers": 9, "heads": 4, "kv_heads": 2, "head_width": 16, "width": 64, "context": 1024}
        return TorchBackend(
            ModelSource("organism", "llama", str(weights_dir(FINAL)), None, None, **shape), CPU
        )
    return TorchBackend(make_model(folder, name, seed=5), CPU)


@pytest.fixture(scope="module", params=MODELS)
def backend(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp(request.param))


def told(found: list[Measurement]) -> list[str]:
    return [f"{each.check.name}: {each.sentence}" for each in found if each.verdict == "violated"]


def test_every_identity_holds(backend):
    found = suite.run(backend)
    assert told(found) == []
    assert sum(each.verdict == "ok" for each in found) > 0.8 * len(found)


@pytest.mark.slow
def test_every_identity_holds_at_every_layer(backend):
    assert told(suite.run(backend, "full")) == []


@pytest.mark.parametrize("length", ["short", "full"])
def test_what_was_planted_is_found(tmp_path, length):
    found = suite.run_planted(TorchBackend(plant(tmp_path), CPU), length)
    assert told(found) == []
    assert all(each.verdict == "ok" for each in found)


def test_a_model_whose_heads_do_nothing_is_noticed(tmp_path):
    """The planted model's heads are zero but for one: what must change something does not."""
    found = suite.run(TorchBackend(plant(tmp_path), CPU))
    noticed = {each.check.section for each in found if each.verdict == "violated"}
    assert "liveness" in noticed
    assert noticed <= {"liveness", "composition", "cache", "values", "sources"}
    assert any("changes no logit" in each.sentence for each in found)


def test_names_are_unique_and_every_check_says_what_must_hold():
    every = (*suite.CHECKS, *suite.PLANTED)
    assert len({check.name for check in every}) == len(every)
    assert all(check.says and check.section for check in every)


def test_two_ways_to_compute_attention_agree_as_two_backends_must(tmp_path):
    source = make_model(tmp_path, "qwen3", seed=5)
    fused, plain = TorchBackend(source, CPU), TorchBackend(source, replace(CPU, attention="eager"))
    found = parity(fused, plain)
    assert told(found) == []
    assert 0 < found[0].error < found[0].tolerance.bound


def test_two_models_do_not_agree_as_two_backends_must(tmp_path):
    one, other = (TorchBackend(make_model(tmp_path / str(seed), "llama", seed=seed), CPU) for seed in (1, 2))
    assert [each.verdict for each in parity(one, other)] == ["violated"] * 3


def test_in_low_precision_what_has_a_tolerance_is_left_out_and_the_rest_holds(tmp_path):
    source = make_model(tmp_path, "llama", seed=5)
    found = suite.run(TorchBackend(source, replace(CPU, dtype="bfloat16")))
    assert told(found) == []
    left_out = [each for each in found if each.verdict == "not applicable"]
    assert len(left_out) < 0.8 * len(found)
    assert all("float32" in each.sentence for each in left_out if each.check.needs)


# What a verdict is.


def _subject(run, **more) -> Measurement:
    check = Check("made up", "tests", T1, run, "says", **more)
    return suite.one(_Stub(), check)


@dataclass(frozen=True)
class _Info:
    context: int = 256
    dtype: str = "float32"
    rotary: bool = True
    architecture: str = "llama"


@dataclass(frozen=True)
class _Stub:
    info: _Info = _Info()
    mixture: bool = False


def test_an_error_within_its_tolerance_is_ok_and_one_beyond_it_is_not():
    assert _subject(lambda _: Finding(1e-5)).verdict == "ok"
    beyond = _subject(lambda _: Finding(1.1e-5))
    assert beyond.verdict == "violated"
    assert "1.1e-05" in beyond.sentence


def test_an_error_that_is_not_a_number_is_a_violation():
    assert _subject(lambda _: Finding(float("nan"))).verdict == "violated"


def test_a_broken_statement_is_a_violation_whatever_the_error():
    found = _subject(lambda _: Finding(0.0, ("this does not hold",)))
    assert (found.verdict, found.sentence) == ("violated", "this does not hold")


def test_what_a_check_raises_is_told_and_lack_of_memory_goes_on():
    def refuse(_):
        raise BackendError("no such site")

    def burst(_):
        raise OutOfMemory("too large")

    assert _subject(refuse).sentence == "BackendError: no such site"
    with pytest.raises(OutOfMemory):
        _subject(burst)


def test_a_check_that_needs_what_the_model_lacks_says_so():
    check = Check("made up", "tests", T1, lambda _: Finding(0.0), "says", ("float32", "rotary"))
    found = suite.one(_Stub(_Info(dtype="bfloat16", rotary=False)), check)
    assert found.verdict == "not applicable"
    assert "bfloat16" in found.sentence and "learned" in found.sentence


def test_mixtures_of_experts_have_a_tolerance_of_their_own():
    check = Check("made up", "tests", checks.T0, lambda _: Finding(1e-6), "says", mixture=T1)
    assert suite.one(_Stub(), check).verdict == "violated"
    assert suite.one(_Stub(mixture=True), check).verdict == "ok"


def test_apart_is_relative_to_the_largest_and_infinite_where_nothing_compares():
    assert apart(np.array([1.0, 8.1]), np.array([1.0, 8.0])) == pytest.approx(0.1 / 8)
    assert apart(np.zeros(3), np.zeros(3)) == 0
    assert apart(np.array([1.0]), np.array([0.0])) == np.inf
    assert apart(np.zeros(2), np.zeros(3)) == np.inf
    assert apart(np.array([np.nan]), np.array([1.0])) == np.inf


def test_a_difference_of_tokens_is_accepted_only_at_a_recorded_near_tie():
    one = Decoded((5, 6), "length", {}, 2e-5, 1, 4)
    other = replace(one, output_ids=(5, 7), min_margin=1.0)
    assert same_tokens([one], [one], 0.0).differ == 0
    assert same_tokens([one], [other], 1e-6).differ == 1
    assert same_tokens([one], [other], 1e-5).near_ties == 1


# Reachability, on cases worked out by hand.


def _info(layers: int, *windows: int | None) -> ModelInfo:
    return ModelInfo(
        "m", "llama", layers, 2, 1, 4, 8, 9, 99, "float32", "cpu", "sdpa", "", (), windows=windows
    )


@pytest.mark.parametrize(
    ("site", "layer", "position", "expected"),
    [
        ("resid_pre", 0, 2, "001111"),  # one layer above sees on
        ("resid_post", 1, 2, "001000"),  # nothing above the last layer
        ("resid_post", 0, 2, "001111"),
        ("q_proj", 1, 0, "000000"),  # position 0 sees one key
        ("q_proj", 0, 2, "001111"),
        ("k_proj", 1, 0, "011111"),  # all but the query that sees this key alone
        ("v_proj", 1, 0, "111111"),
        ("head_z", 1, 5, "000001"),
        ("logits", 1, 3, "000100"),
    ],
)
def test_reach_in_a_model_that_sees_everything(site, layer, position, expected):
    assert reached(_info(2, None, None), site, layer, position, 6).tolist() == [c == "1" for c in expected]


@pytest.mark.parametrize(
    ("site", "layer", "position", "expected"),
    [
        ("resid_pre", 1, 0, "1100000"),  # a window of 2 reaches one position on
        ("resid_pre", 0, 0, "1111000"),  # three, then two positions
        ("v_proj", 0, 1, "0111100"),
        ("v_proj", 1, 1, "0110000"),
    ],
)
def test_reach_through_sliding_windows(site, layer, position, expected):
    assert reached(_info(2, 3, 2), site, layer, position, 7).tolist() == [c == "1" for c in expected]


# Conditions drawn at random.

PLACES = ("all", "first:3", "last:2", "last:4", "first:50%", "index:-1", "index:2")
HEADED = {"q_proj": "query", "head_z": "query", "k_proj": "kv", "v_proj": "kv"}
WINDOWED = ("source", "shuffled_window", "shuffled_sequence")


@st.composite
def values(draw, subject: Subject, site: str, op: str) -> Value:
    kind = draw(
        st.sampled_from(["source", "shuffled_window", "shuffled_sequence", "constant", "mean", "random"])
    )
    if op == "project_out":  # what is taken out of itself leaves rounding alone, which norms blow up
        kind = "constant"
    if kind == "constant":
        return constant(subject.vector(draw(st.sampled_from("abc")), subject.width(site)))
    if kind == "mean":
        return mean_of([subject.ids(f"mean {n}", 12) for n in range(3)])
    if kind == "random":
        return Value("random", draws=2)
    layer = None
    if kind == "source" and site not in LAYERLESS and draw(st.booleans()):
        layer = draw(st.integers(0, subject.depth - 1))
    return Value(kind, role=draw(st.sampled_from(["donor", SELF])), layer=layer)


@st.composite
def site_writes(draw, subject: Subject, name: str, sites: tuple[str, ...]) -> Write:
    site = draw(st.sampled_from(sites))
    op = draw(st.sampled_from(["replace", "add", "scale", "zero", "project_out"]))
    heads = None
    if site in HEADED and op != "project_out" and draw(st.booleans()):
        count = subject.info.heads if HEADED[site] == "query" else subject.info.kv_heads
        heads = Heads(HEADED[site], (draw(st.integers(0, count - 1)),))
    chosen = st.sets(st.integers(0, subject.depth - 1), min_size=1, max_size=3)
    value = draw(values(subject, site, op))
    during = draw(st.sampled_from(["prefill", "decode", "both"]))
    needs_hold = during != "prefill" and op not in ("zero", "scale") and value.kind in WINDOWED
    return make(
        name,
        site,
        subject.only(site) if site in LAYERLESS else sorted(draw(chosen)),
        op,
        value,
        "index:-1" if site == "logits" else draw(st.sampled_from(PLACES)),
        during,
        alpha=draw(st.sampled_from([0.5, -0.7])) if op in ("add", "scale") else 1.0,
        heads=heads,
        hold=draw(st.sampled_from(["last", "cycle", "mean"])) if needs_hold else None,
    )


@st.composite
def conditions(draw, subject: Subject, sites: tuple[str, ...]) -> tuple[Write, ...]:
    found = [draw(site_writes(subject, "a", sites))]
    other = draw(site_writes(subject, "b", sites))
    if other.site != found[0].site:
        found.append(other)
    return tuple(found)


def rows_of(subject: Subject, drawn, tokens: int = 6):
    for number, (writes, own, donors, heat, replay) in enumerate(drawn):
        ids = subject.ids(f"own {number}", own)
        row = subject.row(
            ids,
            *writes,
            donor=subject.ids(f"donor {number}", donors),
            tokens=tokens,
            temperature=heat,
            stream=number,
        )
        logits = any(write.site == "logits" for write in writes)
        yield replace(row, replay_last_token=replay and not logits, draw=number % 3)


def drawn_rows(data, subject: Subject, sites: tuple[str, ...], most: int):
    row = st.tuples(
        conditions(subject, sites),
        st.integers(5, 15),
        st.integers(5, 15),
        st.sampled_from([0.0, 0.9]),
        st.booleans(),
    )
    return list(rows_of(subject, data.draw(st.lists(row, min_size=1, max_size=most))))


COUNTS = (
    "asked_prefill",
    "asked_decode",
    "positions_prefill",
    "positions_decode",
    "shadowed",
    "decode_shadowed",
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_in_a_batch_is_the_row_alone(backend, data):
    subject = Subject(backend)
    rows = drawn_rows(data, subject, subject.sites(), 5)
    together, alone = subject.first(rows), np.concatenate([subject.first([row]) for row in rows])
    assert apart(together, alone) <= T2.bound
    said, apiece = subject.decode(rows), [subject.decode([row])[0] for row in rows]
    assert same_tokens(said, apiece, float(np.abs(together - alone).max())).differ == 0
    for one, other in zip(said, apiece, strict=True):
        if one.output_ids == other.output_ids:
            for name, receipt in one.receipts.items():
                for count in COUNTS:
                    assert getattr(receipt, count) == getattr(other.receipts[name], count), (name, count)


@dataclass
class Watch:
    """Plain hooks in front of and behind those of the backend: how many positions each forward changed."""

    model: torch.nn.Module
    spots: set[tuple[str, int]]
    before: dict = field(default_factory=dict)
    forwards: dict = field(default_factory=dict)

    def hook(self, spot, behind: bool):
        module, side = module_of(self.model, *spot)

        def see(hidden):
            if not behind:
                self.before[spot] = hidden.clone()
                return
            changed = (hidden != self.before[spot]).any(-1).sum()
            self.forwards.setdefault(spot, []).append((hidden.shape[1], int(changed)))

        if side == "input":
            return module.register_forward_pre_hook(lambda _, args: see(args[0]))
        return module.register_forward_hook(
            lambda _, args, out: see(out[0] if isinstance(out, tuple) else out)
        )

    def counted(self, site: str, layer: int) -> tuple[int, int]:
        """Positions changed in prefill (whole forwards, and the first single token) and in decode."""
        found = self.forwards[(site, layer)]
        single = [changed for length, changed in found if length == 1]
        return sum(changed for length, changed in found if length > 1) + single[0], sum(single[1:])


@contextmanager
def watching(backend: TorchBackend, spots, monkeypatch):
    watch = Watch(backend._loaded.model, set(spots))
    armed = Board.armed

    @contextmanager
    def between(board, *args, **kwargs):
        handles = [watch.hook(spot, behind=False) for spot in watch.spots]
        with armed(board, *args, **kwargs) as inside:
            handles += [watch.hook(spot, behind=True) for spot in watch.spots]
            try:
                yield inside
            finally:
                for handle in handles:
                    handle.remove()

    with monkeypatch.context() as patched:
        patched.setattr(Board, "armed", between)
        yield watch


PLAIN = ("resid_pre", "resid_post", "attn_out", "mlp_out", "q_proj", "k_proj", "v_proj", "head_z")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    backend = load("llama", tmp_path_factory.mktemp("llama"))
    assert backend.footprint.budget > 0  # measured by forwards of its own, which are not what is counted
    return backend


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_receipts_are_what_independent_hooks_count(llama, monkeypatch, data):
    """A write that leaves what is there is counted by its receipt and not by the hooks, so none is drawn: one
    write a row, no own state in its own place, no token that donor and target share."""
    subject = Subject(llama)
    row = drawn_rows(data, subject, PLAIN, 1)[0]
    write = row.writes[0]
    assume(not (write.value.role == SELF and write.op == "replace"))
    own, donor = row.ids, row.sources["donor"]
    row = replace(
        row,
        ids=tuple(token // 2 * 2 for token in own),
        sources={"donor": tuple(token // 2 * 2 + 1 for token in donor)},
        writes=(write,),
        replay_last_token=False,
    )
    spots = {(write.site, layer) for layer in write.layers}
    with watching(llama, spots, monkeypatch) as watch:
        receipt = subject.decode([row])[0].receipts[write.name]
    for layer in write.layers:
        assert watch.counted(write.site, layer) == (receipt.positions_prefill, receipt.positions_decode)


def test_positions_of_a_check_are_words_of_the_vocabulary():
    assert make("a", "v_proj", (0,), positions="last:3").positions == Positions.parse("last:3")


# The command.


def test_the_command_checks_a_folder_of_the_users_own(cli, tmp_path):
    make_model(tmp_path / "mine", "qwen3", seed=2)
    said = cli("check", "+model.path=mine")
    assert said.status == 0, said.out + said.err
    assert "mine: qwen3, 4 layers, float32" in said.out
    assert "violated" not in said.out
    assert "direction_recovered" in said.out  # the planted model was checked too


def broken(subject: Subject) -> Finding:
    return Finding(0.5, ("heads are mixed up",))


def test_a_violation_is_told_and_ends_with_status_4(cli, monkeypatch, tmp_path):
    make_model(tmp_path / "mine", "llama")
    monkeypatch.setattr(suite, "CHECKS", (Check("heads", "tests", T1, broken, "heads stay apart"),))
    said = cli("check", "+model.path=mine")
    assert said.status == 4
    assert "violated: heads: error 0.5, allowed 1e-05" in said.out
    assert "heads are mixed up" in said.out


def test_the_command_line_of_a_check_is_checked_all_at_once(cli):
    said = cli("check", "modle=organism", "suite=ful", "+experiment=n300_kv_only")
    assert said.status == 2
    assert "did you mean 'model'" in said.err
    assert "did you mean 'full'" in said.err
    assert "experiment" in said.err


def test_a_model_that_does_not_exist_is_told(cli):
    said = cli("check", "model=organsim")
    assert said.status == 2
    assert "did you mean 'organism'" in said.err
