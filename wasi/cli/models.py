"""What commands share that work on a model file."""

from pathlib import Path

from wasi.training.checkpoint import list_checkpoints


def classes_of(extra):
    """The names of the classes in what was saved with a model, or None where it has none."""
    classes = extra.get("classes") if isinstance(extra, dict) else None
    return [str(name) for name in classes] if isinstance(classes, list) and classes else None


def model_file(path):
    """The file that a path names; of a run folder its trained model, or, where that is not there yet, its newest checkpoint.

    Raises FileNotFoundError.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    found = list_checkpoints(path)
    if not found:
        raise FileNotFoundError("model: expected a file, or a run folder with model.safetensors or checkpoints, got "
                                f"{str(path)!r}")
    return found[max(found)]
