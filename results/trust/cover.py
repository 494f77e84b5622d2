"""Which lines of the library do notebooks and tests run, together?

    python results/trust/cover.py --workers 2           # all tests, about an hour of CPU time; writes coverage.csv
    python results/trust/cover.py --tests test_notebooks.py -k "test_runs and losses" --out ''   # one page
    python results/trust/cover.py --show losses         # also the lines of that module that nothing ran

A page runs its own definitions, not the module that they are exported to: while it is counted, each definition that
stands word for word in a module is compiled under the module's file and line. Needs coverage (dev requirements). What
is killed, and what ends in a fork without saying goodbye, is not counted.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from pgflkd.records import run_facts

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
    place = {}
    for path in Path(root).rglob('pgflkd/**/*.py'):
        for n in ast.parse(path.read_text()).body: place[ast.dump(n)] = str(path), first(n)
    ip = get_ipython()
    run = ip.run_ast_nodes
    async def counted(nodes, cell_name, interactivity='last_expr', compiler=compile, result=None):
        for i,n in enumerate(nodes):
            file, line = place.get(ast.dump(n), (cell_name, None))
            if line: ast.increment_lineno(n, line-first(n))
            shown = interactivity if i==len(nodes)-1 else 'none'
            if await run([n], file, shown, compiler=compiler, result=result): return True
    ip.run_ast_nodes = counted
_count_cells(%r)
'''

def prepared(tmp):
    "Files that make every Python that starts from here on count its lines: kernels, workers, commands; the environment"
    rc, site, startup = tmp/'rc', tmp/'site', tmp/'ipython/profile_default/startup'
    rc.write_text(RC.format(dir=tmp, root=root))
    site.mkdir()
    startup.mkdir(parents=True)
    (site/'sitecustomize.py').write_text('import coverage; coverage.process_startup()')
    (startup/'00.py').write_text(CELLS % str(root))
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get('PYTHONPATH')])])
    return rc, dict(os.environ, COVERAGE_PROCESS_START=str(rc), IPYTHONDIR=str(tmp/'ipython'), PYTHONPATH=paths)

def count(args, workers):
    "Run pytest with `args`, count lines; the report of coverage as a dict, and how many tests failed"
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        rc, env = prepared(tmp)
        xml, report = tmp/'tests.xml', tmp/'c.json'
        options = ['-q', '-p', 'no:cacheprovider', f'--junitxml={xml}', '-n', str(workers)]
        subprocess.run([sys.executable, '-m', 'pytest', *options, *args], cwd=root, env=env)
        failed = sum(map(int, re.search(r'errors="(\d+)" failures="(\d+)"', xml.read_text()).groups()))
        coverage = [sys.executable, '-m', 'coverage']
        subprocess.run([*coverage, 'combine', '-q', f'--rcfile={rc}', str(tmp)], cwd=root, check=True)
        subprocess.run([*coverage, 'json', '-q', f'--rcfile={rc}', '-o', str(report)], cwd=root, check=True)
        return json.loads(report.read_text()), failed

def row(name, s):
    percent = round(s['percent_covered'], 1)
    return dict(module=name, lines=s['num_statements'], covered=s['covered_lines'], percent=percent)

def main(a):
    report, failed = count([f'tests/{a.tests}', *(['-k', a.k] if a.k else [])], a.workers)
    files = {f.removeprefix('pgflkd/').removesuffix('.py').replace('/', '.'): o for f, o in report['files'].items()}
    rows = [*(row(name, o['summary']) for name, o in sorted(files.items())), row('all', report['totals'])]
    df = pd.DataFrame(rows).sort_values('percent', kind='stable')
    print(df[df.covered>0].to_string(index=False))
    for name in filter(None, a.show.split(',')): print(name, files[name]['missing_lines'])
    if a.out: df.assign(tests_failed=failed, **run_facts('cpu')).to_csv(root/a.out, index=False)
    if failed: sys.exit(f'{failed} tests failed; what they would still have run is not counted')

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--workers', type=int, default=1)
    p.add_argument('--tests', default='')
    p.add_argument('-k', default='')
    p.add_argument('--out', default='results/trust/coverage.csv')
    p.add_argument('--show', default='')
    main(p.parse_args())
