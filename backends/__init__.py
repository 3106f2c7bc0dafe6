"""Backends run rows of tokens through a language model, with writes into it; they know no experiments."""
