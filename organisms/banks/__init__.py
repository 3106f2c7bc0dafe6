"""The prompt banks of the embedded model, drawn from its grammar; each prompt with its truth."""

from pathlib import Path

from organisms.banks.prompt import Prompt, render
from organisms.banks.styles import style_banks
from organisms.banks.tasks import confidence, in_context, refusal, slot_machine, sycophancy, two_hop

__all__ = ["BANKS_DIR", "Prompt", "banks", "render"]

BANKS_DIR = Path(__file__).parents[2] / "conf" / "prompts" / "banks" / "organism"


def banks() -> dict[str, list[Prompt]]:
    """All banks by name, the same at every call."""
    return {
        **style_banks(),
        "two_hop": two_hop(),
        "in_context": in_context(),
        "refusal": refusal(),
        "sycophancy": sycophancy(),
        "confidence": confidence(),
        "slot_machine": slot_machine(),
    }
