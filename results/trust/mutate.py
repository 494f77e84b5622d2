"""Change one operator, number or comparison at a time in losses, metrics and the transforms, and ask the chapters' own tests whether they notice.

    python results/trust/mutate.py --minutes 15          # adds rows to results/trust/mutants.csv: killed, survived
    python results/trust/mutate.py --module losses --show  # prints each survivor

A chapter runs once up to the cell that is changed; a fork of the process then runs the changed cell and the rest, pictures left out, and ends at the first failure (killed) or after `--limit` CPU seconds (killed: it hangs).
Mutants are drawn at random with `--seed`, as many as the time allows; the same mutants in the same order for the same seed."""
import argparse, ast, copy, os, random, re, resource, sys, time, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1'); os.environ.setdefault('MPLBACKEND', 'agg'); warnings.filterwarnings('ignore')
from pathlib import Path
import nbformat, pandas as pd, torch
from IPython.core.inputtransformer2 import TransformerManager
torch.set_num_threads(1)
from pgflkd.records import add_rows, run_facts

root = Path(__file__).parent.parent.parent
CHAPTERS = dict(losses='20_losses', metrics='14_metrics', warp='13b_warp', data='13_data')
SWAP = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd, ast.Invert: ast.UAdd, ast.Not: ast.UAdd}
NAMES = dict(amax='amin', amin='amax', max='min', min='max', mean='sum', sum='mean', any='all', all='any', sort='argsort', softmax='log_softmax', log_softmax='softmax', detach='clone', ones='zeros', zeros='ones', argmax='argmin', argmin='argmax')

def points(tree):
    "Places in `tree` that can be changed: (node, field, new value, line:column)"
    res, types = [], {m for n in ast.walk(tree) for a in (getattr(n, 'annotation', None), getattr(n, 'returns', None)) if isinstance(a, ast.AST) for m in ast.walk(a)}
    for n in ast.walk(tree):
        if n in types: continue
        line = f"{getattr(n, 'lineno', 0)}:{getattr(n, 'col_offset', 0)}"
        if isinstance(n, ast.BinOp) and type(n.op) in SWAP: res.append((n, 'op', SWAP[type(n.op)](), line))
        if isinstance(n, ast.UnaryOp) and type(n.op) in SWAP and not (isinstance(n.op, ast.USub) and isinstance(n.operand, ast.Constant) and n.operand.value==1): res.append((n, 'op', SWAP[type(n.op)](), line))
        if isinstance(n, ast.BoolOp): res.append((n, 'op', SWAP[type(n.op)](), line))
        if isinstance(n, ast.Compare) and type(n.ops[0]) in SWAP: res.append((n, 'ops', [SWAP[type(n.ops[0])](), *n.ops[1:]], line))
        if isinstance(n, ast.Constant) and type(n.value) in (int, float): res.append((n, 'value', n.value+1, line))
        if isinstance(n, ast.Constant) and type(n.value) is bool: res.append((n, 'value', not n.value, line))
        if isinstance(n, ast.Attribute) and n.attr in NAMES: res.append((n, 'attr', NAMES[n.attr], line))
        if isinstance(n, ast.IfExp): res.append((n, 'test', ast.Constant(True), line))
    return res

def mutants(source):
    "(changed source as a tree, words, line:column) for each change of one exported cell; texts and annotations stay"
    tree = ast.parse(source)
    for i in range(len(points(tree))):
        t = ast.parse(source); n, field, new, line = points(t)[i]; was = ast.unparse(n); setattr(n, field, new); ast.fix_missing_locations(t)
        if (now := ast.unparse(n))!=was: yield t, f'{was[:60]} -> {now[:60]}', line

def run_cell(code, ns):
    tree = ast.parse(code) if isinstance(code, str) else code
    exec(compile(ast.fix_missing_locations(tree), '<cell>', 'exec'), ns)

def exported(src): return bool(re.search(r'#\|\s*exports?\b', src))
def picture(src): return bool(re.search(r'plt\.|subplots|fig-alt|show_batch|\.show\(|imshow|display\(', src)) and not re.search(r'test_|assert', src)

