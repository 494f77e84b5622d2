#!/usr/bin/env bash
# Lines of the library that notebooks and tests run together. A whole gate of CPU time (about 30 minutes on two cores): results/trust/coverage.sh [workers] [tests]
# Needs coverage (dev requirements). Writes results/trust/coverage.csv; a module a row.
set -euo pipefail
cd "$(dirname "$0")/../.."
py=${PYTHON:-.venv/bin/python}; dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cat > "$dir/rc" <<RC
[run]
source = pgflkd
parallel = True
data_file = $dir/data
concurrency = multiprocessing,thread
[report]
exclude_also = if __name__==
omit = */_modidx.py
RC
# every Python that starts from here on, kernels and forks and commands too, counts its lines
mkdir "$dir/site"; echo 'import coverage; coverage.process_startup()' > "$dir/site/sitecustomize.py"
COVERAGE_PROCESS_START=$dir/rc PYTHONPATH=$dir/site nice -n 19 "$py" -m pytest -q -n "${1:-1}" -p no:cacheprovider "${2:-.ci}" || echo 'some tests failed: the figure is of those that ran'
"$py" -m coverage combine -q --rcfile="$dir/rc" "$dir" || true
"$py" -m coverage json -q --rcfile="$dir/rc" -o "$dir/c.json"
"$py" - "$dir/c.json" <<'PY'
import json, sys, pandas as pd, torch
from pgflkd.runs import run_facts
d = json.load(open(sys.argv[1])); row = lambda n, s: dict(module=n, lines=s['num_statements'], covered=s['covered_lines'], percent=round(s['percent_covered'], 1))
rows = [row(k.split('/')[-1][:-3], v['summary']) for k,v in sorted(d['files'].items())]+[row('all', d['totals'])]
df = pd.DataFrame(rows).assign(**run_facts(torch.device('cpu'))); df.to_csv('results/trust/coverage.csv', index=False); print(df.tail(1).to_string(index=False)); print(df[df.percent<90][['module','percent']].to_string(index=False))
PY
