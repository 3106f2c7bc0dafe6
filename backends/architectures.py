"""What of an architecture can be known without loading it: which sites it lacks, and whether its keys can be
moved. `backends/torch/sites.py` has the module paths of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """The facts of an architecture that decide what can be written.

    name: `model_type` of config.json. post_norms: norms follow attention and MLP, between attn_out or mlp_out
    and the residual stream. parallel: the key of config.json that, where it is true, says that attention and
    MLP read one residual stream, so that there is nothing between them; a config.json without the key means
    true. learned_positions: positions are an embedding added to that of the tokens, not a rotation of queries
    and keys.
    """

    name: str
    post_norms: bool = False
    parallel: str | None = None
    learned_positions: bool = False

    def lacks(self, site: str, *, in_parallel: bool) -> str | None:
        """The sentence that says that, and why, the architecture has no such site, and which is nearest; None
        where it has it. in_parallel: whether the model's config.json says what `parallel` stands for."""
        named = f"architecture '{self.name}' has no site {site}"
        if site == "resid_mid" and in_parallel:
            return (
                f"{named}: its attention and MLP read the same residual stream ({self.parallel}), so that "
                "nothing is between them; the nearest are resid_pre, which both read, and attn_out"
            )
        if site in ("attn_out_normed", "mlp_out_normed") and not self.post_norms:
            before = site.removesuffix("_normed")
            return (
                f"{named}: no norm follows its {'attention' if before == 'attn_out' else 'MLP'}; the nearest "
                f"is {before}, which is added to the residual stream as it is"
            )
        return None

    @property
    def fixes_keys(self) -> str | None:
        """The sentence that says why a key cannot be moved to another position, and what to do; None where it
        can."""
        if not self.learned_positions:
            return None
        return (
            "its positions are learned, not rotary, so that a key cannot be moved to another position; use "
            "rope: keep"
        )


_TABLE = (
    Architecture("llama"),
    Architecture("mistral"),
    Architecture("mixtral"),
    Architecture("qwen2"),
    Architecture("qwen3"),
    Architecture("gemma2", post_norms=True),
    Architecture("gemma3_text", post_norms=True),
    Architecture("phi3"),
    Architecture("gpt2", learned_positions=True),
    Architecture("gpt_neox", parallel="use_parallel_residual"),
)
ARCHITECTURES: dict[str, Architecture] = {each.name: each for each in _TABLE}
