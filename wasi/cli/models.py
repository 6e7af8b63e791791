"""What commands share that work on a model file."""

from pathlib import Path

from wasi.training.checkpoint import FOLDER as CHECKPOINTS
from wasi.training.checkpoint import list_checkpoints
from wasi.training.runlog import read_config

LENGTH = 128  # tokens a sample where neither the user nor a run says


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


def run_folder(path):
    """The folder of a run that a path names, or that a model file or checkpoint lies in."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def settings_of_run(path):
    """What config.json says of the run that a model is of; {} where it is of none, or of one that does not say."""
    try:
        return read_config(run_folder(path))
    except (OSError, ValueError):
        return {}


def take_over(args, model, names):
    """Sets those of the options `names` that the user left open to what the run says that --model is of, else to the usual.

    names: out of data, seed and length.
    """
    run = settings_of_run(args.model)
    arguments, context = run.get("arguments", {}), getattr(model.config, "max_length", LENGTH)
    known = {"data": (str, arguments.get("data"), None), "seed": (int, arguments.get("seed"), 0),
             "length": (int, run.get("length"), min(LENGTH, context))}
    for name in names:
        kind, value, usual = known[name]
        if getattr(args, name) is None:
            setattr(args, name, value if type(value) is kind else usual)
