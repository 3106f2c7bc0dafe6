"""The shape of a configuration: every key that exists, its type and its default. Checked once, at the
door."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PositiveInt,
    PrivateAttr,
)

from backends.measures import ProbeKind
from backends.writes import Align, Hold, Op, Part, Phase, Rope, Site, Unit
from runner.config.prompts.spec import BankChoice as BankChoice
from runner.config.prompts.spec import PairingSpec as PairingSpec
from runner.config.prompts.spec import PromptsSpec as PromptsSpec
from runner.config.prompts.spec import RoleSpec as RoleSpec
from runner.config.stages.known import MEASURE, Known
from runner.config.strict import ByLanguage as ByLanguage
from runner.config.strict import Language as Language
from runner.config.strict import Name as Name
from runner.config.strict import Names as Names
from runner.config.strict import Strict as Strict

Dtype = Literal["float32", "bfloat16", "float16"]
Expect = Literal["noop", "inert"]
Statistics = Literal["paired_clustered", "as_published"]
Correction = Literal["holm", "bonferroni", "benjamini_hochberg"]
Published = Literal["n300", "pilot", "aggressive", "true_kv"]
LayerItem = int | str
LayersWord = int | str | Annotated[tuple[LayerItem, ...], Field(strict=False)]
Index = Annotated[int, Field(ge=0, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Words = str | Names | dict[Language, str | Names]
ScoreKind = Literal["behaviour", "contains", "degenerate"]
DerivedKind = Literal["onset", "difference", "holds"]
ReadoutKind = Literal[ScoreKind, ProbeKind, DerivedKind]
Expected = Literal["same", "different", "higher", "lower"]

_UNITS = {
    "": 1,
    "B": 1,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}


def read_bytes(value: object) -> object:
    """A number of bytes from `2GiB`, `500MB` or a plain integer; anything else is returned for the type
    check."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)?\s*", value, flags=re.IGNORECASE)
    if not found:
        raise ValueError("expected a size such as 2GiB or 500MB")
    return int(float(found[1]) * _UNITS[(found[2] or "").upper()])


Size = Annotated[int, Field(gt=0), BeforeValidator(read_bytes)]


def read_one(value: object) -> object:
    """A single head or feature as a list of one, as an axis of a grid gives it; anything else is returned for
    the type check."""
    return [value] if isinstance(value, (str, int)) and not isinstance(value, bool) else value


Heads = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(read_one)]
Indices = Annotated[tuple[Index, ...], Field(strict=False), BeforeValidator(read_one)]


class ExperimentSpec(Strict):
    """What is asked, of how many items, how often each."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    question: str = ""
    n: PositiveInt
    repeats: PositiveInt = 1


class ModelSpec(Strict):
    """Which model, and what its YAML declares of it."""

    name: str
    source: Literal["embedded", "hub", "local"]
    id: str | None = None
    revision: str | None = None
    path: str | None = None
    language: Language
    architecture: str
    layers: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_width: PositiveInt
    width: PositiveInt
    context: PositiveInt
    vocabulary: PositiveInt | None = None
    dtype: Dtype
    chat_template: bool = False
    landmarks: dict[str, int] = Field(default_factory=dict)


class BackendSpec(Strict):
    """How the model is run. memory_budget in bytes, None for a share of what is free; max_rows caps how many
    rows run at once; workers: how many batches are run at the same time, each by as many threads as `threads`
    says."""

    name: Literal["torch"]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Dtype | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"
    device_map: Literal["auto"] | None = None
    memory_budget: Size | None = None
    workers: PositiveInt | None = None
    threads: PositiveInt | None = None
    max_rows: PositiveInt | None = None


class SamplingSpec(Strict):
    """How new tokens are drawn. temperature 0 is greedy; top_k 0 and top_p 1 truncate nothing."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.8
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: PositiveInt = 150
    seed: int = 42


