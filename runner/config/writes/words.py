"""A write in sentences, told from what it resolves to and never from what it is called."""

from __future__ import annotations

from collections.abc import Sequence

from backends.positions import Positions
from backends.writes import LAYERLESS, SELF, Constant, Features, Heads, PromptSet, Value, Write
from runner.config.stages.known import PENDING
from runner.config.writes.values import NamedSet

_OUTPUTS = {
    "embed": "the token embedding",
    "resid_pre": "the residual stream before the layer",
    "resid_mid": "the residual stream between attention and MLP",
    "resid_post": "the residual stream after the layer",
    "attn_out": "the attention block's output",
    "attn_out_normed": "the attention block's output after its post-norm",
    "mlp_out": "the MLP block's output",
    "mlp_out_normed": "the MLP block's output after its post-norm",
    "q_proj": "the q_proj output",
    "k_proj": "the k_proj output",
    "v_proj": "the v_proj output",
    "head_z": "the heads' output before o_proj",
    "logits": "the row of logits",
}
_PARTS = {"both": "keys and values", "keys": "keys", "values": "values"}
_MATCHED = "Gaussian noise (mean and spread of the row that it replaces, per position and head"
_NEW = "at the new token"
_THAT = "that "  # begins the words of a value that is the written site's own, elsewhere
_HASH_SHOWN = 12  # digits of a content hash
_FEATURES_SHOWN = 6


def write_in_words(subject: str, write: Write, depth: int, *, replayed: bool) -> list[str]:
    """Sentences that say what a write does, each beginning with `subject`. replayed: whether the last prompt
    token is fed a second time."""
    heads = "" if write.heads is None else f" ({_heads(write.heads)} only)"
    where = "" if write.site in LAYERLESS else f"{layers_in_words(write.layers, depth)}, "
    sentences = []
    if write.site == "kv_cache":
        where = layers_in_words(write.layers, depth)
        sentences.append(f"{subject}: {_kv(write, where, heads, replayed)}")
    else:
        if write.during in ("prefill", "both"):
            sentences.append(f"{subject}: {where}in prefill, {_prefill(write, heads)}")
        if write.during in ("decode", "both"):
            sentences.append(f"{subject}: {where}in decode, {_decode(write, heads)}")
    if write.value.under is not None:
        inner = write.value.under.writes
        told = [
            sentence.removesuffix(".")
            for one in inner
            for sentence in write_in_words(one.site, one, depth, replayed=False)
        ]
        sentences.append(f"{subject} reads its source from a run of that prompt with {'; '.join(told)}.")
    if write.min_positions > 1:
        one = "" if write.during == "prefill" else "; a decode step has one"
        sentences.append(f"{subject} acts only on outputs of at least {write.min_positions} positions{one}.")
    return sentences


def layers_in_words(layers: Sequence[int], depth: int) -> str:
    """`in all layers`, `at layer 7`, `at layers 3 to 5`, `at layers 1, 4 and 7`."""
    if len(layers) == depth and depth > 1:
        return "in all layers"
    if len(layers) == 1:
        return f"at layer {layers[0]}"
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"at layers {layers[0]} to {layers[-1]}"
    return f"at layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def _prefill(write: Write, heads: str) -> str:
    where = _positions("the prompt's", write.positions)
    if write.site == "attention_edge":
        assert write.keys is not None
        keys = _positions("its", write.keys)
        return f"the attention{heads} of {where} to {keys} is cut."
    value = _value(write)
    if write.features is not None:
        return _set(write, write.features, f"at {where}", value)
    return _changed(write, f"{_OUTPUTS[write.site]}{heads}", f"at {where}", value)


def _decode(write: Write, heads: str) -> str:
    if write.site == "attention_edge":
        assert write.keys is not None
        keys = _positions("the prompt's", write.keys)
        return f"the attention{heads} of the new token to {keys} is cut."
    value = _held(write)
    if write.hold == "sliding":
        at = "at " + _positions("the context's", write.positions)
        if write.features is not None:
            return f"at every step, {_set(write, write.features, at, value)}"
        return f"at every step, {_changed(write, f'{_OUTPUTS[write.site]}{heads}', at, value)}"
    if write.features is not None:
        return _set(write, write.features, "at the new token", value)
    return _changed(write, f"{_OUTPUTS[write.site]}{heads}", _NEW, value)


