"""Change one operator, number or comparison at a time in a module, and ask whether its page notices.

    python results/trust/mutate.py --minutes 15          # adds rows to results/trust/mutants.csv: killed, survived
    python results/trust/mutate.py --module losses --show  # prints each survivor

A page runs once up to the cell that is changed; a fork of the process then runs the changed cell and the rest,
pictures left out, and ends at the first failure (killed) or after `--limit` CPU seconds (killed: it hangs). Mutants are
drawn with `--seed`, as many as the time allows; the same mutants in the same order for the same seed.
"""
import argparse
import ast
import os
import random
import re
import resource
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
warnings.filterwarnings('ignore')
import nbformat
import pandas as pd
import torch
from IPython.core.inputtransformer2 import TransformerManager

from pgflkd.records import add_rows, run_facts

torch.set_num_threads(1)
root = Path(__file__).parent.parent.parent
PAGES = dict(losses='course/05_losses', foreground='course/08_foreground', semantics='course/09_semantics',
             metrics='course/02_metrics', augment='engine/04_augment', data='course/03_data')
SWAP = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
        ast.Mod: ast.Mult,
        ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
        ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd,
        ast.Invert: ast.UAdd, ast.Not: ast.UAdd}
PAIRS = [('amax', 'amin'), ('max', 'min'), ('mean', 'sum'), ('any', 'all'), ('sort', 'argsort'),
         ('softmax', 'log_softmax'), ('ones', 'zeros'), ('argmax', 'argmin'), ('detach', 'clone')]
NAMES = dict(PAIRS) | {b: a for a, b in PAIRS}

def change(node):
    "The field of `node` that can be changed, and its new value; None if nothing can"
    op = getattr(node, 'op', None)
    if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.BoolOp)) and type(op) in SWAP: return 'op', SWAP[type(op)]()
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAP:
        return 'ops', [SWAP[type(node.ops[0])](), *node.ops[1:]]
    if isinstance(node, ast.Constant) and type(node.value) is bool: return 'value', not node.value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float): return 'value', node.value+1
    if isinstance(node, ast.Attribute) and node.attr in NAMES: return 'attr', NAMES[node.attr]
    if isinstance(node, ast.IfExp): return 'test', ast.Constant(True)

def minus_one(node):
    "-1 as an index or a mark: another sign changes nothing that can be read"
    return isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant) and node.operand.value==1

def points(tree):
    "Nodes of `tree` that can be changed; types and texts stay"
    marks = [getattr(n, field, None) for n in ast.walk(tree) for field in ('annotation', 'returns')]
    types = {o for mark in marks if mark is not None for o in ast.walk(mark)}
    return [n for n in ast.walk(tree) if n not in types and change(n) and not minus_one(n)]

def mutants(source):
    "(changed source as a tree, words, line:column) for each change of one exported cell"
    for i in range(len(points(ast.parse(source)))):
        tree = ast.parse(source)
        node = points(tree)[i]
        was = ast.unparse(node)
        setattr(node, *change(node))
        ast.fix_missing_locations(tree)
        now = ast.unparse(node)
        if now!=was: yield tree, f'{was[:60]} -> {now[:60]}', f'{node.lineno}:{node.col_offset}'

def run_cell(code, names):
    tree = ast.parse(code) if isinstance(code, str) else code
    exec(compile(ast.fix_missing_locations(tree), '<cell>', 'exec'), names)

def exported(source): return bool(re.search(r'#\|\s*exports?\b', source))
def skipped(source): return re.search(r'#\|\s*(eval:\s*false|slow|cuda|notest)', source)
def picture(source):
    drawn = re.search(r'plt\.|subplots|fig-alt|show|display\(', source)
    return bool(drawn) and not re.search(r'test_|assert', source)
def bare_imports(source): return re.match(r'\s*(import|from)', re.sub(r'#.*\n', '', source))

def silent():
    "In a fork: say nothing"
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)

