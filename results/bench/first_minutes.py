"""The first ten minutes, measured: the README's first command from its first line to its last.

    python results/bench/first_minutes.py run                # three runs as the machine is, and three in float32
    python results/bench/first_minutes.py run --preset tiny --epochs 1 --times 1    # does the script work?
    python results/bench/first_minutes.py install            # packages, their size and time, with either build of torch

Each run is a process of its own in an empty home folder: no rendered world, no font list, nothing cached. Run it on a
machine that does nothing else. Rows go into `first_minutes.csv`; for several runs the medians. Linux counts into a
child's peak memory what its parent held when it was started: read `peak_gb` as at least that of this script, 0.7.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

import pandas as pd
import torch
from fastcore.script import call_parse

from pgflkd.precision import fast_bf16
from pgflkd.records import add_rows, run_facts

CSV = Path(__file__).with_suffix('.csv')
ROOT = CSV.parents[2]
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
FLOAT32 = ('import sys, pgflkd.precision as p; p.fast_bf16 = lambda device: False; '
           'from pgflkd.commands.train import train_command; train_command()')

def command(float32):
    "`pgflkd_train`, or the same with bfloat16 switched off"
    return [sys.executable, '-c', FLOAT32] if float32 else [str(Path(sys.executable).parent/'pgflkd_train')]

def watch(args, home):
    "Run `args` in the empty folder `home`: seconds to the first line, the first mAP and the end; CPU seconds; memory"
    env = dict(os.environ, HOME=str(home), PGFLKD_CACHE=str(home/'cache'), PYTHONUNBUFFERED='1')
    start, first = time.monotonic(), {}
    child = subprocess.Popen(args, cwd=home, env=env, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        first.setdefault('first_line_s', time.monotonic()-start)
        if 'mAP of' in line: first.setdefault('first_map_s', time.monotonic()-start)
        print(line, end='', flush=True)
    _, child.returncode, used = os.wait4(child.pid, 0)
    if child.returncode: raise SystemExit(f'{args} ended with {os.waitstatus_to_exitcode(child.returncode)}')
    cpu = used.ru_utime+used.ru_stime
    return first | dict(total_s=time.monotonic()-start, cpu_s=cpu, peak_gb=used.ru_maxrss/2**20)

def measure(float32, options):
    "One run: its times, memory, and the occluded mAP that it shows for each model"
    with tempfile.TemporaryDirectory() as folder:
        row = watch([*command(float32), *options, '--out', 'run'], Path(folder))
        results = pd.read_csv(f'{folder}/run/results.csv').set_index('query_set')
        shown = results.loc[['occluded']].set_index('model')
        precision = shown.precision.iloc[0]
        return row | dict(precision=precision) | {f'mAP_{m}': 100*o for m, o in shown.mAP.items()}

def runs(options, times):
    "The median of `times` runs for each precision that this machine has"
    rows = []
    for float32 in ([False, True] if fast_bf16(torch.device('cpu')) else [False]):
        found = pd.DataFrame([measure(float32, options) for _ in range(times)])
        row = found.drop(columns='precision').median().round(2).to_dict()
        rows.append(dict(what=' '.join(['pgflkd_train', *options]), precision=found.precision[0], runs=times) | row)
    return rows

def megabytes(url):
    "The size of what lies at `url`; 0 for this repository itself"
    if url.startswith('file:'):
        path = Path(urllib.request.url2pathname(url.removeprefix('file://')))
        return path.stat().st_size/2**20 if path.is_file() else 0
    head = urllib.request.Request(url, method='HEAD')          # noqa: S310 (an address that pip named)
    with urllib.request.urlopen(head, timeout=60) as answer:   # noqa: S310
        return int(answer.headers.get('Content-Length', 0))/2**20

def wanted(pip, report, *what):
    "What pip would install for `what`: name and version -> megabytes"
    subprocess.run([*pip, '--dry-run', '--ignore-installed', '--report', str(report), *what], check=True)
    found = json.loads(report.read_text())['install']
    names = [f'{o["metadata"]["name"]} {o["metadata"]["version"]}' for o in found]
    return {name: megabytes(o['download_info']['url']) for name, o in zip(names, found)}

def install(build):
    "A new environment with the default or the CPU `build` of torch: packages, megabytes, seconds"
    index = ['--index-url', CPU_INDEX]*(build=='cpu')
    torches = [*index, 'torch', 'torchvision']
    with tempfile.TemporaryDirectory() as folder:
        venv.create(f'{folder}/env', with_pip=True)
        pip = [f'{folder}/env/bin/python', '-m', 'pip', 'install', '-q']
        own, beside = split(pip, Path(folder)/'report', torches)
        if build=='cpu' and not any(o.endswith('+cpu') for o in own): raise OSError('the index has no such build')
        start = time.monotonic()
        for what in (torches, [str(ROOT)]): subprocess.run([*pip, '--no-cache-dir', *what], check=True)
        seconds = time.monotonic()-start
    torch_mb, beside_mb = sum(own.values()), sum(beside.values())
    counts = dict(packages=len(own)+len(beside), beside_torch=len(beside))
    return counts | dict(torch_mb=round(torch_mb), beside_mb=round(beside_mb), total_s=round(seconds))

def split(pip, report, torches):
    "What torch brings, and what the library brings beside it"
    own, every = wanted(pip, report, *torches), wanted(pip, report, str(ROOT))
    names = {o.split()[0] for o in (*own, *wanted(pip, report, 'torch', 'torchvision'), 'pgflkd')}
    return own, {o: size for o, size in every.items() if o.split()[0] not in names}

def installs():
    "Both builds; one that this machine's package index does not have is left out, and said"
    rows = []
    for build in ('default', 'cpu'):
        try: rows.append(dict(what=f'pip install, {build} build of torch', precision='', runs=1) | install(build))
        except (subprocess.CalledProcessError, OSError) as e: print(f'{build} build of torch: not here ({e})')
    return rows

@call_parse
def main(
    part:str,          # run or install
    preset:str='',     # another world than the command's own
    epochs:int=0,      # other than the recipe's
    times:int=3,       # runs of each kind
    out:str=str(CSV),  # table to write
):
    "Measure `part` and write its rows"
    options = ['--preset', preset]*bool(preset) + ['--epochs', str(epochs)]*bool(epochs)
    if preset=='tiny': options += ['--bs', '16']
    rows = installs() if part=='install' else runs(options, times)
    if not rows: raise SystemExit('nothing was measured')
    facts = dict(run_facts('cpu'), device=f'{run_facts("cpu")["device"]} of {os.cpu_count()}')
    print(add_rows(out, pd.DataFrame(rows).assign(**facts), on=['what', 'precision']).T.to_string())
