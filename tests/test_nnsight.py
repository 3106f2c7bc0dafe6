"""The torch backend against nnsight, an independent implementation of the same writes.

nnsight is no dependency (the extra `oracle`), and these tests run only where it is installed: docs/sae.md
says how. It generates with transformers' own `generate`, prompt by prompt; our rows run in one ragged batch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM

from backends.measures import Probe, ScoreRow
from backends.rows import Row, Sampling
from backends.torch.backend import TorchBackend
from backends.writes import Write
from tests.models import ALL_LAYERS, CPU, make_model, prompt, write

pytestmark = pytest.mark.oracle
STEPS = 10
GREEDY = Sampling(0.0, STEPS)
TOLERANCE = 1e-4
END = 1  # the end-of-text token of tests.models, which nnsight's runs do not stop at


@dataclass(frozen=True)
class Edit:
    """A replacement at one site, layer and forward. step: 0 is the prompt, t + 1 the t-th decode forward.
    places: positions counted from the end of the forward's output; values [positions, width]."""

    site: str
    layer: int
    step: int
    places: tuple[int, ...]
    values: torch.Tensor


def envoy(oracle, site: str, layer: int):
    block = oracle.model.layers[layer]
    return block.self_attn.v_proj if site == "v_proj" else block


def captured(oracle, ids: tuple[int, ...], site: str, layer: int) -> torch.Tensor:
    """Activations [tokens, width] of a clean run."""
    with torch.no_grad(), oracle.trace(input_ids=torch.tensor([ids])):
        place = envoy(oracle, site, layer)
        hidden = place.input if site == "resid_pre" else place.output
        found = hidden[0].clone().save()
    return found.detach()


def generated(
    oracle, prompts: list[tuple[int, ...]], edits: list[list[Edit]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens [rows, STEPS] and logits [rows, STEPS, vocabulary] of left-padded prompts."""
    longest = max(len(ids) for ids in prompts)
    pads = [longest - len(ids) for ids in prompts]
    ids = torch.tensor([(END,) * pad + each for pad, each in zip(pads, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
    # In the order in which a forward reaches them.
    order = {"resid_pre": 0, "v_proj": 1, "resid_post": 2}
    ordered = sorted(
        ((row, edit) for row, each in enumerate(edits) for edit in each),
        key=lambda pair: (pair[1].layer, order[pair[1].site]),
    )
    with oracle.trace(
        fn=oracle._module.generate,
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=STEPS,
        do_sample=False,
        pad_token_id=END,
    ) as tracer:
        logits = [].save()
        for step in tracer.iter[0:STEPS]:
            for row, edit in ordered:
                if edit.step == step:
                    place = envoy(oracle, edit.site, edit.layer)
                    hidden = place.input if edit.site == "resid_pre" else place.output
                    hidden[row, list(edit.places)] = edit.values
            logits.append(oracle.lm_head.output[:, -1].clone())
        out = tracer.result.save()
    return out[:, longest:], torch.stack(logits, 1)


def edits_of(oracle, row: Row) -> list[Edit]:
    """A row's writes, worked out again from their definition: windows are the last n positions, decode
    cycles through them."""
    found = []
    for each in row.writes:
        count = each.positions.count
        assert (each.positions.kind, each.op) == ("last", "replace")
        for layer in each.layers:
            values = captured(oracle, row.sources["donor"], each.site, layer)[-count:]
            if each.during in ("prefill", "both"):
                found.append(Edit(each.site, layer, 0, tuple(range(-count, 0)), values))
            if each.during in ("decode", "both"):
                assert each.hold == "cycle"
                found += [
                    Edit(each.site, layer, t + 1, (-1,), values[t % count][None]) for t in range(STEPS - 1)
                ]
    return found


CONDITIONS: dict[str, tuple[Write, ...]] = {
    "baseline": (),
    "v_decode": (write("v", "v_proj", (2,), positions="last:4", during="decode", hold="cycle"),),
    "v_prefill_everywhere": (write("v", "v_proj", ALL_LAYERS, positions="last:3"),),
    "v_both": (write("v", "v_proj", (1, 3), positions="last:3", during="both", hold="cycle"),),
    "resid_pre_prefill": (write("r", "resid_pre", (1,), positions="last:2"),),
    "resid_post_decode": (write("r", "resid_post", (2,), positions="last:3", during="decode", hold="cycle"),),
    "resid_and_v": (
        write("r", "resid_pre", (2,), positions="last:3", during="both", hold="cycle"),
        write("v", "v_proj", (1,), positions="last:4", during="decode", hold="cycle"),
    ),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A backend, the same model in nnsight, and every condition over three ragged pairs."""
    nnsight = pytest.importorskip("nnsight")
    folder = tmp_path_factory.mktemp("llama")
    backend = TorchBackend(make_model(folder), CPU)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None  # every run has all its steps
    oracle = nnsight.NNsight(model)
    rng = random.Random(21)
    pairs = [(prompt(rng, rng.randrange(5, 24)), prompt(rng, rng.randrange(5, 24))) for _ in range(3)]
    rows = [
        Row(target, GREEDY, writes, {"donor": donor})
        for target, donor in pairs
        for writes in CONDITIONS.values()
    ]
    return backend, oracle, rows


def until_end(tokens: list[int]) -> tuple[int, ...]:
    return tuple(tokens[: tokens.index(END) + 1] if END in tokens else tokens)


def check(backend: TorchBackend, rows: list[Row], tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Our rows, in one batch, against an oracle's tokens and logits."""
    decoded = backend.decode(rows)
    expected = [until_end(each) for each in tokens.tolist()]
    assert [each.output_ids for each in decoded] == expected
    last = [("logits", ALL_LAYERS[-1])]
    prompts = backend.capture(rows, last, "last")
    forced = backend.score(
        [ScoreRow(row, continuation=ids) for row, ids in zip(rows, expected, strict=True)],
        [Probe("logprob", "logprob")],
    )
    for index, ids in enumerate(expected):
        first = torch.from_numpy(prompts[index].activations[last[0]])
        assert (first - logits[index, 0]).abs().max() < TOLERANCE
        shown = logits[index, : len(ids)].double()
        two = shown.topk(2, dim=-1).values
        assert decoded[index].min_margin == pytest.approx(float((two[:, 0] - two[:, 1]).min()), abs=TOLERANCE)
        total = float(shown.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())
        assert forced[index].values["logprob"] == pytest.approx(total, abs=TOLERANCE)


def test_rows_of_a_ragged_batch_equal_nnsight_prompt_by_prompt(both):
    backend, oracle, rows = both
    runs = [generated(oracle, [row.ids], [edits_of(oracle, row)]) for row in rows]
    check(backend, rows, torch.cat([tokens for tokens, _ in runs]), torch.cat([logits for _, logits in runs]))
    outputs = {tuple(tokens[0].tolist()) for tokens, _ in runs[: len(CONDITIONS)]}
    assert len(outputs) > 3  # the writes are seen in the text


def test_rows_of_a_ragged_batch_equal_nnsight_in_one_left_padded_batch(both):
    """Ids and mask are given as tensors, so that padding and mask are not left to nnsight."""
    backend, oracle, rows = both
    tokens, logits = generated(oracle, [row.ids for row in rows], [edits_of(oracle, row) for row in rows])
    check(backend, rows, tokens, logits)
