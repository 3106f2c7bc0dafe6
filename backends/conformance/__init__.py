"""Identities that hold exactly on any model, as checks that run on any backend."""
