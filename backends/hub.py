"""Weights from a hub: taken from the local cache, downloaded where they are not, refused in a sentence
otherwise."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

from backends.contract import BackendError, ModelSource

KEPT = ("*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt", "*.jinja")
LEFT = ("consolidated*", "original/*", "*.pth")
SECONDS = 5.0


def fetch(source: ModelSource) -> ModelSource:
    """The source with the local folder of its pinned revision; one that has a folder already is returned as
    it is.

    Raises BackendError in a sentence: no network and nothing cached, access refused, no such model or
    revision.
    """
    if source.path is not None:
        return source
    if source.hub_id is None:
        raise BackendError(
            f"model '{source.name}': expected a folder (path) or a hub id, its YAML has neither"
        )
    hub_id = source.hub_id
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    where = f"{source.hub_id} at revision {source.revision}"

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                hub_id,
                revision=source.revision,
                allow_patterns=list(KEPT),
                ignore_patterns=list(LEFT),
                local_files_only=local,
            )
        )

    try:
        folder = snapshot(local=True)
        if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file():
            return replace(source, path=str(folder))
    except LocalEntryNotFoundError:
        pass  # nothing is cached: it has to be downloaded
    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
        raise BackendError(
            f"model '{source.name}': the weights of {where} are not in the local cache, and "
            f"{constants.ENDPOINT} cannot be reached. Give a downloaded folder with +model.path=FOLDER, or "
            "use model=organism, which needs no network"
        )
    try:
        return replace(source, path=str(snapshot(local=False)))
    except HfHubHTTPError as error:
        raise BackendError(f"model '{source.name}': {refusal(error, where)}") from error
    except OSError as error:
        raise BackendError(f"model '{source.name}': {where} could not be downloaded: {error}") from error


def refusal(error: Exception, where: str) -> str:
    """What a hub's refusal means, by the kind of its error."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return f"{where} is gated; ask for access on its page, then log in with `hf auth login`"
    if kind == "RevisionNotFoundError":
        return f"{where}: there is no such revision"
    if kind == "RepositoryNotFoundError":
        return f"{where}: there is no such model, or it is private; log in with `hf auth login`"
    return f"{where} could not be downloaded: {str(error).strip().splitlines()[0]}"


def reachable(endpoint: str) -> bool:
    """Whether a server answers at all within 5 s (the hub's own client would retry for most of a minute)."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
