"""Layers that a choice bounds or takes, where integers may be read on another scale than the model's."""

from __future__ import annotations

from collections.abc import Iterator

from analyses.choices.criteria import as_numbers
from runner.config.errors import listed
from runner.config.spec import Spec
from runner.config.stages.spec import CriterionSpec, ExtractStageSpec, SelectStageSpec

Fault = tuple[tuple[str | int, ...], str]
_BOUNDS = ("above", "at_least", "below", "at_most")
_SHOWN = 3  # values that a sentence names


def scale_faults(body: SelectStageSpec, source: object, spec: Spec) -> Iterator[Fault]:
    """What a choice says of layers that cannot be compared, or would be read on another scale later on.

    source, spec: the stage that it is made from. With reference_depth integers in a configuration are not the
    layers of the model, but those of an artefact's table and of a depth such as 80% are.
    """
    if isinstance(source, ExtractStageSpec):
        if spec.reference_depth is not None and "layer" in body.over:
            yield (
                ("over",),
                f"an artefact's layers are the model's own, and reference_depth: {spec.reference_depth} has "
                "what uses the choice read them on another scale; leave reference_depth out",
            )
        return
    for index, one in enumerate(body.where):
        if one.axis is not None:
            yield from _of_axis(index, one, spec)


def _of_axis(index: int, one: CriterionSpec, spec: Spec) -> Iterator[Fault]:
    """What a bound on an axis cannot be compared with, so that no cell would meet it, or the wrong ones."""
    bound = next((name for name in _BOUNDS if getattr(one, name) is not None), None)
    if bound is None:
        return
    cells = [body.grid[one.axis] for body in spec.conditions.values() if one.axis in body.grid]
    words = list(dict.fromkeys(value for value in cells if not as_numbers(value)))
    if words:
        message = f"expected an axis of numbers, '{one.axis}' has {listed(map(str, words[:_SHOWN]))}"
        yield ("where", index, "axis"), message
    elif spec.reference_depth is not None and isinstance(getattr(one, bound), str):
        yield (
            ("where", index, bound),
            f"expected a number on the scale of the axis: reference_depth: {spec.reference_depth} has its "
            f"integers read on another than the model's, of which '{getattr(one, bound)}' is a share",
        )
