"""The embedded model: a small Llama that this project trains on languages with known truth."""

from pathlib import Path

# The checkpoints that a model's YAML may name in `id`.
FINAL, MIDWAY = "final", "midway"


def weights_dir(checkpoint: str = FINAL) -> Path:
    """The folder of the trained model, or of the one on the way: config, weights, tokenizer.

    Raises ValueError for another checkpoint.
    """
    final = Path(__file__).parent / "weights"
    folders = {FINAL: final, MIDWAY: midway_of(final)}
    if checkpoint not in folders:
        raise ValueError(f"the embedded model has the checkpoints {', '.join(folders)}; got '{checkpoint}'")
    return folders[checkpoint]


def midway_of(folder: Path) -> Path:
    """Where the model on the way lies, within the folder of the trained one."""
    return folder / MIDWAY
