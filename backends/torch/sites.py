"""Where each site of the vocabulary lies in each architecture: one table entry per architecture.

Adding an architecture whose blocks look like Llama's is one line in LAYOUTS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from backends.contract import BackendError, ModelSource

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Layout:
    """Module paths of an architecture, within a block but for `blocks` and `rotary`.

    Every site is what its module itself takes or gives, so that norms which follow come after it. q_norm,
    k_norm: per head, between q_proj or k_proj and the rotary embedding. attn_norm, mlp_norm: between attn_out
    or mlp_out and the residual stream. None where there is no such norm. fused: whether torch's fused
    attention (`sdpa`) computes what the architecture asks of it; where it does not, `eager` runs.
    """

    blocks: str = "model.layers"
    rotary: str = "model.rotary_emb"
    attention: str = "self_attn"
    mlp: str = "mlp"
    q_proj: str = "self_attn.q_proj"
    k_proj: str = "self_attn.k_proj"
    v_proj: str = "self_attn.v_proj"
    o_proj: str = "self_attn.o_proj"
    q_norm: str | None = None
    k_norm: str | None = None
    attn_norm: str | None = None
    mlp_norm: str | None = None
    fused: bool = True

    def place(self, site: str) -> tuple[str, Side]:
        """Block-relative module path of a site and the side of the module that carries it."""
        return {
            "resid_pre": ("", "input"),
            "resid_post": ("", "output"),
            "attn_out": (self.attention, "output"),
            "mlp_out": (self.mlp, "output"),
            "q_proj": (self.q_proj, "output"),
            "k_proj": (self.k_proj, "output"),
            "v_proj": (self.v_proj, "output"),
            "head_z": (self.o_proj, "input"),
        }[site]  # type: ignore[return-value]


LAYOUTS: dict[str, Layout] = {
    "llama": Layout(),
    "mistral": Layout(),
    "qwen2": Layout(),
    "qwen3": Layout(q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
    "gemma2": Layout(
        attn_norm="post_attention_layernorm",
        mlp_norm="post_feedforward_layernorm",
        fused=False,  # attention scores are capped before the softmax
    ),
}


def find(root: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a dotted path, or None."""
    module: nn.Module | None = root
    for name in path.split(".") if path else []:
        module = getattr(module, name, None)
        if not isinstance(module, nn.Module):
            return None
    return module


def layout_of(model_type: str, name: str) -> Layout:
    """The table entry of an architecture; BackendError with what was looked for when there is none."""
    if model_type not in LAYOUTS:
        known = ", ".join(sorted(LAYOUTS))
        raise BackendError(
            f"model '{name}': architecture '{model_type}' is not in the table of sites "
            f"(backends/torch/sites.py), which has: {known}. Add an entry that says where its blocks, "
            "attention, MLP and q/k/v/o projections are."
        )
    return LAYOUTS[model_type]


def check_layout(model: nn.Module, config: Any, layout: Layout, source: ModelSource) -> list[nn.Module]:
    """The blocks of a model, after checking that it is what its YAML declares and its layout says.

    config: transformers' configuration of the model. Raises BackendError listing every module that was looked
    for and not found, or has another width, and every declared number that config.json contradicts.
    """
    blocks = find(model, layout.blocks)
    if not isinstance(blocks, nn.ModuleList):
        raise BackendError(f"model '{source.name}': looked for its blocks at '{layout.blocks}', found none")
    problems: list[str] = []
    if len(blocks) != source.layers:
        problems.append(f"{layout.blocks}: {source.layers} layers declared, {len(blocks)} loaded")
    expected = {
        layout.q_proj: ("out_features", source.heads * source.head_width),
        layout.k_proj: ("out_features", source.kv_heads * source.head_width),
        layout.v_proj: ("out_features", source.kv_heads * source.head_width),
        layout.o_proj: ("in_features", source.heads * source.head_width),
        layout.attention: (None, 0),
        layout.mlp: (None, 0),
    }
    norms = (layout.q_norm, layout.k_norm, layout.attn_norm, layout.mlp_norm)
    expected.update({path: (None, 0) for path in norms if path is not None})
    for path, (attribute, width) in expected.items():
        module = find(blocks[0], path)
        if module is None:
            problems.append(f"{layout.blocks}.0.{path}: not found")
        elif attribute is not None and getattr(module, attribute) != width:
            problems.append(
                f"{layout.blocks}.0.{path}: {attribute} {getattr(module, attribute)}, {width} declared"
            )
    declared = {
        "model_type": source.architecture,
        "num_attention_heads": source.heads,
        "num_key_value_heads": source.kv_heads,
        "hidden_size": source.width,
    }
    for key, value in declared.items():
        if getattr(config, key) != value:
            problems.append(f"config.json: {key} {getattr(config, key)}, {value} declared")
    if source.context > config.max_position_embeddings:
        problems.append(
            f"config.json: max_position_embeddings {config.max_position_embeddings}, a context of "
            f"{source.context} declared"
        )
    if problems:
        raise BackendError(
            f"model '{source.name}' is not laid out as its YAML says:\n  " + "\n  ".join(problems)
        )
    return list(blocks)
