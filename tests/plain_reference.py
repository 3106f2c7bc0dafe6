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


def body(model):
    """The model without its unembedding."""
    kind = model.config.model_type
    return {"gpt2": lambda: model.transformer, "gpt_neox": lambda: model.gpt_neox}.get(
        kind, lambda: model.model
    )()


def blocks(model):
    return body(model).h if model.config.model_type == "gpt2" else body(model).layers


def head_width(model) -> int:
    config = model.config
    stated = getattr(config, "head_dim", None)
    return config.hidden_size // config.num_attention_heads if stated is None else stated


def module_of(model, site: str, layer: int):
    """The module that carries a site, and on which side."""
    block, kind = blocks(model)[layer], model.config.model_type
    attention = {"gpt2": "attn", "gpt_neox": "attention"}.get(kind, "self_attn")
    attention = getattr(block, attention)
    if site in ("q_proj", "k_proj", "v_proj"):
        fused = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}
        return getattr(attention, fused.get(kind, site)), "output"
    if site == "head_z":
        return getattr(attention, {"gpt2": "c_proj", "gpt_neox": "dense"}.get(kind, "o_proj")), "input"
    if site == "embed":
        name = {"gpt2": "wte", "gpt_neox": "embed_in"}.get(kind, "embed_tokens")
        return getattr(body(model), name), "output"
    return {
        "resid_pre": (block, "input"),
        "resid_post": (block, "output"),
        "attn_out": (attention, "output"),
        "mlp_out": (block.mlp, "output"),
    }[site]


def columns_of(model, site: str):
    """Which columns of its module's output a site is, one by one; None where it is all of them."""
    kind = model.config.model_type
    if site not in ("q_proj", "k_proj", "v_proj") or kind not in ("gpt2", "gpt_neox", "phi3"):
        return None
    part, width, heads = "qkv".index(site[0]), head_width(model), model.config.num_attention_heads
    if kind == "gpt_neox":  # each head: its query, its key, its value
        return [(3 * head + part) * width + i for head in range(heads) for i in range(width)]
    counts = [heads, heads, heads]
    if kind == "phi3":
        counts[1:] = [model.config.num_key_value_heads] * 2
    first = sum(counts[:part]) * width
    return list(range(first, first + counts[part] * width))


@contextmanager
def hooked(model, edits):
    """edits: list of (site, layer, function on a [tokens, width] tensor). Applied in order."""
    handles = []
    for site, layer, function in edits:
        module, side = module_of(model, site, layer)
        columns = columns_of(model, site)

        def changed(hidden, function=function, columns=columns):
            hidden = hidden[0].clone()
            if columns is None:
                return function(hidden)[None]
            hidden[:, columns] = function(hidden[:, columns])
            return hidden[None]

        if side == "input":

            def before(module, args, changed=changed):
                return (changed(args[0]), *args[1:])

            handles.append(module.register_forward_pre_hook(before))
        else:

            def after(module, args, output, changed=changed):
                if isinstance(output, tuple):
                    return (changed(output[0]), *output[1:])
                return changed(output)

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


def move(model, keys, old, new, layer):
    """Un-rotate keys [1, heads, n, width] from their old positions, rotate them to the new ones."""
    kinds = [model.config.layer_types[layer]] if model.config.model_type == "gemma3_text" else []

    def turn(k, positions, sign):
        cos, sin = body(model).rotary_emb(k, torch.tensor([positions]), *kinds)
        rotated, rest = k[..., : cos.shape[-1]], k[..., cos.shape[-1] :]
        half = cos.shape[-1] // 2
        swapped = torch.cat([-rotated[..., half:], rotated[..., :half]], -1)
        return torch.cat([rotated * cos[:, None] + sign * swapped * sin[:, None], rest], -1)

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
    width = head_width(model)
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
                        key = move(model, key, [source], [target], layer)
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
