"""Train, and embed, for minutes or an hour, and look at the memory: does it stay, or does it grow?

    python results/trust/soak.py --minutes 60            # half training, half embedding; adds rows to soak.csv
    python results/trust/soak.py --minutes .7 --most 8 --out ''    # the short form of CI: exit 1 beyond 8 MB
    python results/trust/soak.py --minutes .7 --most 8 --leak 16 --out ''   # 16 MB an epoch are kept on purpose

The slope is a straight line through the resident memory of the process, the first fifth left out as warming up; MB an
hour. `trimmed`: freed memory was given back before each look. Without that, training shows the C library's heap, which
grows and shrinks with the checkpoints that pass through it.
"""
import argparse
import ctypes
import gc
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastai.basics import Callback, CancelFitException, set_seed
from fastai.callback.progress import ProgressCallback

from pgflkd.checkpoint import RunLog
from pgflkd.data import reid_dls
from pgflkd.deploy import export, load_embedder
from pgflkd.learner import pgflkd_learner
from pgflkd.records import add_rows, run_facts
from pgflkd.synthetic import World, render_world, world_joints

torch.set_num_threads(1)
FEWEST = 6                   # looks at the memory, however slow the machine

def memory():
    "Resident memory of this process, MB, after what was freed is given back to the system"
    gc.collect()
    try: ctypes.CDLL('libc.so.6').malloc_trim(0)
    except (OSError, AttributeError): pass
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages*os.sysconf('SC_PAGE_SIZE')/2**20

class Watch(Callback):
    "Note the memory after each epoch; stop when time is over; keep `leak` MB an epoch"
    order = 95
    def __init__(self, until, leak=0):
        self.until, self.leak = until, leak
        self.points, self.kept = [], []
    def after_epoch(self):
        self.kept.append(np.ones(int(self.leak*2**17)))
        self.points.append((time.monotonic(), memory()))
        if time.monotonic()>self.until and len(self.points)>=FEWEST: raise CancelFitException

def tiny_learner(df, cbs=()):
    dls = reid_dls(df, world_joints(df), size=(32, 32), bs=12, per_id=2, seed=0)
    set_seed(0)
    return pgflkd_learner(dls, 'resnet18', None, cbs=cbs)

def train(minutes, df, out, leak):
    "Looks at the memory, and the number of epochs"
    watch, log = Watch(time.monotonic()+60*minutes, leak), RunLog(out/'run.pth', 'soak', 0)
    learn = tiny_learner(df, [log, watch])
    learn.remove_cb(ProgressCallback)
    with learn.no_logging(): learn.fit(10**6, 1e-4)
    return watch.points, len(log.rows)

def embed(minutes, df, out):
    "Looks at the memory, and the number of pictures"
    net = load_embedder(export(tiny_learner(df), out/'student.safetensors'))
    until, points = time.monotonic()+60*minutes, []
    while time.monotonic()<until or len(points)<FEWEST:
        net.features(list(df.fn), bs=8)
        points.append((time.monotonic(), memory()))
    return points, len(points)*len(df)

def added(points):
    "MB between the end of the first fifth and the end, medians of a fifth each"
    mb = np.array(points)[:, 1]
    n = max(1, len(mb)//5)
    return float(np.median(mb[-n:])-np.median(mb[n:2*n]))

def row(what, points, count):
    "What is written of one half"
    t, mb = np.array(points).T
    keep = t>=t[0]+(t[-1]-t[0])/5
    slope = np.polyfit((t[keep]-t[0])/3600, mb[keep], 1)[0] if keep.sum()>2 else np.nan
    numbers = dict(count=count, points=len(points), slope_mb_per_hour=slope, last_mb=mb[-1])
    return dict(what=what, **numbers, minutes=(t[-1]-t[0])/60)

def soak(a):
    "What was looked at -> looks at the memory, and how much was done"
    tmp = Path(tempfile.mkdtemp(prefix='pgflkd-soak-'))
    try:
        world = World(n_train=6, n_test=3, n_distractors=0, n_cams=2, cams_per_person=2, frames=2)
        df = render_world(world, out=tmp/'world', progress=False)
        found = {'training': train(a.minutes/2, df, tmp, a.leak)}
        if not a.leak: found['embedding'] = embed(a.minutes/2, df, tmp)
        return found
    finally: shutil.rmtree(tmp, ignore_errors=True)

def main(a):
    found, facts = soak(a), run_facts(torch.device('cpu'))
    rows = pd.DataFrame([row(what, *o) for what, o in found.items()]).round(2)
    print(rows.to_string(index=False))
    if a.out: add_rows(a.out, rows.assign(trimmed=True, **facts), ['what', 'commit', 'minutes'])
    grown = {what: added(points) for what, (points, _) in found.items()}
    print('MB added: ' + ', '.join(f'{k} {v:.1f}' for k, v in grown.items()))
    if a.most and max(grown.values())>a.most: sys.exit(1)

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--minutes', type=float, default=60)
    p.add_argument('--out', default=str(Path(__file__).parent/'soak.csv'))
    p.add_argument('--most', type=float, default=0)
    p.add_argument('--leak', type=float, default=0)
    main(p.parse_args())
