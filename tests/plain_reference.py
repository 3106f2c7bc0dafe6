"""The same interventions written as plainly as possible: one prompt at a time, ordinary hooks,
transformers' own cache.

It shares no code with the backend, only the types that describe a row, and serves as its oracle.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from transformers import DynamicCache

from backends.rows import Row
from backends.writes import Write


def module_of(model, site: str, layer: int):
    block = model.model.layers[layer]
    return {
        "resid_pre": (block, "input"),
        "resid_post": (block, "output"),
        "attn_out": (block.self_attn, "output"),
        "mlp_out": (block.mlp, "output"),
        "q_proj": (block.self_attn.q_proj, "output"),
        "k_proj": (block.self_attn.k_proj, "output"),
        "v_proj": (block.self_attn.v_proj, "output"),
        "head_z": (block.self_attn.o_proj, "input"),
    }[site]


@contextmanager
def hooked(model, edits):
    """edits: list of (site, layer, function on a [tokens, width] tensor). Applied in order."""
    handles = []
    for site, layer, function in edits:
        module, side = module_of(model, site, layer)
        if side == "input":

            def before(module, args, function=function):
                return (function(args[0][0].clone())[None], *args[1:])

            handles.append(module.register_forward_pre_hook(before))
        else:

            def after(module, args, output, function=function):
                if isinstance(output, tuple):
                    return (function(output[0][0].clone())[None], *output[1:])
                return function(output[0].clone())[None]

            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def capture(model, ids, site, layer):
    seen = []

    def keep(hidden):
        seen.append(hidden.clone())
        return hidden

    with hooked(model, [(site, layer, keep)]), torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    return seen[0]


def clean_cache(model, ids):
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


def source_of(row: Row, write: Write):
    return row.ids if write.value.role == "self" else row.sources[write.value.role]


def change(write: Write, old, value, width):
    columns = torch.ones(old.shape[-1], dtype=torch.bool)
    if write.heads is not None:
        columns[:] = False
        for head in write.heads.indices:
            columns[head * width : (head + 1) * width] = True
    new = old.clone()
    if write.op == "zero":
        new[..., columns] = 0
    elif write.op == "add":
        new[..., columns] += write.alpha * value[..., columns]
    else:
        new[..., columns] = value[..., columns]
    return new


def move(model, keys, old, new):
    """Un-rotate keys [1, heads, n, width] from their old positions, rotate them to the new ones."""

    def turn(k, positions, sign):
        cos, sin = model.model.rotary_emb(k, torch.tensor([positions]))
        half = k.shape[-1] // 2
        swapped = torch.cat([-k[..., half:], k[..., :half]], -1)
        return k * cos[:, None] + sign * swapped * sin[:, None]

    return turn(turn(keys, old, -1.0), new, 1.0)


def pairs_of(write: Write, target_count: int, source_count: int):
    wanted = set(write.positions.resolve(target_count, {}))
    count = min(target_count, source_count)
    if write.align == "right":
        pairs = [(target_count - k, source_count - k) for k in range(count, 0, -1)]
    else:
        pairs = [(k, k) for k in range(count)]
    pairs = [(t, s) for t, s in pairs if t in wanted]
    if write.keep_sink:
        pairs = [(t, s) for t, s in pairs if t != 0 and s != 0]
    return pairs


@torch.no_grad()
def generate(model, row: Row, eos: tuple[int, ...]) -> list[int]:
    """Greedy tokens of one row."""
    assert row.sampling.temperature == 0
    width = model.config.head_dim
    prefill_ids = list(row.ids) if row.replay_last_token else list(row.ids[:-1])

    def prompt_edits(offset, length):
        edits = []
        for write in sorted(row.writes, key=lambda w: w.order):
            if write.site == "kv_cache" or write.during == "decode" or length < write.min_positions:
                continue
            for layer in write.layers:
                target = list(write.positions.resolve(len(row.ids), {}))
                values = None
                if write.op != "zero":
                    source = source_of(row, write)
                    values = capture(model, source, write.site, layer)
                    drawn = list(write.positions.resolve(len(source), {}))
                    count = min(len(target), len(drawn))
                    if write.positions.kind == "first":
                        target, drawn = target[:count], drawn[:count]
                    else:
                        target, drawn = target[len(target) - count :], drawn[len(drawn) - count :]
                    values = values[drawn]

                def function(hidden, write=write, target=target, values=values):
                    for index, position in enumerate(target):
                        if offset <= position < offset + length:
                            value = None if values is None else values[index]
                            hidden[position - offset] = change(write, hidden[position - offset], value, width)
                    return hidden

                edits.append((write.site, layer, function))
        return edits

    def decode_edits(step):
        edits = []
        for write in sorted(row.writes, key=lambda w: w.order):
            if write.site == "kv_cache" or write.during == "prefill" or write.min_positions > 1:
                continue
            for layer in write.layers:
                value = None
                if write.op != "zero":
                    source = source_of(row, write)
                    window = capture(model, source, write.site, layer)[
                        list(write.positions.resolve(len(source), {}))
                    ]
                    value = {
                        "cycle": window[step % len(window)],
                        "last": window[-1],
                        "mean": window.mean(0),
                    }[write.hold]

                def function(hidden, write=write, value=value):
                    hidden[0] = change(write, hidden[0], value, width)
                    return hidden

                edits.append((write.site, layer, function))
        return edits

    layers = [(None, None)] * model.config.num_hidden_layers
    if prefill_ids:
        cache = DynamicCache()
        with hooked(model, prompt_edits(0, len(prefill_ids))):
            model(torch.tensor([prefill_ids]), past_key_values=cache, use_cache=True)
        layers = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    slots = len(prefill_ids)
    for write in sorted((w for w in row.writes if w.site == "kv_cache"), key=lambda w: w.order):
        donor = source_of(row, write)
        available = len(donor) if row.replay_last_token else len(donor) - 1
        kept = clean_cache(model, donor)
        if write.align == "whole":
            slots = available
            layers = [(k[:, :, :available].clone(), v[:, :, :available].clone()) for k, v in kept]
            continue
        pairs = pairs_of(write, slots, available)
        for layer in write.layers:
            keys, values = layers[layer]
            donor_keys, donor_values = kept[layer]
            for target, source in pairs:
                if write.part in ("keys", "both"):
                    key = donor_keys[:, :, source : source + 1]
                    if write.rope == "rerotate":
                        key = move(model, key, [source], [target])
                    keys[:, :, target : target + 1] = key
                if write.part in ("values", "both"):
                    values[:, :, target] = donor_values[:, :, source]
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        if keys is not None:
            cache.update(keys, values, index)
    out: list[int] = []
    token, position, step = row.ids[-1], slots, 0
    while len(out) < row.sampling.max_new_tokens:
        if out or row.replay_last_token:
            edits = decode_edits(step)
            step += 1
        else:
            edits = prompt_edits(len(row.ids) - 1, 1)
        with hooked(model, edits):
            logits = model(
                torch.tensor([[token]]),
                position_ids=torch.tensor([[position]]),
                past_key_values=cache,
                use_cache=True,
            ).logits
        token = int(logits[0, -1].argmax())
        position += 1
        out.append(token)
        if token in eos:
            break
    return out