class SamplingChange(Strict):
    """What one condition samples differently; None where it does not."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: PositiveInt | None = None


class WriteSpec(Strict):
    """One write, in words. `layers` None: the site has none, or the SAE says them. `order` None: no rank was
    given."""

    site: Site
    part: Part = "both"
    layers: LayersWord | None = None
    heads: Heads | None = None
    positions: str = "all"
    keys: str | None = None
    during: Phase = "prefill"
    hold: Hold | None = None
    op: Op = "replace"
    value: str | Finite | None = None
    from_layer: LayerItem | None = None
    from_positions: str | None = None
    draws: PositiveInt = 1
    under: str | None = None
    align: Align = "right"
    rope: Rope = "rerotate"
    keep_sink: bool = False
    alpha: Finite = 1.0
    unit: Unit = "direction_norm"
    sae: str | None = None
    features: Indices | None = None
    round_trip: bool = False
    expect: Expect | None = None
    min_positions: PositiveInt = 1
    order: int | None = None

    def given(self, field: str) -> bool:
        """Whether a field stands in the YAML file, whatever it says."""
        return field in self.model_fields_set


def read_role(value: str) -> str:
    """Check the form of a prompt in a role; whether the prompts have it is checked with them."""
    if not re.fullmatch(r"donor:[A-Za-z_][A-Za-z0-9_]*(\+target)?", value):
        raise ValueError("expected donor:ROLE or donor:ROLE+target")
    return value


Prompt = Literal["target", "donor", "donor+target"] | Annotated[str, AfterValidator(read_role)]


class WeightsSpec(Strict):
    """A direction that is taken out of everything that the model's weights add to the residual stream, named
    by `artefact:NAME` or `file:PATH`; of several layers or positions the one to take."""

    orthogonalise: str
    from_layer: LayerItem | None = None
    from_positions: str | None = None


class ConditionSpec(Strict):
    """A condition: its reserved keys, and its writes by name. `grid`: the cell that a grid expanded to."""

    label: str | None = None
    prompt: Prompt = "target"
    sampling: SamplingChange = SamplingChange()
    replay_last_token: bool = False
    recompute: bool = False
    weights: WeightsSpec | None = None
    same_as: str | None = None
    grid: dict[str, str | int | float | bool] = Field(default_factory=dict)
    writes: dict[str, WriteSpec] = Field(default_factory=dict)


RESERVED: tuple[str, ...] = tuple(key for key in ConditionSpec.model_fields if key != "writes")


class Margin(Strict):
    """The difference up to which two conditions count as the same, in units of the primary readout. None: a
    third of the positive control's effect."""

    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


def with_margin(pair: object) -> object:
    """A pair that states no margin, with the place of one."""
    return [*pair, {}] if isinstance(pair, list | tuple) and len(pair) == 2 else pair


