"""The manifest of a run: everything that someone needs to know, or to repeat it."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from backends.contract import ModelInfo
from backends.writes import SEMANTICS_VERSION, Constant, Features, Value
from runner.config.resolve import Condition, Design
from runner.keys import receipt_order
from runner.prompts.banks import Bank
from runner.prompts.pairing import Pairing
from runner.scores import behaviour

SCHEMA = 1
MOST_DIFF = 200_000  # characters of an uncommitted diff that are kept


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_condition(condition: Condition) -> dict[str, Any]:
    """A condition for the manifest: words, resolved writes, sampling, and the order of its receipts."""
    return {
        "label": condition.label,
        "words": list(condition.words),
        "prompt": "+".join(condition.prompt),
        "writes": {
            write.name: {
                "site": write.site,
                "layers": list(write.layers),
                "op": write.op,
                "value": describe_value(write.value),
                "positions": write.positions.word,
                "from_positions": None if write.source_positions is None else write.source_positions.word,
                "keys": None if write.keys is None else write.keys.word,
                "during": write.during,
                "hold": write.hold,
                "heads": None
                if write.heads is None
                else {"of": write.heads.of, "heads": list(write.heads.indices)},
                "part": write.part,
                "align": write.align,
                "rope": write.rope,
                "keep_sink": write.keep_sink,
                "alpha": write.alpha,
                "unit": write.unit,
                "features": None if write.features is None else describe_features(write.features),
                "round_trip": write.round_trip,
                "min_positions": write.min_positions,
                "expect": condition.expects.get(write.name),
                "has_old": write.has_old,
            }
            for write in condition.writes
        },
        "receipt_order": list(receipt_order(condition.writes)),
        "sampling": {
            "temperature": condition.sampling.temperature,
            "top_k": condition.sampling.top_k,
            "top_p": condition.sampling.top_p,
            "max_new_tokens": condition.sampling.max_new_tokens,
        },
        "replay_last_token": condition.replay_last_token,
        "recompute": condition.recompute,
        "weights": None if condition.weights is None else describe_weights(condition.weights),
        "same_as": condition.same_as,
        "grid": dict(condition.grid),
    }


def describe_value(value: Value) -> dict[str, Any]:
    """What a write writes, for the manifest: vectors by name and digest, sets and conditions by name; only
    what it has."""
    found: dict[str, Any] = {"kind": value.kind, "role": value.role, "draws": value.draws}
    if value.layer is not None:
        found["layer"] = value.layer
    if value.number is not None:
        found["number"] = value.number
    if value.constant is not None:
        found["constant"] = {"name": value.constant.name, "digest": value.constant.digest}
    if value.prompts is not None:
        found["prompts"] = value.prompts.name
    if value.under is not None:
        found["under"] = value.under.name
    return found


def describe_weights(changed: Constant) -> dict[str, Any]:
    """The direction that a condition takes out of the model's weights, for the manifest."""
    return {"orthogonalise": {"name": changed.name, "digest": changed.digest}}


def describe_features(features: Features) -> dict[str, Any]:
    """The features of a sparse autoencoder that a write sets, for the manifest."""
    return {
        "folder": features.folder,
        "fingerprint": features.fingerprint,
        "site": features.site,
        "indices": list(features.indices),
    }


