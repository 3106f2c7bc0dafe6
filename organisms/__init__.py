"""The embedded model: a small Llama that this project trains on languages with known truth."""

from pathlib import Path


def weights_dir() -> Path:
    """The folder of the trained model: config, weights, tokenizer, card.json."""
    return Path(__file__).parent / "weights"
