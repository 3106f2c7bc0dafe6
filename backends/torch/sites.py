"""Where each site of the vocabulary lies in each architecture: one table entry per architecture.

Adding an architecture whose blocks look like Llama's is one line in the table (docs/architectures.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import nn

from backends.architectures import ARCHITECTURES, Architecture
from backends.contract import BackendError, ModelSource
from backends.writes import SITES, Site

Side = Literal["input", "output"]


class Shape(Protocol):
    """The head counts of a model: ModelSource and ModelInfo have them."""

    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...


@dataclass(frozen=True)
class Columns:
    """The part of a module's last dimension that a site is: of each of `groups` equal groups the columns
    from `start` to `stop`, side by side."""

    groups: int
    start: int
    stop: int

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The site's values [..., width of the site]."""
        return self._in(whole).flatten(-2)

    def into(self, whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """A copy of the whole with the site's values replaced; all other columns bit for bit as they were."""
        out = whole.clone()
        self._in(out).copy_(part.view(*part.shape[:-1], self.groups, -1))
        return out

    def _in(self, whole: torch.Tensor) -> torch.Tensor:
        """A view of the site's values [..., groups, columns of each]."""
        return whole.view(*whole.shape[:-1], self.groups, -1)[..., self.start : self.stop]


@dataclass(frozen=True)
class Projections:
    """Where queries, keys and values come from: three modules, or one whose columns are all three.

    order: `apart` (three modules), `stacked` (one: all queries, then all keys, then all values) or `per_head`
    (one: for each head its query, its key, its value).
    """

    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    order: Literal["apart", "stacked", "per_head"] = "apart"

    @staticmethod
    def one(path: str, order: Literal["stacked", "per_head"]) -> Projections:
        """All three from the module at `path`."""
        return Projections(path, path, path, order)

    def columns(self, part: int, shape: Shape) -> Columns | None:
        """The columns of queries (part 0), keys (1) or values (2) in their module; None for all of them."""
        widths = [n * shape.head_width for n in (shape.heads, shape.kv_heads, shape.kv_heads)]
        if self.order == "stacked":
            start = sum(widths[:part])
            return Columns(1, start, start + widths[part])
        if self.order == "per_head":
            return Columns(shape.heads, part * shape.head_width, (part + 1) * shape.head_width)
        return None

    def widths(self, shape: Shape) -> dict[str, int]:
        """Path -> how wide the output of the module there must be."""
        query, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        if self.order == "apart":
            return {self.q: query, self.k: keys, self.v: keys}
        return {self.q: query + 2 * keys}


@dataclass(frozen=True)
class Place:
    """Where a site is: the path of its module, in a block or in the whole model; the side of the module that
    carries it; the columns that it is of that side, or None for all."""

    path: str
    side: Side
    within: Literal["block", "model"] = "block"
    columns: Columns | None = None


@dataclass(frozen=True)
class Layout:
    """Module paths of an architecture: of the whole model the first seven, within a block the others.

    architecture: `model_type` of config.json. learned_positions: their embedding, added to that of the
    tokens; rotary: the rotary embedding. Both None where there is no such thing. q_norm, k_norm: per head,
    between q_proj or k_proj and the rotary embedding. attn_norm, mlp_norm: post-norms, between attn_out or
    mlp_out and the residual stream. mid_norm: the norm whose input is the residual stream between attention
    and MLP, None where nothing is between them. down: what writes the MLP's result, a module or the parameter
    of all experts. fused: whether torch's fused attention (`sdpa`) computes what the architecture asks of it;
    where it does not, `eager` runs.
    """

    architecture: str
    blocks: str = "model.layers"
    embed: str = "model.embed_tokens"
    learned_positions: str | None = None
    rotary: str | None = "model.rotary_emb"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    projections: Projections = Projections()
    o_proj: str = "self_attn.o_proj"
    mlp: str = "mlp"
    down: str = "mlp.down_proj"
    q_norm: str | None = None
    k_norm: str | None = None
    attn_norm: str | None = None
    mid_norm: str | None = "post_attention_layernorm"
    mlp_norm: str | None = None
    fused: bool = True

    @property
    def facts(self) -> Architecture:
        """What of the architecture can be known without loading it."""
        return ARCHITECTURES[self.architecture]

    def configured(self, config: Any) -> Layout:
        """The layout of one model. config: transformers' configuration of it."""
        if self.facts.parallel is not None and getattr(config, self.facts.parallel):
            return replace(self, mid_norm=None)
        return self

    def lacks(self, site: str) -> str | None:
        """The sentence that says that, and why, the architecture has no such site, and which is nearest; None
        where it has it."""
        return self.facts.lacks(site, in_parallel=self.mid_norm is None)

    def sites(self) -> tuple[Site, ...]:
        """All sites of the vocabulary that the architecture has."""
        return tuple(site for site in SITES if self.lacks(site) is None)  # type: ignore[misc]

    def place(self, site: str, shape: Shape) -> Place:
        """Where a site is that the architecture has and that a module carries. Raises KeyError otherwise."""
        path = self._path(site)
        if path is None:
            raise KeyError(site)
        if site in ("embed", "logits"):
            return Place(path, "output", "model")
        if site in ("q_proj", "k_proj", "v_proj"):
            return Place(path, "output", columns=self.projections.columns("qkv".index(site[0]), shape))
        return Place(path, "input" if site in ("resid_pre", "resid_mid", "head_z") else "output")

    def _path(self, site: str) -> str | None:
        return {
            "embed": self.embed,
            "resid_pre": "",
            "q_proj": self.projections.q,
            "k_proj": self.projections.k,
            "v_proj": self.projections.v,
            "head_z": self.o_proj,
            "attn_out": self.attention,
            "attn_out_normed": self.attn_norm,
            "resid_mid": self.mid_norm,
            "mlp_out": self.mlp,
            "mlp_out_normed": self.mlp_norm,
            "resid_post": "",
            "logits": "",
        }.get(site)


_TABLE = (
    Layout("llama"),
    Layout("mistral"),
    Layout("mixtral", down="mlp.experts.down_proj"),
    Layout("qwen2"),
    Layout("qwen3", q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
    Layout(
        "gemma2",
        attn_norm="post_attention_layernorm",
        mid_norm="pre_feedforward_layernorm",
        mlp_norm="post_feedforward_layernorm",
        fused=False,  # attention scores are capped before the softmax
    ),
    Layout(
        "gemma3_text",
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
        attn_norm="post_attention_layernorm",
        mid_norm="pre_feedforward_layernorm",
        mlp_norm="post_feedforward_layernorm",
    ),
    Layout("phi3", projections=Projections.one("self_attn.qkv_proj", "stacked")),
    Layout(
        "gpt2",
        blocks="transformer.h",
        embed="transformer.wte",
        learned_positions="transformer.wpe",
        rotary=None,
        final_norm="transformer.ln_f",
        attention="attn",
        projections=Projections.one("attn.c_attn", "stacked"),
        o_proj="attn.c_proj",
        down="mlp.c_proj",
        mid_norm="ln_2",
    ),
    Layout(
        "gpt_neox",
        blocks="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        rotary="gpt_neox.rotary_emb",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        projections=Projections.one("attention.query_key_value", "per_head"),
        o_proj="attention.dense",
        down="mlp.dense_4h_to_h",
    ),
)
LAYOUTS: dict[str, Layout] = {layout.architecture: layout for layout in _TABLE}
# Keys of config.json that make a model another thing than one that reads from left to right.
_NOT_CAUSAL = ("use_bidirectional_attention", "add_cross_attention", "is_encoder_decoder")


def find(root: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a dotted path, or None."""
    module: nn.Module | None = root
    for name in path.split(".") if path else []:
        module = getattr(module, name, None)
        if not isinstance(module, nn.Module):
            return None
    return module


def parameter_at(root: nn.Module, path: str) -> nn.Parameter | None:
    """The parameter at a dotted path, or the weight of the module there; None where there is neither."""
    before, _, name = path.rpartition(".")
    found = getattr(find(root, before), name, None)
    weight = getattr(found, "weight", None) if isinstance(found, nn.Module) else found
    return weight if isinstance(weight, nn.Parameter) else None


def layout_of(model_type: str, name: str) -> Layout:
    """The table entry of an architecture; BackendError with what was looked for when there is none."""
    if model_type not in LAYOUTS:
        longer = [known for known in LAYOUTS if known.startswith(model_type)]
        near = longer or difflib.get_close_matches(model_type, LAYOUTS, 1)
        hint = f" (the nearest: {near[0]})" if near else ""
        raise BackendError(
            f"model '{name}': architecture '{model_type}' is not in the table of sites "
            f"(backends/torch/sites.py), which has: {', '.join(sorted(LAYOUTS))}{hint}. Looked for: "
            "`model_type` of its config.json. Add an entry that says where its blocks, embedding, final "
            "norm, attention, MLP, q/k/v/o projections and norms are: docs/architectures.md."
        )
    return LAYOUTS[model_type]


def check_layout(model: nn.Module, config: Any, layout: Layout, source: ModelSource) -> list[nn.Module]:
    """The blocks of a model, after checking that it is what its YAML declares and its layout says.

    config: transformers' configuration of the model. Raises BackendError listing every module that was looked
    for and not found, in the first and the last block, or has another width, and every declared number that
    config.json contradicts.
    """
    problems = [
        f"{path}: not found"
        for path in (layout.embed, layout.learned_positions, layout.rotary, layout.final_norm, layout.head)
        if path is not None and find(model, path) is None
    ]
    blocks = find(model, layout.blocks)
    if not isinstance(blocks, nn.ModuleList):
        problems.append(f"{layout.blocks}: looked for its blocks there, found none")
    else:
        if len(blocks) != source.layers:
            problems.append(f"{layout.blocks}: {source.layers} layers declared, {len(blocks)} loaded")
        for index in sorted({0, len(blocks) - 1}):
            at = f"{layout.blocks}.{index}"
            problems += [f"{at}.{problem}" for problem in _block_problems(blocks[index], layout, source)]
    problems += [f"config.json: {problem}" for problem in _config_problems(config, layout, source)]
    if problems:
        raise BackendError(
            f"model '{source.name}' is not laid out as its YAML and the entry '{layout.architecture}' of "
            "backends/torch/sites.py say:\n  " + "\n  ".join(problems)
        )
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def _block_problems(block: nn.Module, layout: Layout, source: ModelSource) -> Iterator[str]:
    outputs: dict[str, int | None] = dict(layout.projections.widths(source))
    norms = (layout.q_norm, layout.k_norm, layout.attn_norm, layout.mid_norm, layout.mlp_norm)
    paths = (layout.attention, layout.mlp, *(path for path in norms if path is not None))
    for path, width in (outputs | dict.fromkeys(paths)).items():
        module = find(block, path)
        if module is None:
            yield f"{path}: not found"
        elif width is not None and features(module)[1] != width:
            yield f"{path}: out_features {features(module)[1]}, {width} declared"
    o_proj, width = find(block, layout.o_proj), source.heads * source.head_width
    if o_proj is None:
        yield f"{layout.o_proj}: not found"
    elif features(o_proj)[0] != width:
        yield f"{layout.o_proj}: in_features {features(o_proj)[0]}, {width} declared"
    if parameter_at(block, layout.down) is None:
        yield f"{layout.down}: not found"


def features(module: nn.Module) -> tuple[int | None, int | None]:
    """How wide the input and the output of a linear module are, or None. GPT-2's Conv1D calls them nx, nf."""
    names = ("nx", "nf") if hasattr(module, "nf") else ("in_features", "out_features")
    before, after = (getattr(module, name, None) for name in names)
    return before, after


def _config_problems(config: Any, layout: Layout, source: ModelSource) -> Iterator[str]:
    named = getattr(config, "attribute_map", {})  # our words for its keys -> the keys themselves
    kv_heads = getattr(config, "num_key_value_heads", None)
    head_dim = getattr(config, "head_dim", None)
    if head_dim is None:
        head_dim = config.hidden_size // config.num_attention_heads
    stated = {
        "model_type": (config.model_type, source.architecture),
        "num_attention_heads": (config.num_attention_heads, source.heads),
        "num_key_value_heads": (
            config.num_attention_heads if kv_heads is None else kv_heads,
            source.kv_heads,
        ),
        "head_dim": (head_dim, source.head_width),
        "hidden_size": (config.hidden_size, source.width),
    }
    for key, (found, declared) in stated.items():
        if found != declared:
            yield f"{named.get(key, key)} {found}, {declared} declared"
    if layout.projections.order == "per_head" and source.heads != source.kv_heads:
        yield (
            f"{source.heads} heads and {source.kv_heads} KV heads, but queries, keys and values of a head "
            "lie together"
        )
    if source.context > config.max_position_embeddings:
        key = named.get("max_position_embeddings", "max_position_embeddings")
        yield f"{key} {config.max_position_embeddings}, a context of {source.context} declared"
    for key in _NOT_CAUSAL:
        if getattr(config, key, False):
            yield f"{key} true: only models that read from left to right, from tokens alone, can be run"
