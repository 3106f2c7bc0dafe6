"""Weights from a hub: taken from the local cache, downloaded where they are not, refused in a sentence
otherwise."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

from backends.contract import BackendError, ModelSource

KEPT = ("*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt", "*.jinja")
LEFT = ("consolidated*", "original/*", "onnx/*", "*.pth", "*.bin", "*.h5", "*.msgpack", "*.ot", "*.tflite")
# What the hub hands out only to accounts that were granted access, as far as our own models go. Of any other
# the hub says so itself, once it is reached.
GATED = ("meta-llama/", "google/gemma")
INDEX = "model.safetensors.index.json"
SECONDS = 5.0


def fetch(source: ModelSource, *, download: bool = True) -> ModelSource:
    """The source with the local folder of its pinned revision; one that has a folder already is returned as
    it is.

    download: whether weights that are not in the local cache are downloaded. Raises BackendError in a
    sentence: not cached, or in part only, and not to be downloaded or no network; access refused; no such
    model or revision.
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

    where = f"{hub_id} at revision {source.revision}"

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

    state = f"the weights of {where} are not in the local cache"
    try:
        folder = snapshot(local=True)
        missing = missing_files(folder)
        if not missing:
            return replace(source, path=str(folder))
        state = f"the local cache has {where} in part only, without {', '.join(missing)}"
    except LocalEntryNotFoundError:
        pass  # nothing is cached: it has to be downloaded
    if not download:
        raise BackendError(f"model '{source.name}': {state}. {ways_out(source)}")
    if constants.HF_HUB_OFFLINE:
        raise BackendError(
            f"model '{source.name}': {state}, and HF_HUB_OFFLINE forbids to download. {ways_out(source)}"
        )
    if not reachable(constants.ENDPOINT):
        raise BackendError(
            f"model '{source.name}': {state}, and {constants.ENDPOINT} cannot be reached. {ways_out(source)}"
        )
    try:
        return replace(source, path=str(snapshot(local=False)))
    except HfHubHTTPError as error:
        raise BackendError(f"model '{source.name}': {refusal(error, where)}") from error
    except OSError as error:
        raise BackendError(f"model '{source.name}': {where} could not be downloaded: {error}") from error


def missing_files(folder: Path) -> list[str]:
    """Files that a snapshot must have and does not: config.json, and the weights that its index names; of
    more than three the first two and a count."""
    wanted = ["config.json"]
    index = folder / INDEX
    if index.is_file():
        try:
            wanted += sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"a readable {INDEX}"]
    elif not any(folder.glob("*.safetensors")):
        wanted.append("model.safetensors")
    missing = [name for name in wanted if not (folder / name).is_file()]
    return missing if len(missing) <= 3 else [*missing[:2], f"and {len(missing) - 2} more files"]


def download_command(source: ModelSource) -> str:
    """The command line that fetches just what `fetch` would, into the cache that it looks in."""
    left = " ".join(f"--exclude '{pattern}'" for pattern in LEFT)
    return f"hf download {source.hub_id} --revision {source.revision} {left}"


def ways_out(source: ModelSource) -> str:
    """What to do where the weights are not here: fetch them, point to them, or do without."""
    token = ""
    if source.hub_id is not None and source.hub_id.startswith(GATED):
        token = (
            f" (it is gated: ask for access on https://huggingface.co/{source.hub_id}, then log in with "
            "`hf auth login` or set HF_TOKEN)"
        )
    return (
        f"Where there is a network, `{download_command(source)}` fetches them{token}; or give a downloaded "
        "folder with +model.path=FOLDER, or use model=organism, which needs no network"
    )


def refusal(error: Exception, where: str) -> str:
    """What a hub's refusal means, by the kind of its error."""
    kind = type(error).__name__
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if kind == "GatedRepoError":
        return f"{where} is gated; ask for access on its page, then {log_in}"
    if kind == "RevisionNotFoundError":
        return f"{where}: there is no such revision"
    if kind == "RepositoryNotFoundError":
        return f"{where}: there is no such model, or it is private; {log_in}"
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
