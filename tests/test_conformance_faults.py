"""Seeded faults: each, put into one function of the backend, makes the checks fail that are there to find it,
and without it they pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

import backends.torch.backend as torch_backend
import backends.torch.begin as begin
import backends.torch.capture as capture
import backends.torch.edges as edges
import backends.torch.edits as edits
import backends.torch.effects as effects
import backends.torch.forward as forward
import backends.torch.generate as generate
import backends.torch.kv as kv
import backends.torch.sampling as sampling
import backends.torch.shared as shared
import backends.torch.touches as touches
import backends.torch.weights as weights
from backends.conformance.subject import Subject
from backends.conformance.suite import CHECKS, one
from backends.torch.backend import TorchBackend
from backends.torch.hooks import Board
from tests.models import CPU, make_model

BY_NAME = {check.name: check for check in CHECKS}


@dataclass(frozen=True)
class Fault:
    """A fault. put: puts it in, by pytest's monkeypatch; found_by: the checks that must be violated; family:
    the architecture to try it on."""

    put: Callable[[pytest.MonkeyPatch], None]
    found_by: tuple[str, ...]
    family: str = "llama"


def only_where(chosen: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Writes reach the batch rows chosen alone."""

    def put(patch: pytest.MonkeyPatch) -> None:
        apply = touches.Touch.apply

        def some(self, hidden):
            part = self.where(chosen(self.rows))
            if len(part.rows):
                apply(part, hidden)

        patch.setattr(touches.Touch, "apply", some)

    return put


def next_layer(patch: pytest.MonkeyPatch) -> None:
    hook = Board._hook

    def shifted(self, spot):
        site, layer = spot
        if site in ("embed", "logits"):
            return hook(self, spot)
        place = self.loaded.layout.place(site, self.loaded.info)
        path, blocks = place.path, self.loaded.blocks
        moved = replace_blocks(self, [*blocks[1:], blocks[0]])
        assert path is not None and layer < len(blocks)
        return hook(moved, spot)

    patch.setattr(Board, "_hook", shifted)


def replace_blocks(board: Board, blocks: list) -> Board:
    """A board that sets its hooks in other blocks and shares all else with the board given."""
    moved = Board(replace(board.loaded, blocks=blocks))
    moved.touches, moved.taps, moved.edges = board.touches, board.taps, board.edges
    for name in ("_pass", "_on_input", "_on_output", "_on_stream", "_on_logits"):
        setattr(moved, name, getattr(board, name))
    return moved


def strided_heads(patch: pytest.MonkeyPatch) -> None:
    columns = effects._columns

    def strided(loaded, write, device):
        mask = columns(loaded, write, device)
        return None if mask is None else mask.view(-1, loaded.info.head_width).T.flatten()

    patch.setattr(effects, "_columns", strided)


def no_window(patch: pytest.MonkeyPatch) -> None:
    mask = forward._mask
    patch.setattr(forward, "_mask", lambda loaded, at, window: mask(loaded, at, None))


def padding_seen(patch: pytest.MonkeyPatch) -> None:
    geometry = forward.prompt_geometry

    def blind(pads, length, past=0):
        at = geometry(pads, length, past)
        causal = geometry(torch.zeros_like(pads), length, past).allowed
        return replace(at, allowed=at.allowed | causal)

    for module in (forward, shared):
        patch.setattr(module, "prompt_geometry", blind)


def silent_decode(patch: pytest.MonkeyPatch) -> None:
    for module in (generate, begin):
        patch.setattr(module, "decode_touches", lambda *args, **kwargs: {})


def late_decode(patch: pytest.MonkeyPatch) -> None:
    """Decode writes that begin one step late."""
    write = generate.decode_touches

    def late(found, step, weight, place=0):
        return write(found, step - 1, weight, place) if step > 0 else {}

    patch.setattr(generate, "decode_touches", late)


def no_rotation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kv, "_turn", lambda loaded, layer, keys, shift: keys)


def fed_twice(patch: pytest.MonkeyPatch) -> None:
    def doubled(plan):
        def twice(*args):
            found = plan(*args)
            again = found.structural is None and not found.row.replay_last_token
            return replace(found, prefill_ids=found.row.ids, slots=found.slots + 1) if again else found

        return twice

    for name in ("plan_for", "plan_row"):
        patch.setattr(torch_backend, name, doubled(getattr(torch_backend, name)))