def describe_run(
    design: Design,
    config: Mapping[str, Any],
    digest: str,
    command: Sequence[str],
    info: ModelInfo,
    tokenizer: str,
    allow_inert: bool | None,
) -> dict[str, Any]:
    """What the manifest says of a whole run that starts now; counts, times and status are filled in as it
    goes. design: of any of its stages."""
    return {
        "schema": SCHEMA,
        "status": "running",
        "exit_status": None,
        "command": list(command),
        "config": dict(config),
        "config_hash": digest,
        "semantics": SEMANTICS_VERSION,
        "git": git_state(Path(__file__).resolve().parent),
        "packages": packages(),
        "hardware": hardware(info.device),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "dtype": info.dtype,
        "attention": info.attention,
        "backend": design.backend.name,
        "model": {
            "name": info.name,
            "architecture": info.architecture,
            "source": design.model.source,
            "id": design.model.id,
            "path": design.model.path,
            "revision": design.model.revision,
            "layers": info.layers,
            "heads": info.heads,
            "kv_heads": info.kv_heads,
            "head_width": info.head_width,
            "parameters": info.parameters,
            "fingerprint": info.fingerprint,
            "tokenizer_fingerprint": tokenizer,
            "chat_template": design.model.chat_template,
        },
        "times": {"started": now(), "finished": None, "seconds": {}},
        "markers": {"list": list(behaviour.MARKERS), "version": behaviour.VERSION},
        "allow_inert": allow_inert,
        "published": design.published,
        "counts": {},
    }


def describe_stage(
    design: Design, pairing: Pairing, banks: Mapping[str, Bank], plan_gates: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """What the manifest says of a stage that measures; of a run in the flat form, beside the rest."""
    return {
        "experiment": {
            "name": design.name,
            "question": design.question,
            "n": design.n,
            "repeats": design.repeats,
            "stage": design.stage,
        },
        "layer_notes": list(design.layer_notes),
        "prompts": describe_prompts(design, pairing, banks),
        "seeds": {"prompts": design.prompts.seed, "sampling": design.sampling_seed},
        "conditions": {condition.name: describe_condition(condition) for condition in design.conditions},
        "contrasts": contrasts(design),
        "readouts": list(design.readouts),
        "readout": {readout.name: readout.described() for readout in design.measured},
        "plan_gates": list(plan_gates),
    }


def describe_prompts(design: Design, pairing: Pairing, banks: Mapping[str, Bank]) -> dict[str, Any]:
    """The prompts of a stage: how many, how different, from which files."""
    return {
        "name": design.prompts.name,
        "asked": pairing.asked,
        "items": pairing.items,
        "distinct_donors": pairing.distinct_donors,
        "distinct_targets": pairing.distinct_targets,
        "distinct_pairs": pairing.distinct_pairs,
        "donor_minus_target": pairing.donor_minus_target,
        "role_minus_donor": dict(pairing.role_minus_donor),
        "banks": described_banks(banks),
    }


def described_banks(banks: Mapping[str, Bank]) -> dict[str, Any]:
    """The files that prompts come from, by the names that the YAML uses."""
    return {name: {"path": str(bank.path), "sha256": bank.sha256} for name, bank in banks.items()}


def contrasts(design: Design) -> dict[str, Any]:
    """The declared contrasts in plain data."""
    spec = design.contrasts
    return {
        "family": spec.family,
        "baseline": spec.baseline,
        "primary": spec.primary,
        "extra": [list(pair) for pair in spec.extra],
        "same": [[a, b, {"margin": margin.margin}] for a, b, margin in spec.same],
        "trends": [list(names) for names in spec.trends],
        "covariates": list(spec.covariates),
        "checks": {check.name: asdict(check) for check in design.checks},
        "statistics": spec.statistics,
        "correction": spec.correction,
        "positive_control": spec.positive_control,
        "expected": None if spec.expected is None else spec.expected.model_dump(mode="json"),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, dirty flag and diff of the checkout that this code runs from; None for an installed package."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    diff = git("diff", "HEAD")
    return {
        "commit": commit,
        "dirty": bool(git("status", "--porcelain")),
        "diff": None if diff is None else diff[:MOST_DIFF],
    }


def packages() -> dict[str, str]:
    """Names and versions of all installed distributions."""
    found = {(d.metadata["Name"] or "?"): d.version for d in metadata.distributions()}
    return dict(sorted(found.items(), key=lambda entry: entry[0].casefold()))


def hardware(device: str) -> dict[str, Any]:
    """The machine, in plain figures."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_bytes": pages,
        "device": device,
    }
