"""Features of a sparse autoencoder, written without its reconstruction error and with it."""

from __future__ import annotations

from backends.conformance.check import Check

SECTION = "sae"
CHECKS: tuple[Check, ...] = ()