def _changed(write: Write, output: str, at: str, value: str) -> str:
    """What becomes of the old rows: those of `output`, `at` some positions."""
    old = f"the new token's {output.removeprefix('the ')}" if at == _NEW else f"{output} {at}"
    if write.op == "zero":
        return f"{old} is set to zero."
    if write.op == "scale":
        return f"{old} is multiplied by {write.alpha:g}."
    if write.op == "project_out":
        return f"{old} loses its component along {value}{_alpha(write)}."
    if write.op == "add" and value.startswith(_THAT):
        return f"{output} {value.removeprefix(_THAT)} is added to that {at}{_alpha(write)}."
    if write.op == "add":
        return f"{value} is added to {old}{_alpha(write)}."
    return f"{old} is replaced by {value}."


def _set(write: Write, features: Features, at: str, value: str) -> str:
    """What becomes of features of an SAE."""
    indices = features.indices
    named = ", ".join(map(str, indices[:_FEATURES_SHOWN]))
    which = f"feature {named}" if len(indices) == 1 else f"the features {named}"
    if len(indices) > _FEATURES_SHOWN:
        which = f"{len(indices)} features ({named}, ...)"
    are, own = ("is", "its value") if len(indices) == 1 else ("are", "their values")
    if value.startswith(_THAT):
        value = f"{own} {value.removeprefix(_THAT)}"
    done = {"zero": "set to zero", "scale": f"multiplied by {write.alpha:g}"}.get(write.op, f"set to {value}")
    rest = (
        "the SAE's reconstruction takes the place of what is there"
        if write.round_trip
        else "what the SAE does not reconstruct is kept"
    )
    sae = f"the SAE {features.fingerprint[:_HASH_SHOWN]} of {features.site}"
    return f"{at}, {which} of {sae} {are} {done}; {rest}."


def _held(write: Write) -> str:
    """The value that a new token gets."""
    if not write.value.has_source or write.hold is None:
        return _value(write)
    read = write.read_at
    window = _window(write.value, read)
    row = f"{_THAT}at {window}{_spread(write)}"
    if write.hold == "cycle":
        rows = "n"
        if read.kind in ("first", "last") and read.percent is None:
            rows = str(read.count)
        elif _is_one(read):
            rows = "1"
        row = f"row t mod {rows} of {window}{'' if rows != 'n' else ' (n rows)'}"
    elif write.hold == "last":
        row = f"the last row of {window}"
    elif write.hold == "mean":
        row = f"the mean over {window}"
    elif write.hold == "lockstep":
        row = f"{_THAT}at {_whose(write.value.role)} t-th generated token{_layer(write.value)}"
    return _orthogonal_to(row, write.value) if write.value.kind == "orthogonal" else row


def _value(write: Write) -> str:
    """The value where every position has its own, as `that at` a source's positions."""
    value = write.value
    if value.kind == "none":
        return ""
    if value.kind == "random" and value.constant is not None:
        return f"a Gaussian vector (of the norm of {_vector(value.constant)}{_draws(value)})"
    if value.kind == "random":
        return f"{_MATCHED}{_draws(value)})"
    if value.kind == "mean":
        assert value.prompts is not None
        return f"the mean over {_prompts(value.prompts)} at {_positions('their', write.positions)}"
    if value.kind == "number":
        return f"{value.number:g}"
    if value.kind == "constant":
        assert value.constant is not None
        return _vector(value.constant)
    if value.kind == "orthogonal":
        if value.constant is not None:
            return _orthogonal_to(_vector(value.constant), value)
        return _orthogonal_to(f"{_THAT}at {_window(value, write.read_at)}{_spread(write)}", value)
    return f"{_THAT}at {_window(value, write.read_at)}{_spread(write)}"


def _spread(write: Write) -> str:
    """That one row of the source stands at several positions."""
    one = write.source_positions is not None and _is_one(write.source_positions)
    return " (one row for all)" if one and not _is_one(write.positions) else ""


def _is_one(positions: Positions) -> bool:
    """Whether they are one position in every prompt."""
    return bool(positions.end) or positions.kind == "index" or positions.count == 1


def _orthogonal_to(row: str, value: Value) -> str:
    noise = "Gaussian noise" if value.constant is None else "a Gaussian vector"
    return f"{noise} (orthogonal to {row}, and of its norm{_draws(value)})"


def _draws(value: Value) -> str:
    return "" if value.draws == 1 else f", {value.draws} different draws over the repeats"


def _vector(constant: Constant) -> str:
    name = constant.name
    whose = f"of {name}" if name.startswith("artefact ") else f"in '{name}'"
    return f"the vector {whose} ({_content(constant)})"


def _content(constant: Constant) -> str:
    """What names the content of a vector."""
    if constant.digest.startswith(PENDING):
        return "to be extracted"
    return f"sha256 {constant.digest[:_HASH_SHOWN]}"


