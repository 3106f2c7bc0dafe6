"""From a model's YAML to where its weights are and how it is run."""

from __future__ import annotations

from pathlib import Path

from backends.contract import Backend, BackendError, Device, ModelSource
from runner.config.resolve import Design


def model_source(design: Design) -> ModelSource:
    """What the backend loads. Raises BackendError where the embedded model is missing from the installation
    or has no such checkpoint."""
    model = design.model
    path, hub_id = model.path, model.id
    if model.source == "embedded":
        path, hub_id = str(_embedded(model.name, model.id)), None
    elif model.source == "local":
        assert path is not None, "checked at the door"
        path, hub_id = str(Path(path).expanduser()), None
    else:
        path = None
    return ModelSource(
        name=model.name,
        architecture=model.architecture,
        path=path,
        hub_id=hub_id,
        revision=model.revision if hub_id is not None else None,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_width=model.head_width,
        width=model.width,
        context=model.context,
    )


def _embedded(name: str, checkpoint: str | None) -> Path:
    from organisms import FINAL, weights_dir

    try:
        folder = weights_dir(FINAL if checkpoint is None else checkpoint)
    except ValueError as error:
        raise BackendError(f"model '{name}': model.id: {error}") from error
    if not (folder / "model.safetensors").is_file():
        raise BackendError(f"model '{name}': {folder} has no weights; run `patchbay train-organism`")
    return folder


def device_of(design: Design) -> Device:
    """How the backend runs it."""
    backend = design.backend
    return Device(
        device=backend.device,
        dtype=design.dtype,
        attention=backend.attention,
        device_map=backend.device_map,
        budget=backend.memory_budget,
        threads=backend.threads,
        workers=backend.workers,
    )


def load_backend(source: ModelSource, design: Design) -> Backend:
    """The backend with its model, from this process's cache or loaded. Raises BackendError in a sentence."""
    from backends.torch.backend import TorchBackend

    backend = TorchBackend(source, device_of(design))
    declared, loaded = design.model.vocabulary, backend.info.vocabulary
    if declared is not None and declared != loaded:
        raise BackendError(f"model '{source.name}': vocabulary {declared} declared, {loaded} loaded")
    return backend
