"""Which lines of the library do notebooks and tests run, together?

    python results/trust/cover.py --workers 2                        # the whole gate's tests, about an hour of CPU time; a module a row into results/trust/coverage.csv
    python results/trust/cover.py --tests test_notebooks.py -k "test_runs and 20_losses" --out ''   # the short form of CI
    python results/trust/cover.py --show losses                      # also the lines of that module that nothing ran

A chapter runs its own definitions, not the module that they are exported to: while it is counted, each definition that stands word for word in a module is compiled under the module's file and line.
Needs coverage (dev requirements). What is killed, and what ends in a fork without saying goodbye, is not counted."""
import argparse, json, os, re, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent.parent
RC = '''[run]
source = {root}/pgflkd
parallel = True
data_file = {dir}/data
concurrency = multiprocessing,thread
sigterm = True
[report]
omit = */_modidx.py
'''
CELLS = '''
def _count_cells(root):
    import ast
    from pathlib import Path
    def first(n): return min([n.lineno, *(d.lineno for d in getattr(n, 'decorator_list', []))])
    place = {ast.dump(n): (str(p), first(n)) for p in Path(root).glob('pgflkd/*.py') for n in ast.parse(p.read_text()).body}
    ip = get_ipython(); run = ip.run_ast_nodes
    async def counted(nodes, cell_name, interactivity='last_expr', compiler=compile, result=None):
        for i,n in enumerate(nodes):
            file, line = place.get(ast.dump(n), (cell_name, None))
            if line: ast.increment_lineno(n, line-first(n))
            if await run([n], file, interactivity if i==len(nodes)-1 else 'none', compiler=compiler, result=result): return True
    ip.run_ast_nodes = counted
_count_cells(%r)
'''

def count(args, workers):
    "Run pytest with `args`, count lines; the report of coverage as a dict, and how many tests failed"
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp); rc, site, startup = tmp/'rc', tmp/'site', tmp/'ipython/profile_default/startup'
        rc.write_text(RC.format(dir=tmp, root=root)); site.mkdir(); startup.mkdir(parents=True)
        (site/'sitecustomize.py').write_text('import coverage; coverage.process_startup()')    # every Python that starts from here on: kernels, workers, commands
        (startup/'00.py').write_text(CELLS % str(root))
        env = dict(os.environ, COVERAGE_PROCESS_START=str(rc), IPYTHONDIR=str(tmp/'ipython'), PYTHONPATH=os.pathsep.join([str(site), *filter(None, [os.environ.get('PYTHONPATH')])]))
        subprocess.run([sys.executable, '-m', 'pytest', '-q', '-n', str(workers), '-p', 'no:cacheprovider', f'--junitxml={tmp}/tests.xml', *args], cwd=root, env=env)
        failed = sum(map(int, re.search(r'errors="(\d+)" failures="(\d+)"', (tmp/'tests.xml').read_text()).groups()))
        for cmd in (['combine','-q',f'--rcfile={rc}',str(tmp)], ['json','-q',f'--rcfile={rc}','-o',str(tmp/'c.json')]): subprocess.run([sys.executable,'-m','coverage',*cmd], cwd=root, check=True)
        return json.loads((tmp/'c.json').read_text()), failed

def main(workers, tests, k, out, show):
    report, failed = count([f'.ci/{tests}', '-k', k or 'not test_coverage_short'], workers)     # that one would count itself
    import pandas as pd, torch
    from pgflkd.records import run_facts
    def row(name, s): return dict(module=name, lines=s['num_statements'], covered=s['covered_lines'], percent=round(s['percent_covered'], 1))
    files = {Path(f).stem: v for f,v in sorted(report['files'].items())}
    df = pd.DataFrame([*(row(n, v['summary']) for n,v in files.items()), row('all', report['totals'])]).sort_values('percent', kind='stable')
    print(df[df.covered>0].to_string(index=False))
    for n in filter(None, show.split(',')): print(n, files[n]['missing_lines'])
    if out: df.assign(tests_failed=failed, **run_facts(torch.device('cpu'))).to_csv(root/out, index=False)
    if failed: sys.exit(f'{failed} tests failed; what they would still have run is not counted')

if __name__=='__main__':
    p = argparse.ArgumentParser(); p.add_argument('--workers', type=int, default=1); p.add_argument('--tests', default=''); p.add_argument('-k', default=''); p.add_argument('--out', default='results/trust/coverage.csv'); p.add_argument('--show', default='')
    a = p.parse_args(); main(a.workers, a.tests, a.k, a.out, a.show)