def usable(cells):
    "Places of the cells that run when the pictures are left out, found in a fork"
    r, w = os.pipe()
    if not os.fork():
        silent()
        names, good = {'__name__': '__main__'}, []
        for i, cell in enumerate(cells):
            if picture(cell) and not exported(cell): continue
            try: run_cell(cell, names)
            except BaseException: continue
            good.append(i)
        os.write(w, ' '.join(map(str, good)).encode())
        os._exit(0)
    os.close(w)
    os.wait()
    return {int(i) for i in os.fdopen(r).read().split()}

def verdict(changed, rest, names, limit):
    "Run the changed cell and the rest, (cell, whether it usually passes), in a fork: 'killed' or 'survived'"
    pid = os.fork()
    if not pid:
        silent()
        random.seed(0)     # a fork is seeded anew
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        try:
            run_cell(changed, names)
            for cell, sure in rest:
                try: run_cell(cell, names)
                except BaseException:
                    if sure: raise
        except BaseException: os._exit(1)
        os._exit(0)
    return 'survived' if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==0 else 'killed'

def used():
    "CPU seconds of this process and its forks"
    return time.process_time()+sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

def read_cells(module):
    "The code cells of the page of `module`, without magic"
    tm = TransformerManager()
    found = nbformat.read(root/f'nbs/{PAGES[module]}.ipynb', 4).cells
    plain = [tm.transform_cell(c.source) for c in found if c.cell_type=='code' and not skipped(c.source)]
    return [cell for cell in plain if not cell.strip().startswith('get_ipython()')]

def drawn(cells, good, seed, n):
    "`n` mutants of the exported `cells`, in the order of the cells, because the page runs once"
    plan = []
    for i, cell in enumerate(cells):
        if i in good and exported(cell) and not picture(cell) and not bare_imports(cell):
            plan += [(i, *o) for o in mutants(cell)]
    random.Random(seed).shuffle(plan)
    return sorted(plan[:n], key=lambda o: o[0]), len(plan)

def advance(cells, places, good, names):
    "Run the cells in `places`"
    for k in places:
        try: run_cell(cells[k], names)
        except Exception:
            if k in good: raise       # the others may leave half of their names behind

def page(module, minutes, seed, limit, show):
    "Rows of one page"
    os.chdir((root/f'nbs/{PAGES[module]}').parent)
    cells, names, rows = read_cells(module), {'__name__': '__main__'}, []
    good = usable(cells)
    quiet = {i for i, c in enumerate(cells) if exported(c) or not picture(c)}
    plan, possible = drawn(cells, good, seed, 1+int(30*minutes))          # two CPU seconds each, roughly
    until, done = used()+60*minutes, 0
    for i, tree, words, at in plan:
        advance(cells, sorted(quiet & set(range(done, i))), good, names)
        done = i
        if used()>until: break
        rest = [(cells[j], j in good) for j in sorted(quiet) if j>i]
        rows.append(dict(module=module, cell=i, place=at, change=words, verdict=verdict(tree, rest, names, limit)))
    report(module, rows, possible, show)
    return rows

def report(module, rows, possible, show):
    survived = [r for r in rows if r['verdict']=='survived']
    if show: print(*survived, sep='\n')
    print(f'{module}: {len(rows)-len(survived)} of {len(rows)} killed, {possible} possible', flush=True)

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--minutes', type=float, default=15)
    p.add_argument('--module')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--limit', type=int, default=20)
    p.add_argument('--show', action='store_true')
    p.add_argument('--out', default=str(Path(__file__).parent/'mutants.csv'))
    a = p.parse_args()
    modules = [a.module] if a.module else list(PAGES)
    df = pd.concat([pd.DataFrame(page(m, a.minutes/len(modules), a.seed, a.limit, a.show)) for m in modules])
    facts = run_facts(torch.device('cpu'))
    if a.out: add_rows(a.out, df.assign(seed=a.seed, **facts), ['module', 'cell', 'place', 'change', 'seed'])
    print(df.groupby('module').verdict.value_counts().unstack(fill_value=0).to_string())
    sys.exit()
