"""A condition in sentences, told from what it resolves to and never from what it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from backends.positions import Positions
from backends.rows import Sampling
from backends.writes import SELF, Heads, Write


class Describable(Protocol):
    """What of a condition is told. Its name and label are not."""

    @property
    def prompt(self) -> tuple[str, ...]: ...
    @property
    def writes(self) -> tuple[Write, ...]: ...
    @property
    def expects(self) -> Mapping[str, str]: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def replay_last_token(self) -> bool: ...
    @property
    def recompute(self) -> bool: ...


_PROMPTS = {
    ("target",): "The prompt is the target.",
    ("donor",): "The prompt is the donor; the target is not seen.",
    ("donor", "target"): "The prompt is the donor's text followed by the target's.",
}
_OUTPUTS = {
    "resid_pre": "the residual stream before the layer",
    "resid_post": "the residual stream after the layer",
    "attn_out": "the attention block's output",
    "mlp_out": "the MLP block's output",
    "q_proj": "the q_proj output",
    "k_proj": "the k_proj output",
    "v_proj": "the v_proj output",
    "head_z": "the heads' output before o_proj",
}
_PARTS = {"both": "keys and values", "keys": "keys", "values": "values"}
_EXPECTED = {
    "noop": "{write} is expected to fire and to change nothing.",
    "inert": "{write} is expected never to act.",
}


def describe(condition: Describable, depth: int, usual: Sampling) -> tuple[str, ...]:
    """Sentences that say what a condition does, in a model of `depth` layers.

    usual: the sampling of the experiment; the condition's own is told where it differs. Neither the
    condition's name and label nor the names of its writes have a part in it: a write is called by its site.
    """
    sentences = [_PROMPTS[condition.prompt]]
    if not condition.writes:
        sentences.append("Nothing is written into the model.")
    numbered = len({write.site for write in condition.writes}) < len(condition.writes)
    for index, write in enumerate(condition.writes, start=1):
        subject = f"Write {index} ({write.site})" if numbered else write.site
        sentences += _write(subject, write, depth, condition.replay_last_token)
        expected = condition.expects.get(write.name)
        if expected is not None:
            sentences.append(_EXPECTED[expected].format(write=subject))
    if condition.replay_last_token:
        sentences.append(
            "The last prompt token is fed a second time, after the whole prompt, at the next position."
        )
    if condition.recompute:
        sentences.append("No cache is kept: every new token is computed from the whole context.")
    if condition.sampling != usual:
        sentences.append(f"Sampling differs from the experiment's: {_sampling(condition.sampling, usual)}.")
    return tuple(sentences)


def layers_in_words(layers: Sequence[int], depth: int) -> str:
    """`in all layers`, `at layer 7`, `at layers 3 to 5`, `at layers 1, 4 and 7`."""
    if len(layers) == depth and depth > 1:
        return "in all layers"
    if len(layers) == 1:
        return f"at layer {layers[0]}"
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"at layers {layers[0]} to {layers[-1]}"
    return f"at layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def _sampling(own: Sampling, usual: Sampling) -> str:
    parts = []
    if own.temperature != usual.temperature:
        parts.append("greedy" if own.temperature == 0 else f"temperature {own.temperature:g}")
    if own.top_k != usual.top_k:
        parts.append(f"top-k {own.top_k}" if own.top_k > 0 else "no top-k")
    if own.top_p != usual.top_p:
        parts.append(f"top-p {own.top_p:g}" if own.top_p < 1 else "no top-p")
    if own.max_new_tokens != usual.max_new_tokens:
        parts.append(f"up to {own.max_new_tokens} new tokens")
    return ", ".join(parts)


def _write(subject: str, write: Write, depth: int, replayed: bool) -> list[str]:
    where = layers_in_words(write.layers, depth)
    heads = "" if write.heads is None else f" ({_heads(write.heads)} only)"
    if write.site == "kv_cache":
        sentences = [f"{subject}: {_kv(write, where, heads, replayed)}"]
    else:
        sentences = []
        if write.during in ("prefill", "both"):
            sentences.append(f"{subject}: {where}, in prefill, {_prefill(write, heads)}")
        if write.during in ("decode", "both"):
            sentences.append(f"{subject}: {where}, in decode, {_decode(write, heads)}")
    if write.min_positions > 1:
        one = "" if write.during == "prefill" else "; a decode step has one"
        sentences.append(f"{subject} acts only on outputs of at least {write.min_positions} positions{one}.")
    return sentences


def _prefill(write: Write, heads: str) -> str:
    old = f"{_OUTPUTS[write.site]}{heads} at the prompt's {_positions(write.positions)}"
    if write.op == "zero":
        return f"{old} is set to zero."
    if write.op == "add":
        return f"that of {_value(write)} is added to {old}{_alpha(write)}."
    value = _value(write)
    return f"{old} is replaced by {value if write.value.kind == 'random' else f'that of {value}'}."


def _decode(write: Write, heads: str) -> str:
    old = f"the new token's {_OUTPUTS[write.site].removeprefix('the ')}{heads}"
    if write.hold == "sliding":
        old = f"at every step, {_OUTPUTS[write.site]}{heads} at the context's {_positions(write.positions)}"
    if write.op == "zero":
        return f"{old} is set to zero."
    value = _held(write)
    return (
        f"{value} is added to {old}{_alpha(write)}."
        if write.op == "add"
        else f"{old} is replaced by {value}."
    )


def _held(write: Write) -> str:
    window = _value(write)
    if write.value.kind == "random":
        return window
    if write.hold == "cycle":
        rows = "n"
        if write.positions.kind in ("first", "last") and not _share(write):
            rows = str(write.positions.count)
        elif write.positions.end:
            rows = "1"
        return f"row t mod {rows} of {window}{'' if rows != 'n' else ' (n rows)'}"
    if write.hold == "last":
        return f"the last row of {window}"
    if write.hold == "mean":
        return f"the mean over {window}"
    if write.hold == "lockstep":
        return f"that of {_whose(write.value.role)} t-th generated token"
    return f"that of {window}"


def _share(write: Write) -> bool:
    return write.positions.percent is not None


def _value(write: Write) -> str:
    if write.value.kind == "random":
        draws = "" if write.value.draws == 1 else f", {write.value.draws} different draws over the repeats"
        return f"Gaussian noise (mean and spread of the row that it replaces, per position and head{draws})"
    window = f"{_whose(write.value.role)} {_positions(write.positions)}"
    if write.value.kind == "shuffled_window":
        return f"{window}, rows permuted"
    if write.value.kind == "shuffled_sequence":
        return f"{window}, drawn after permuting its whole sequence"
    return window


def _kv(write: Write, where: str, heads: str, replayed: bool) -> str:
    part, whose = _PARTS[write.part], _whose(write.value.role)
    when = "before the last prompt token is fed" + (" again" if replayed else "")
    slots = "" if write.positions.kind == "all" else f" at the {_positions(write.positions, 'slot')}"
    sink = ", the first slot being kept" if write.keep_sink else ""
    if write.op == "zero":
        return f"the cached {part}{heads} of the prompt are set to zero {where}{slots}{sink}, {when}."
    if write.value.kind == "random":
        noise = "Gaussian noise (mean and spread of the row that it replaces, per position and head)"
        verb = "is added to" if write.op == "add" else "replaces"
        where += f"{slots}{sink}{_alpha(write)}"
        return f"{noise} {verb} the cached {part}{heads} of the prompt {where}, {when}."
    value = f"{whose} KV cache ({part}){heads}"
    if write.value.kind == "shuffled_window":
        value += ", the slots that are written permuted,"
    if write.value.kind == "shuffled_sequence":
        value += ", its slots permuted,"
    if write.align == "whole":
        return f"{value} takes the place of the prompt's entire cache {where}, {when}."
    if write.align == "concat":
        return f"{value} is put before the prompt's own cache {where}, {when}."
    verb = "is added to" if write.op == "add" else "replaces"
    whom = "what is there" if write.value.role == SELF else "the prompt's"
    met = "span onto span" if write.positions.kind == "role" else f"{write.align}-aligned"
    how = f"{met}{_rope(write)}{_alpha(write)}"
    return f"{value} {verb} {whom} {where}{slots}{sink}, {how}, {when}."


def _rope(write: Write) -> str:
    if write.part == "values":
        return ""
    if write.rope == "rerotate":
        return ", keys re-rotated to their slot"
    return ", keys keeping the rotary positions of their own prompt"


def _whose(role: str) -> str:
    if role == SELF:
        return "the prompt's own"
    if role == "donor":
        return "the donor's"
    if role == "other_donor":
        return "another item's donor's"
    return f"the {role} donor's"


def _heads(heads: Heads) -> str:
    kind = "query" if heads.of == "query" else "key-value"
    noun = "head" if len(heads.indices) == 1 else "heads"
    return f"{kind} {noun} {', '.join(map(str, heads.indices))}"


def _positions(positions: Positions, noun: str = "position") -> str:
    """`last 16 positions`, to be put after `the donor's` or `the`."""
    if positions.kind == "all":
        return f"{noun}s, all of them"
    if positions.kind == "index":
        return f"{noun} {positions.count}"
    if positions.kind == "role":
        part = f"{positions.end} {noun}" if positions.end else f"{noun}s"
        return f"{part} of the span '{positions.role}'"
    if positions.percent is not None:
        return f"{positions.kind} {positions.percent:g}% of {noun}s"
    if positions.count == 1:
        return f"{positions.kind} {noun}"
    return f"{positions.kind} {positions.count} {noun}s"


def _alpha(write: Write) -> str:
    return "" if write.alpha == 1 else f", times {write.alpha:g}"
