"""Run every notebook top to bottom, as `nbdev-test` does, each in a process of its own.

The process is a copy of one that has imported the packages that notebooks begin with, and nothing of pgflkd: importing
them anew would be a third of the time. Outputs are saved by `tools/outputs.py`, with Jupyter's own kernel.
"""
import json
import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
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
PACKAGES = ['execnb.shell', 'fastai.vision.all', 'matplotlib.pyplot', 'scipy.ndimage', 'pytorch_grad_cam', 'nbdev']
HOW = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'

def skipped(source):
    "Whether a code cell is not run: `#| eval: false`, or a mark that says slow or cuda"
    return re.search(r'^#\|\s*(eval:\s*false|slow|cuda|notest)', source, re.M)

def execute(path):
    "The notebook `path`, run top to bottom by a kernel"
    nb = nbformat.read(path, 4)
    code = [c for c in nb.cells if c.cell_type=='code']
    for cell in code: cell.metadata.tags = ['skip-execution']*bool(skipped(cell.source))
    resources = {'metadata': {'path': str(path.parent)}}
    NotebookClient(nb, timeout=900, kernel_name='python3', resources=resources).execute()
    for cell in code: del cell.metadata['tags']
    return nb

def test_saving(tmp_path):
    "`tools/outputs.py` keeps what cells give, skips those that are not to be run, and leaves no mark"
    cells = [nbformat.v4.new_code_cell(o) for o in ('#| eval: false\n1/0', '1+1')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/'a.ipynb')
    left, made = execute(tmp_path/'a.ipynb').cells
    assert not left.outputs and made.outputs[0].data['text/plain']=='2'
    assert 'tags' not in left.metadata and 'tags' not in made.metadata

def run(path):
    "Run the notebook `path` in this process: the cells whose saved outputs are missing or left over"
    from execnb.shell import CaptureShell
    os.chdir(path.parent)
    shell, wrong = CaptureShell(path.parent, mpl_format='png'), []
    for cell in outputs.cells(path):
        source = ''.join(cell['source'])
        if cell['cell_type']!='code' or skipped(source): continue
        found = shell.run(source)
        if shell.exc: raise RuntimeError(f'{source}\n\n{"".join(found[-1]["traceback"])}')
        if bool(found)!=bool(cell['outputs']): wrong.append(source[:60])
    return wrong

def in_new_process(path, seconds):
    "`run` in a process of its own"
    how = multiprocessing.get_context(HOW)
    if HOW=='forkserver': how.set_forkserver_preload(PACKAGES)
    with ProcessPoolExecutor(1, how) as pool: return pool.submit(run, path).result(seconds)

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_runs(name):
    stale = in_new_process(NOTEBOOKS[name], 900)
    assert not stale, f'saved outputs are missing or left over, run python tools/outputs.py {name}: {stale}'

def test_a_fault_is_found(tmp_path):
    "A cell that raises, and one whose output is not the saved one"
    cells = [dict(cell_type='code', source=source, outputs=[]) for source in ('1+1', '#| eval: false\n1/0', 'x = 1/0')]
    (tmp_path/'a.ipynb').write_text(json.dumps(dict(cells=cells[:2])))
    assert in_new_process(tmp_path/'a.ipynb', 60)==['1+1']
    (tmp_path/'a.ipynb').write_text(json.dumps(dict(cells=cells)))
    with pytest.raises(RuntimeError, match='x = 1/0'): in_new_process(tmp_path/'a.ipynb', 60)
