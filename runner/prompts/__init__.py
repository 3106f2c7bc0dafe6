"""Prompt banks, and which donor goes with which target."""
