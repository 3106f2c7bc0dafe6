"""Gates that the plan alone decides, before anything runs: writes whose effect the readouts cannot see."""

from __future__ import annotations

from backends.rowplan import RowPlan, plan_row
from backends.writes import Write
from runner.config.resolve import Condition, Design
from runner.plan import Plan

# At the last layer these reach the logits of their own position only.
LOCAL_AT_TOP = ("resid_post", "attn_out", "mlp_out", "head_z", "q_proj")


def plan_gates(design: Design, plan: Plan) -> list[dict[str, str]]:
    """`reach` gates: a write that acts in no trial on anything that a readout reads."""
    gates = []
    for condition in design.conditions:
        rows = [plan_row(t.row) for t in plan.trials if t.condition == condition.name and t.invalid is None]
        for write in condition.writes if rows else ():
            sentence = _out_of_reach(condition, write, rows, design.model.layers)
            if sentence is not None:
                gates.append(
                    {"condition": condition.name, "gate": "reach", "verdict": "fail", "sentence": sentence}
                )
    return gates


def _out_of_reach(condition: Condition, write: Write, rows: list[RowPlan], layers: int) -> str | None:
    one_token = condition.sampling.max_new_tokens == 1 and not condition.replay_last_token
    if write.during == "decode" and one_token:
        return (
            f"{write.name} in {condition.name} acts in decode only, but the one new token is drawn from the "
            "last prompt token's logits, before any decode step: nothing measured can show it."
        )
    at_top = write.site in LOCAL_AT_TOP and min(write.layers) == layers - 1
    if write.during == "prefill" and at_top and not any(_touches_last(row, write.name) for row in rows):
        return (
            f"{write.name} in {condition.name} writes {write.site} of the last layer at positions before the "
            "last prompt token: no later position reads it, so that no readout can show it."
        )
    return None


def _touches_last(row: RowPlan, name: str) -> bool:
    return any(
        item.write.name == name and item.prefill is not None and len(row.row.ids) - 1 in item.prefill.target
        for item in row.writes
    )