def input_as_output(patch: pytest.MonkeyPatch) -> None:
    made = Board._on_output

    def bypass(self, spot, columns):
        hook = made(self, spot, columns)

        def wrong(module, args, output):
            hook(module, args, output)
            if spot[0] != "resid_post":
                return output
            return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

        return wrong

    patch.setattr(Board, "_on_output", bypass)


def alpha_forgotten(patch: pytest.MonkeyPatch) -> None:
    operate = touches.operate

    def whole(op, old, value, alpha, unit="direction_norm"):
        return operate(op, old, value, 1.0 if op == "add" else alpha, unit)

    patch.setattr(touches, "operate", whole)


def length_not_divided(patch: pytest.MonkeyPatch) -> None:
    """project_out without the direction's norm."""

    def along(rows, direction):
        return (rows * direction).sum(-1, keepdim=True) * direction

    patch.setattr(touches, "_along", along)


def edges_uncut(patch: pytest.MonkeyPatch) -> None:
    apply = edges.Cut.apply

    def nothing(self, allowed):
        apply(self, allowed)
        return allowed

    patch.setattr(edges.Cut, "apply", nothing)


def keys_without_values(patch: pytest.MonkeyPatch) -> None:
    """The values of cache writes stay the target's."""
    apply = kv._apply

    def keys_alone(*args, **kwargs):
        pair = next(a for a in args if isinstance(a, list) and len(a) == 2 and torch.is_tensor(a[0]))
        before = pair[1].clone()
        apply(*args, **kwargs)
        pair[1].copy_(before)

    patch.setattr(kv, "_apply", keys_alone)


def first_row_of_window(patch: pytest.MonkeyPatch) -> None:
    """Every hold takes the first row of the donor's window."""
    values = edits.DecodeEdit.values

    def first(self, t):
        table = None if self.table is None else self.table[:, :, :1].expand_as(self.table).contiguous()
        return values(replace(self, table=table), t)

    patch.setattr(edits.DecodeEdit, "values", first)


def noise_of_next_step(patch: pytest.MonkeyPatch) -> None:
    keys_at = sampling.keys_at
    patch.setattr(sampling, "keys_at", lambda high, low, step: keys_at(high, low, step + 1))


def no_truncation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sampling, "truncate", lambda scores, top_k, top_p, hot: scores)


def uncapped_lens(patch: pytest.MonkeyPatch) -> None:
    def bare(loaded, hidden):
        head = loaded.model.get_output_embeddings()
        return head(loaded.model.model.norm(hidden.to(loaded.model.dtype)))

    for module in (weights, torch_backend):
        if hasattr(module, "unembed"):
            patch.setattr(module, "unembed", bare)


def clean_source(patch: pytest.MonkeyPatch) -> None:
    """`under` is forgotten: sources are captured clean."""
    import backends.rowplan as rowplan
    from backends.rows import SourceRun

    patch.setattr(rowplan, "source_run", lambda row, ids, value: SourceRun(ids))


def reversed_order(patch: pytest.MonkeyPatch) -> None:
    """Writes on one tensor act in the opposite of their order."""
    for module in (capture, begin):
        planned = module.prompt_touches

        def backwards(*args, planned=planned, **kwargs):
            return {spot: found[::-1] for spot, found in planned(*args, **kwargs).items()}

        patch.setattr(module, "prompt_touches", backwards)


def own_place_of_source(patch: pytest.MonkeyPatch) -> None:
    """Positions of the source are forgotten: it is read where the target is written."""
    import backends.rowplan as rowplan

    planned = rowplan._plan_write

    def plan(row, write, slots):
        return planned(row, replace(write, source_positions=None), slots)

    patch.setattr(rowplan, "_plan_write", plan)


def own_layer_of_source(patch: pytest.MonkeyPatch) -> None:
    """The layer that a source is read at is forgotten: it is read where it is written."""
    import backends.rowplan as rowplan

    patch.setattr(rowplan.WritePlan, "spot", lambda self, layer: (self.write.tensor, layer))