def usable(cells):
    "Places of the cells that run when the pictures are left out, found in a fork"
    r, w = os.pipe()
    if not os.fork():
        null = os.open(os.devnull, os.O_WRONLY); os.dup2(null, 1); os.dup2(null, 2); ns, good = {'__name__': '__main__'}, []
        for i,c in enumerate(cells):
            try: (picture(c) and not exported(c)) or run_cell(c, ns) or good.append(i)
            except BaseException: pass
        os.write(w, ' '.join(map(str, good)).encode()); os._exit(0)
    os.close(w); os.wait(); return {int(i) for i in os.fdopen(r).read().split()}

def verdict(changed, rest, ns, limit):
    "Run the changed cell and the rest, (cell, whether it usually passes), in a fork: 'killed' or 'survived'"
    if not (pid := os.fork()):
        null = os.open(os.devnull, os.O_WRONLY); os.dup2(null, 1); os.dup2(null, 2); random.seed(0)     # a fork is seeded anew
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        try:
            run_cell(changed, ns)
            for c,sure in rest:
                try: run_cell(c, ns)
                except BaseException:
                    if sure: raise
        except BaseException: os._exit(1)
        os._exit(0)
    return 'survived' if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==0 else 'killed'

def chapter(module, minutes, seed, limit, show):
    "Rows of one chapter"
    os.chdir(root/'nbs'); tm = TransformerManager(); ns = {'__name__': '__main__'}
    cells = [tm.transform_cell(c.source) for c in nbformat.read(root/f'nbs/{CHAPTERS[module]}.ipynb', 4).cells if c.cell_type=='code' and not re.search(r'#\|\s*(eval:\s*false|slow|cuda|notest)', c.source)]
    cells = [c for c in cells if not c.strip().startswith('get_ipython()')]
    good, quiet = usable(cells), {i for i,c in enumerate(cells) if exported(c) or not picture(c)}; print(f'{module}: {len(good)} of {len(cells)} cells run without the pictures', flush=True)
    plan = [(i, t, w, at) for i,c in enumerate(cells) if i in good and exported(c) and not picture(c) and not re.match(r'\s*(import|from)', re.sub(r'#.*\n','',c)) for t,w,at in mutants(c)]
    random.Random(seed).shuffle(plan); until, rows, i0 = time.process_time()+60*minutes, [], -1
    used = lambda: time.process_time()+sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]); until = used()+60*minutes
    take = []; per = max(1, int(60*minutes/2))          # two CPU seconds each, roughly; then in the order of the cells, because the chapter runs once
    take = sorted(plan[:per], key=lambda o: o[0])
    for i,t,words,at in take:
        while i0 < i-1:
            i0 += 1
            if i0 not in quiet: continue
            try: run_cell(cells[i0], ns)
            except Exception:
                if i0 in good: raise       # the others may leave half of their names behind, as in the fork that found the good ones
        if used()>until: break
        v = verdict(t, [(c, j in good) for j,c in enumerate(cells) if j>i and j in quiet], ns, limit); rows.append(dict(module=module, cell=i, place=at, change=words, verdict=v))
        if show and v=='survived': print(rows[-1], flush=True)
    print(f"{module}: {sum(r['verdict']=='killed' for r in rows)} of {len(rows)} killed, {len(plan)} possible", flush=True)
    return rows

if __name__=='__main__':
    p = argparse.ArgumentParser(); p.add_argument('--minutes', type=float, default=15); p.add_argument('--module'); p.add_argument('--seed', type=int, default=0); p.add_argument('--limit', type=int, default=20)
    p.add_argument('--show', action='store_true'); p.add_argument('--out', default=str(Path(__file__).parent/'mutants.csv')); a = p.parse_args()
    names, rows = [a.module] if a.module else list(CHAPTERS), []
    for m in names: rows += chapter(m, a.minutes/len(names), a.seed, a.limit, a.show)
    df = pd.DataFrame(rows)
    if a.out: os.chdir(root); add_rows(a.out, df.assign(seed=a.seed, **run_facts(torch.device('cpu'))), ['module','cell','place','change','seed'])
    print(df.groupby('module').verdict.value_counts().unstack(fill_value=0).to_string())
