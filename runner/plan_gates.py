"""Gates that the plan alone decides, before anything runs: writes whose effect the readouts cannot see."""

from __future__ import annotations

from backends.rowplan import RowPlan, plan_row
from runner.plan import Plan
from runner.resolve import Design

# At the last layer these reach the logits of their own position only.
LOCAL_AT_TOP = ("resid_post", "attn_out", "mlp_out", "head_z", "q_proj")


def plan_gates(design: Design, plan: Plan) -> list[dict[str, str]]:
    """`reach` gates: a write that acts in no trial on anything that a readout reads."""
    gates = []
    for condition in design.conditions:
        rows = [plan_row(t.row) for t in plan.trials if t.condition == condition.name and t.invalid is None]
        for write in condition.writes:
            if not rows:
                continue
            if write.during == "decode" and condition.sampling.max_new_tokens == 1:
                if not condition.replay_last_token:
                    gates.append(
                        _gate(
                            condition.name,
                            f"{write.name} acts in decode only, but the one new token is drawn from the last prompt "
                            "token's logits, before any decode step: nothing measured can show it.",
                        )
                    )
            elif write.during == "prefill" and write.site in LOCAL_AT_TOP and min(write.layers) == design.model.layers - 1:
                if not any(_touches_last(row, write.name) for row in rows):
                    gates.append(
                        _gate(
                            condition.name,
                            f"{write.name} writes {write.site} of the last layer at positions before the last prompt "
                            "token: no later position reads it, so that no readout can show it.",
                        )
                    )
    return gates


def _gate(condition: str, sentence: str) -> dict[str, str]:
    return {"condition": condition, "gate": "reach", "verdict": "fail", "sentence": sentence}


def _touches_last(row: RowPlan, name: str) -> bool:
    return any(
        item.write.name == name and item.prefill is not None and len(row.row.ids) - 1 in item.prefill.target
        for item in row.writes
    )