Pair = Annotated[tuple[str, str], Field(strict=False)]
SamePair = Annotated[tuple[str, str, Margin], BeforeValidator(with_margin), Field(strict=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ExpectedSpec(Strict):
    """What is expected of the paired differences, from which the detectable effects are computed before the
    run. sd: their standard deviation (ddof 1), in units of the primary readout; icc: the share of their
    variance that lies between donors, and between targets."""

    sd: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    icc: Annotated[tuple[Share, Share], Field(strict=False)] | None = None


class CheckSpec(Strict):
    """One thing that must come out in a known way. readout: a column, or an entry of a list column
    (`lens.prob[last]`), of the condition `of`. It is held against the same readout of the condition
    `against`, or `than`, another readout of `of` (of `against`, where both are given), or a number `value`.
    within: the difference up to which two values count as the same."""

    of: str
    readout: str
    expect: Expected
    against: str | None = None
    than: str | None = None
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    within: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class ContrastsSpec(Strict):
    """Which conditions are compared, on what. `same`: pairs for an equivalence test. `trends`: conditions in
    the order of a dose. `covariates`: columns whose difference each contrast is also adjusted for. `checks`:
    what must come out in a known way, by name. `correction`: over the family. `positive_control`: a condition
    with a known effect, of which a third is suggested as margin. `expected`: for the power before the run."""

    family: Literal["each_against_baseline", "none"] = "each_against_baseline"
    baseline: str = "baseline"
    primary: str = "score"
    extra: Annotated[tuple[Pair, ...], Field(strict=False)] = ()
    same: Annotated[tuple[SamePair, ...], Field(strict=False)] = ()
    trends: Annotated[tuple[Names, ...], Field(strict=False)] = ()
    covariates: Names = ()
    checks: dict[Name, CheckSpec] = Field(default_factory=dict)
    statistics: Statistics = "paired_clustered"
    correction: Correction = "holm"
    positive_control: str | None = None
    expected: ExpectedSpec | None = None


class ScopeSpec(Strict):
    """Of a patchscope: the prompt that takes the state, the position in it, and the layer that it is written
    at (null: the layer that it was read from)."""

    prompt: ByLanguage
    position: int = -1
    layer: LayerItem | None = None


class ReadoutSpec(Strict):
    """What a readout's name stands for: a registered kind, in a version. Which of the other fields a kind
    reads stands in runner.config.readouts.readout; None: not given."""

    kind: ReadoutKind
    version: Literal[1] = 1
    tokens: Words | None = None
    against: Words | None = None
    first_token: bool | None = None
    top: PositiveInt | None = None
    layers: LayersWord | None = None
    position: int | str | None = None
    windows: Annotated[tuple[PositiveInt, ...], Field(strict=False)] | None = None
    site: Site | None = None
    continuation: ByLanguage | None = None
    scope: ScopeSpec | None = None
    of: str | None = None
    minus: str | None = None
    within: PositiveInt | None = None
    above: Finite | None = None
    below: Finite | None = None


class LaunchSpec(Strict):
    """Where the trials of a run are computed."""

    name: Literal["local"]


class Spec(Strict):
    """A whole configuration of one stage, checked; of an experiment in the flat form, its only one."""

    experiment: ExperimentSpec
    model: ModelSpec
    backend: BackendSpec
    prompts: PromptsSpec
    sampling: SamplingSpec = SamplingSpec()
    readout: dict[Name, ReadoutSpec] = Field(default_factory=dict)
    readouts: Names
    launch: LaunchSpec
    reference_depth: Annotated[int, Field(ge=2)] | None = None
    conditions: dict[str, ConditionSpec] = Field(default_factory=dict)
    contrasts: ContrastsSpec = ContrastsSpec()
    published: Published | None = None
    limit: PositiveInt | None = None
    dry_run: bool = False
    resume: bool = False
    allow_inert: bool | None = None
    profile: bool = False
    quiet: bool = False
    report: bool = True
    output_root: Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)] = "outputs"

    _stage: str = PrivateAttr(default=MEASURE)
    _known: Known = PrivateAttr(default_factory=Known)

    def of_stage(self, name: str, known: Known) -> Spec:
        """The same as the stage of that name, with what the stages before it give."""
        copy = self.model_copy()
        copy._stage, copy._known = name, known
        return copy

    def of_items(self, experiment: ExperimentSpec) -> Spec:
        """The same with another number of items."""
        return self.model_copy(update={"experiment": experiment})

    @property
    def known(self) -> Known:
        """Choices and artefacts of earlier stages."""
        return self._known

    @property
    def stage(self) -> tuple[str, Mapping[str, ConditionSpec], tuple[str, ...]]:
        """Name, conditions and readouts of the stage that measures."""
        return self._stage, self.conditions, self.readouts

    @property
    def n_asked(self) -> int:
        """Items that this run is to have: n, or fewer under `limit`."""
        return self.experiment.n if self.limit is None else min(self.limit, self.experiment.n)


def plain(spec: BaseModel) -> dict[str, Any]:
    """A checked specification as plain data."""
    return spec.model_dump(mode="json")
