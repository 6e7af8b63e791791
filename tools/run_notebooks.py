"""Executes the notebooks and keeps their outputs in the files: `python tools/run_notebooks.py [NAME ...]`."""

import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SECONDS = 300  # a cell that takes longer is an error


def execute(path):
    """The notebook with fresh outputs, run in an empty folder. Raises nbclient's CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, 4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}, record_timing=False).execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def clean(notebook):
    """Takes out of the outputs what is of one machine or run only: temporary folders, objects' addresses, a warning of tqdm."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if not (o.get("name") == "stderr" and "TqdmWarning" in o["text"])]
        for output in cell.get("outputs", ()):
            for holder, key in ((output, "text"), (output.get("data", {}), "text/plain")):
                if key in holder:
                    holder[key] = re.sub(r"(/tmp/)\w+", r"\1...", re.sub(r" at 0x[0-9a-f]+", "", holder[key]))
    return notebook


def main(names):
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not names or path.stem in names:
            start = time.perf_counter()
            nbformat.write(clean(execute(path)), path)
            print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