def _prompts(prompts: PromptSet) -> str:
    """A set by the bank, groups and split that it is taken from, or by its size once it is read."""
    if not isinstance(prompts, NamedSet):
        return f"{len(prompts.prompts)} prompts"
    choice = prompts.choice
    parts = []
    if choice.groups != "all":
        noun = "group" if len(choice.groups) == 1 else "groups"
        parts.append(f"{noun} {', '.join(choice.groups)}")
    if choice.split != "all":
        parts.append(f"split {choice.split}")
    which = f" ({'; '.join(parts)})" if parts else ""
    return f"the prompts of bank '{choice.bank}'{which}"


def _window(value: Value, positions: Positions) -> str:
    """Rows of a source, to be put after `that at` or `row t of`."""
    window = _positions(_whose(value.role), positions) + _layer(value)
    if value.kind == "shuffled_window":
        return f"{window}, rows permuted"
    if value.kind == "shuffled_sequence":
        return f"{window}, drawn after permuting its whole sequence"
    return window


def _layer(value: Value) -> str:
    return "" if value.layer is None else f" in layer {value.layer}"


def _kv(write: Write, where: str, heads: str, replayed: bool) -> str:
    part, whose = _PARTS[write.part], _whose(write.value.role)
    when = "before the last prompt token is fed" + (" again" if replayed else "")
    slots = "" if write.positions.kind == "all" else f" at {_positions('the', write.positions, 'slot')}"
    sink = ", the first slot being kept" if write.keep_sink else ""
    if write.op == "zero":
        return f"the cached {part}{heads} of the prompt are set to zero {where}{slots}{sink}, {when}."
    if write.value.kind == "random":
        verb = "is added to" if write.op == "add" else "replaces"
        where += f"{slots}{sink}{_alpha(write)}"
        noise = f"{_MATCHED}{_draws(write.value)})"
        return f"{noise} {verb} the cached {part}{heads} of the prompt {where}, {when}."
    value = f"{whose} KV cache ({part}){heads}"
    if write.value.kind == "shuffled_window":
        value += ", the slots that are written permuted,"
    if write.value.kind == "shuffled_sequence":
        value += ", its slots permuted,"
    if write.align == "whole":
        return f"{value} takes the place of the prompt's entire cache {where}, {when}."
    if write.align == "concat":
        moved = write.rope == "rerotate"
        keys = "re-rotated to their new slots" if moved else "keeping their rotary positions"
        return f"{value} is put before the prompt's own cache {where}, the prompt's keys {keys}, {when}."
    verb = "is added to" if write.op == "add" else "replaces"
    whom = "what is there" if write.value.role == SELF else "the prompt's"
    met = "span onto span" if write.positions.span else f"{write.align}-aligned"
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


def _positions(owner: str, positions: Positions, noun: str = "position") -> str:
    """`the donor's last 16 positions`, `all positions of the prompt`. owner: whose they are, as a word that
    goes before a noun (`the prompt's`, `its`, `the`)."""
    if positions.kind == "all":
        if not owner.removesuffix(" own").endswith("'s"):
            return f"all {owner} {noun}s"
        whom = owner.removesuffix(" own").removesuffix("'s")
        return f"all {noun}s of {whom}{' itself' if owner.endswith(' own') else ''}"
    if positions.kind == "index":
        end = {0: "first", -1: "last"}.get(positions.count)
        return f"{owner} {noun} {positions.count}" if end is None else f"{owner} {end} {noun}"
    if positions.kind == "role":
        part = f"{positions.end} {noun}" if positions.end else f"{noun}s"
        return f"the {part} of {owner} span '{positions.role}'"
    if positions.kind == "token":
        return f"{owner} last '{positions.name}' ({noun} of its last token)"
    if positions.kind == "post_instruction":
        return f"{owner} {noun}s after the instruction"
    if positions.percent is not None:
        return f"the {positions.kind} {positions.percent:g}% of {owner} {noun}s"
    if positions.count == 1:
        return f"{owner} {positions.kind} {noun}"
    return f"{owner} {positions.kind} {positions.count} {noun}s"


def _alpha(write: Write) -> str:
    """How much of a value counts."""
    if write.op == "add" and write.unit == "resid_norm":
        return f", scaled to {write.alpha:g} times the norm of what is there"
    if write.op == "add" and write.unit == "raw":
        return f", scaled to the norm {write.alpha:g}"
    return "" if write.alpha == 1 else f", times {write.alpha:g}"
