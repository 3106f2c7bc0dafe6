"""Tests, intervals and corrections on plain arrays; nothing here knows a run."""
