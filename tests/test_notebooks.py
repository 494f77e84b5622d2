"Run every notebook top to bottom in a fresh kernel, skipping what nbdev skips. `SAVE=1` keeps the outputs for the docs."
import os
import nbformat, pytest
from nbclient import NotebookClient
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor

os.environ.setdefault('OMP_NUM_THREADS', '1')   # two notebooks at a time, a core each
os.environ.setdefault('PYTHONWARNINGS', 'ignore::FutureWarning:torch.jit._script')   # fastai on torch 2.15
cfg = get_config()
nbs = sorted(nbglob(as_path=True))
skip_flags = set(cfg.tst_flags.split())

def skipped(fn):
    "Indices of the cells that `nbdev_test` does not run"
    for i,c in enumerate(NBProcessor(fn, rm_directives=False).nb.cells):
        d = getattr(c, 'directives_', None) or {}
        if d.get('eval:', [''])[0].lower()=='false' or skip_flags & d.keys(): yield i

@pytest.mark.parametrize('fn', nbs, ids=[p.relative_to(cfg.nbs_path).as_posix() for p in nbs])
def test_runs(fn):
    nb, skip = nbformat.read(fn, 4), set(skipped(fn))
    saved = [bool(c.get('outputs')) for c in nb.cells]
    for i in skip: nb.cells[i].metadata.tags = [*nb.cells[i].metadata.get('tags', []), 'skip-execution']
    NotebookClient(nb, timeout=900, kernel_name='python3', resources={'metadata': {'path': str(fn.parent)}}).execute()
    if os.environ.get('SAVE'):
        for i in skip: nb.cells[i].metadata.tags.remove('skip-execution')
        nbformat.write(nb, fn)
        return
    stale = [c.source[:60] for i,c in enumerate(nb.cells) if i not in skip and bool(c.get('outputs'))!=saved[i]]
    assert not stale, f'saved outputs are missing or left over, run and save the notebook again: {stale}'

@pytest.mark.parametrize('fn', nbs, ids=[p.name for p in nbs])
def test_small(fn): assert fn.stat().st_size <= 300_000, f'{fn.name} has {fn.stat().st_size//1000} kB, 300 are allowed: fewer or smaller figures'
