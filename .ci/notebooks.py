"""Execute every notebook from top to bottom and fail on the first error; the stored files are left alone."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

for path in sorted(Path("notebooks").glob("*.ipynb")):
    size = path.stat().st_size
    if size > 400_000:
        raise SystemExit(f"{path} holds {size} bytes; keep stored outputs small.")
    NotebookClient(nbformat.read(path, as_version=4), timeout=600, kernel_name="python3").execute(cwd="notebooks")
    print(f"{path}: executed")