def noise_at_positions(patch: pytest.MonkeyPatch) -> None:
    """Noise in place of a vector is another one at each position."""
    keys = edits.keys_at
    patch.setattr(edits, "keys_at", lambda high, low, at: keys(high, low, torch.arange(len(at))))


def noise_of_any_length(patch: pytest.MonkeyPatch) -> None:
    """Noise in place of a vector is not as long as that."""
    scaled = touches.scaled_noise
    patch.setattr(touches, "scaled_noise", lambda value, keys: 2 * scaled(value, keys))


FAULTS = {
    "a row of the batch is skipped": Fault(only_where(lambda rows: rows != 4), ("batched", "receipts")),
    "only row 0 is written": Fault(only_where(lambda rows: rows == 0), ("batched", "receipts")),
    "hooks sit one layer off": Fault(next_layer, ("head_sum", "resid_chain", "write_third_position")),
    "heads are strided": Fault(strided_heads, ("head_columns", "head_map")),
    "heads are strided in fused modules": Fault(strided_heads, ("head_columns", "head_map"), "gpt_neox"),
    "the window is forgotten": Fault(no_window, ("write_third_position", "cut_edge"), "mistral"),
    "padding is seen": Fault(padding_seen, ("padded", "batched")),
    "decode is not written": Fault(silent_decode, ("write_in_decode", "decode_is_prefill", "receipts")),
    "decode is written late": Fault(late_decode, ("write_in_decode", "decode_is_prefill", "holds")),
    "keys are not rotated": Fault(no_rotation, ("rerotated_behind", "rerotated_tail")),
    "the last token is fed twice": Fault(fed_twice, ("last_token_once", "recomputed", "first_token_treated")),
    "a hook returns its input": Fault(input_as_output, ("capture_everything", "self_patch")),
    "alpha is forgotten": Fault(alpha_forgotten, ("alpha_zero", "formulas", "add_and_back")),
    "a direction is not normed": Fault(length_not_divided, ("projected", "project_turned", "orthogonalised")),
    "edges are not cut": Fault(edges_uncut, ("cut_edge", "cut_edge_in_decode", "rerotated_behind")),
    "cached values are not written": Fault(keys_without_values, ("donor_cache", "write_cache")),
    "every hold takes the first row": Fault(first_row_of_window, ("holds",)),
    "the noise is of another step": Fault(noise_of_next_step, ("reference_noise", "later_noise")),
    "truncation is forgotten": Fault(no_truncation, ("reference_noise",)),
    "the lens is not capped": Fault(uncapped_lens, ("lens_last_layer",), "gemma2"),
    "under is forgotten": Fault(clean_source, ("under",)),
    "writes act in the opposite order": Fault(reversed_order, ("ranked",)),
    "the place in the source is forgotten": Fault(own_place_of_source, ("other_positions",)),
    "the layer of the source is forgotten": Fault(own_layer_of_source, ("other_layer", "back_patch")),
    "a drawn vector is many": Fault(noise_at_positions, ("vector_noise",)),
    "a drawn vector is too long": Fault(noise_of_any_length, ("vector_noise",)),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    made: dict[str, Subject] = {}

    def give(family: str) -> Subject:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = Subject(TorchBackend(make_model(folder, family, seed=5), CPU))
        return made[family]

    return give


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_the_checks_that_are_there_for_it(name, loaded, monkeypatch, tmp_path):
    fault = FAULTS[name]
    checks = [BY_NAME[check] for check in fault.found_by]
    clean = [one(loaded(fault.family), check) for check in checks]
    assert [each.check.name for each in clean if each.verdict != "ok"] == []
    source = make_model(tmp_path, fault.family, seed=5)
    faulty = Subject(TorchBackend(source, CPU))  # its own, so that no source captured before is taken
    fault.put(monkeypatch)
    found = {check.name: one(faulty, check) for check in checks}
    assert [name for name, each in found.items() if each.verdict != "violated"] == []
    faults_of_its_own = ("TypeError", "AttributeError", "NameError")
    assert [each.sentence for each in found.values() if each.sentence.startswith(faults_of_its_own)] == []
