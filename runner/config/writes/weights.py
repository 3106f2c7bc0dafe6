"""A direction that a condition takes out of the model's weights: the words of `weights`, resolved."""

from __future__ import annotations

import numpy as np

from backends.writes import Constant
from runner.config.errors import listed
from runner.config.layers import LayerError
from runner.config.spec import Spec, WeightsSpec, WriteSpec
from runner.config.stages.artefact_files import ArtefactError, digest_of
from runner.config.stages.artefact_values import artefact_constant, find_artefact
from runner.config.writes.values import WordError, layer_named
from runner.config.writes.vectors import GroupedConstant, VectorError, constant_of, defined

FORMS = ("artefact:NAME", "file:PATH")


class WeightsError(WordError):
    """A direction that no weights can lose. field: the key of `weights` that is wrong."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


def resolve_weights(body: WeightsSpec, spec: Spec) -> Constant:
    """The direction [width], float32, that the weights lose; of an artefact by groups one for each.

    Raises WeightsError for another word, a file or an artefact without such a vector, one of several layers
    or positions of which none is chosen, and a vector that is zero.
    """
    kind, _, name = body.orthogonalise.partition(":")
    if kind == "artefact":
        return _of_artefact(name, body, spec)
    if kind != "file" or not name:
        raise WeightsError("orthogonalise", f"expected one of {listed(FORMS)}, got '{body.orthogonalise}'")
    if body.from_positions is not None:
        raise WeightsError("from_positions", "a file has no positions: nothing reads it; remove it")
    return _of_file(name, body, spec)


def weights_for(changed: Constant | None, group: str) -> Constant | None:
    """The direction for an item of a group. Raises NoVector where there is none."""
    if changed is None:
        return None
    return changed.of(group) if isinstance(changed, GroupedConstant) else defined(changed)


def _of_artefact(name: str, body: WeightsSpec, spec: Spec) -> Constant:
    """As a write of it to the residual stream takes it."""
    write = WriteSpec(
        site="resid_pre",
        layers="all" if body.from_layer is None else body.from_layer,
        op="project_out",
        value=body.orthogonalise,
        from_layer=body.from_layer,
        from_positions=body.from_positions,
    )
    try:
        artefact = find_artefact(name, spec)
        if "layer" in artefact.dims and body.from_layer is None:
            raise WeightsError(
                "from_layer",
                f"missing: weights lose one direction, and artefact '{artefact.name}' has one for each of "
                f"the layers {listed(map(str, artefact.layers))}",
            )
        return artefact_constant(name, write, spec)
    except (ArtefactError, LayerError) as error:
        raise WeightsError("orthogonalise", str(error)) from error


def _of_file(path: str, body: WeightsSpec, spec: Spec) -> Constant:
    width, layers = spec.model.width, spec.model.layers
    try:
        found = constant_of(path, ((width,), (layers, width)))
        layer = None if body.from_layer is None else layer_named(body.from_layer, spec)
    except VectorError as error:
        raise WeightsError("orthogonalise", str(error)) from error
    except LayerError as error:
        raise WeightsError("from_layer", str(error)) from error
    where = "" if layer is None else f" at layer {layer}"
    if found.array.ndim == 1 and layer is not None:
        raise WeightsError(
            "from_layer", f"'{path}' has one vector for all layers: nothing reads it; remove it"
        )
    if found.array.ndim == 2:
        if layer is None:
            raise WeightsError(
                "from_layer",
                f"missing: weights lose one direction, and '{path}' has one for each of {layers} layers",
            )
        vector = np.ascontiguousarray(found.array[layer])
        found = Constant(digest_of(vector), vector, f"{path}{where}")
    if not found.array.any():
        raise WeightsError("orthogonalise", f"the vector in '{path}' is zero{where}, which is no direction")
    return found
