"""The weights of a model as questions about it need them: the unembedding, single matrices, and the model
with a direction taken out of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from backends.contract import BackendError, Weight
from backends.torch.loading import Loaded
from backends.torch.sites import find, parameter_at


@torch.no_grad()
def unembed(loaded: Loaded, hidden: torch.Tensor) -> torch.Tensor:
    """What the model would return for these residual states: final norm, unembedding and, where it has one,
    the cap on its logits. [..., width] -> [..., vocabulary].

    Of the last layer's resid_post it is the model's logits, bit for bit in the same shape; of other layers it
    is the logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens").
    """
    norm, head = find(loaded.model, loaded.layout.final_norm), find(loaded.model, loaded.layout.head)
    assert norm is not None and head is not None
    like = next(norm.parameters())
    logits: torch.Tensor = head(norm(hidden.to(like.device, like.dtype)))
    cap = getattr(loaded.model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def weight(loaded: Loaded, name: Weight, layer: int = 0) -> np.ndarray:
    """A matrix of the model in float32, as x @ W.

    o_proj: [heads * head width, width]; o_proj_bias: [width], zeros where there is none; embed: [vocabulary,
    width], the site `embed` of each token, so that a scaled embedding is scaled; unembed: [vocabulary,
    width], without the final norm. layer counts for o_proj and its bias alone. Raises BackendError for a
    layer that does not exist.
    """
    if not 0 <= layer < loaded.info.layers:
        raise BackendError(f"weight {name}: expected a layer from 0 to {loaded.info.layers - 1}, got {layer}")
    if name == "embed":
        embed = find(loaded.model, loaded.layout.embed)
        assert embed is not None
        found = embed(torch.arange(loaded.info.vocabulary, device=next(embed.parameters()).device))
    elif name == "unembed":
        found = _parameter(loaded.model, loaded.layout.head)
    elif name == "o_proj":
        stored = _parameter(loaded.blocks[layer], loaded.layout.o_proj)
        found = stored if _output_last(find(loaded.blocks[layer], loaded.layout.o_proj)) else stored.T
    else:
        bias = getattr(find(loaded.blocks[layer], loaded.layout.o_proj), "bias", None)
        found = torch.zeros(loaded.info.width) if bias is None else bias
    return np.array(found.float().cpu().numpy())


def _parameter(root: nn.Module, path: str) -> nn.Parameter:
    found = parameter_at(root, path)
    assert found is not None, f"{path} was checked at load"
    return found


def _output_last(module: nn.Module | None) -> bool:
    """Whether a matrix is stored as [input, output], as Conv1D does, and not the other way round."""
    return hasattr(module, "nf")


@dataclass(frozen=True)
class Removal:
    """A direction [width] that is out of a model's weights. unit: the direction at length 1, float32; before:
    the parameters, which of their dimensions is the residual stream's, and on the CPU what they were."""

    direction: np.ndarray
    unit: torch.Tensor
    before: tuple[tuple[nn.Parameter, int, torch.Tensor], ...]

    @torch.no_grad()
    def take_out(self) -> None:
        """Take the direction out of the parameters, which are what they were before."""
        for parameter, dimension, _ in self.before:
            parameter.copy_(_without(parameter, self.unit.to(parameter.device), dimension))

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the parameters, bit for bit, what they were before."""
        for parameter, _, before in self.before:
            parameter.copy_(before)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """The model as it was before, for as long as this lasts."""
        self.put_back()
        try:
            yield
        finally:
            self.take_out()


def check_removable(loaded: Loaded, direction: np.ndarray) -> torch.Tensor:
    """The direction at length 1, float32 [width]. Raises BackendError where it cannot be taken out of a
    model's weights, as `orthogonalised` does."""
    unit = _unit(loaded, direction)
    _check_same_as_project_out(loaded)
    return unit


@contextmanager
def orthogonalised(loaded: Loaded, direction: np.ndarray) -> Iterator[Removal]:
    """The model with `direction` [width] taken out of everything that it adds to the residual stream: W - W r
    r^T / |r|^2 for token and position embeddings, attention outputs and MLP outputs of every layer and
    expert, and their biases (Arditi et al. 2024, section 4.1).

    On the way out all weights are bit for bit what they were; copies of them are kept in the CPU's memory
    until then. Raises BackendError for a direction that is zero, not finite or of another width, and where
    that is not the same as project_out at every residual site: tied embeddings, whose unembedding would
    change too, and norms between a module and the residual stream.
    """
    unit = check_removable(loaded, direction)
    before = [(each, dim, each.detach().to("cpu", copy=True)) for each, dim in _writers(loaded)]
    removal = Removal(direction, unit, tuple(before))
    try:
        removal.take_out()
        yield removal
    finally:
        removal.put_back()


def _unit(loaded: Loaded, direction: np.ndarray) -> torch.Tensor:
    width = loaded.info.width
    if direction.shape != (width,):
        raise BackendError(f"orthogonalised: expected a direction of shape ({width},), got {direction.shape}")
    vector = torch.from_numpy(np.asarray(direction, dtype=np.float64))
    norm = vector.norm()
    if not bool(torch.isfinite(norm)) or float(norm) == 0:
        raise BackendError("orthogonalised: expected a finite direction other than zero")
    unit: torch.Tensor = (vector / norm).float()
    return unit


def _check_same_as_project_out(loaded: Loaded) -> None:
    model, layout = loaded.model, loaded.layout
    problems = []
    if _parameter(model, layout.embed) is _parameter(model, layout.head):
        problems.append("its embeddings are tied: the unembedding would lose the direction too")
    norms = [path for path in (layout.attn_norm, layout.mlp_norm) if path is not None]
    if norms:
        problems.append(
            f"norms stand between its modules and the residual stream ({', '.join(norms)}): their weights "
            "would put the direction back"
        )
    if problems:
        raise BackendError(
            f"model '{loaded.info.name}': taking a direction out of its weights is not the same as taking it "
            f"out of its residual stream: {'; '.join(problems)}. Use project_out at embed, resid_mid and "
            "resid_post"
        )


def _writers(loaded: Loaded) -> Iterator[tuple[nn.Parameter, int]]:
    """Every parameter that is added to the residual stream, and which of its dimensions is the stream's."""
    layout = loaded.layout
    for path in (layout.embed, layout.learned_positions):
        if path is not None:
            yield _parameter(loaded.model, path), -1
    for block in loaded.blocks:
        for path in (layout.o_proj, layout.down):
            module = find(block, path)
            # Of a matrix [output, input], or of all experts' [expert, output, input], the last but one.
            yield _parameter(block, path), -1 if _output_last(module) else -2
            bias = getattr(module, "bias", None)
            if bias is not None:
                yield bias, -1


def _without(parameter: torch.Tensor, unit: torch.Tensor, dimension: int) -> torch.Tensor:
    """A parameter without its part along a unit vector in one of its dimensions, computed in float32."""
    rows = parameter.float().movedim(dimension, -1)
    rows = rows - (rows @ unit)[..., None] * unit
    return rows.movedim(-1, dimension).to(parameter.dtype)
