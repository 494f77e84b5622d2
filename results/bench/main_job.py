"""The main job then and now: `python results/bench/main_job.py OLD`, OLD a checkout of an earlier commit; writes main_job.csv.

Trains the baseline of the default preset for one epoch in both checkouts, on one thread, each with a cache of its own, and takes the CPU time of the whole process: rendering, training, ranking, pictures."""
import os, resource, subprocess, sys, tempfile
from pathlib import Path
import pandas as pd, torch
from pgflkd.records import add_rows, run_facts

here = Path(__file__).resolve().parents[2]

def job(checkout):
    "CPU seconds of the job in `checkout`"
    code = 'from pgflkd.commands.train import train_command as t; t(epochs=1, models="baseline", out="run")'
    with tempfile.TemporaryDirectory() as d:
        env = dict(os.environ, PYTHONPATH=str(checkout), PGFLKD_CACHE=f'{d}/cache', OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, '-c', code], cwd=d, env=env, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(getattr(after, k)-getattr(before, k) for k in ('ru_utime','ru_stime'))

rows = []
for which,checkout in (('then', Path(sys.argv[1]).resolve()), ('now', here)):
    commit = subprocess.run(['git','rev-parse','--short=12','HEAD'], cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()
    rows.append(dict(which=which, cpu_s=round(job(checkout), 1), **{**run_facts(torch.device('cpu')), 'commit': commit}))
    print(rows[-1], flush=True)
add_rows(here/'results/bench/main_job.csv', pd.DataFrame(rows), on=['which','device'])
