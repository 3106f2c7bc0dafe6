"""Sparse autoencoders as numpy arrays and as files: what the door reads of them, and the reference formulas.

Imports no model library. backends/torch/features.py writes features into a model that runs.
"""

from backends.sae.folder import save
from backends.sae.formulas import Faults, decode, encode, faults, set_features
from backends.sae.readers import choose, load, read
from backends.sae.types import SITES, Chosen, Conventions, Description, Sae, SaeError

__all__ = [
    "SITES",
    "Chosen",
    "Conventions",
    "Description",
    "Faults",
    "Sae",
    "SaeError",
    "choose",
    "decode",
    "encode",
    "faults",
    "load",
    "read",
    "save",
    "set_features",
]
