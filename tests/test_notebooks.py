"Run every notebook top to bottom in a fresh kernel, skipping marked cells. `tools/outputs.py` keeps the outputs."
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
import outputs

os.environ.setdefault('OMP_NUM_THREADS', '1')   # two notebooks at a time, a core each
os.environ.setdefault('PYTHONWARNINGS', 'ignore::FutureWarning:torch.jit._script')  # fastai on torch 2.15
NOTEBOOKS = outputs.notebooks()

def skipped(cell):
    "Whether `cell` is not run: `#| eval: false`, or a mark that says slow or cuda"
    return cell.cell_type=='code' and re.search(r'^#\|\s*(eval:\s*false|slow|cuda|notest)', cell.source, re.M)

def execute(path):
    "The notebook `path`, run top to bottom"
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        if skipped(cell): cell.metadata.tags = [*cell.metadata.get('tags', []), 'skip-execution']
    resources = {'metadata': {'path': str(path.parent)}}
    NotebookClient(nb, timeout=900, kernel_name='python3', resources=resources).execute()
    for cell in nb.cells:
        if skipped(cell): cell.metadata.tags.remove('skip-execution')
    return nb

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_runs(name):
    saved = nbformat.read(NOTEBOOKS[name], 4)
    nb = execute(NOTEBOOKS[name])
    pairs = list(zip(saved.cells, nb.cells))
    stale = [new.source[:60] for old, new in pairs if bool(old.get('outputs'))!=bool(new.get('outputs'))]
    assert not stale, f'saved outputs are missing or left over, run python tools/outputs.py {name}: {stale}'
