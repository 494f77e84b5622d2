"""Train, and embed, for minutes or an hour, and look at the memory: does it stay, or does it grow?

    python results/trust/soak.py --minutes 60            # half for training, half for embedding; adds rows to results/trust/soak.csv
    python results/trust/soak.py --minutes 10 --workers 2 --kill   # and a loader's worker is killed now and then: the run must say so and go on with --resume
    python results/trust/soak.py --minutes .7 --most 8 --out ''    # the short form of CI: exit 1 if more than 8 MB were added; --leak 16 keeps 16 MB an epoch on purpose, to see that it is seen

The slope is a straight line through the process's resident memory (its workers' too), the first fifth left out as warming up; MB an hour.
`trimmed`: freed memory was given back before each look. Without that, training shows the C library's heap, which grows and shrinks with the checkpoints that pass through it."""
import argparse, ctypes, gc, os, random, shutil, signal, sys, tempfile, time, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1'); warnings.filterwarnings('ignore')
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.basics import Callback, CancelFitException, set_seed
from fastai.callback.progress import ProgressCallback
from torchvision.models import resnet18
from pgflkd.callbacks import RunLog
from pgflkd.data import reid_dls
from pgflkd.deploy import load_embedder
from pgflkd.learner import pgflkd_learner
from pgflkd.records import add_rows, run_facts
from pgflkd.shelf import embed_pictures
from pgflkd.synthetic import World, render_world, world_joints
torch.set_num_threads(1)
FEWEST = 6                   # looks at the memory, however slow the machine
DICE = random.Random(0)      # its own: training seeds the common one, and would throw the same again after each restart

def trim():
    "Give back to the system what was freed: what is left is held by somebody"
    gc.collect()
    try: ctypes.CDLL('libc.so.6').malloc_trim(0)
    except (OSError, AttributeError): pass

def children():
    return [int(p) for p in Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()]

def rss():
    "Resident memory of this process and its children, MB, trimmed"
    trim()
    def one(pid):
        try: return int(Path(f'/proc/{pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20
        except (FileNotFoundError, ProcessLookupError): return 0
    return sum(map(one, [os.getpid(), *children()]))

class Watch(Callback):
    "Note the memory after each epoch; stop when time is over; kill a worker in one epoch of `kill`"
    order = 95
    def __init__(self, until, points, kill=0, leak=0): self.until, self.points, self.kill, self.leak, self.kept = until, points, kill, leak, []
    def before_batch(self):
        if self.kill and self.training and self.iter==0 and DICE.random()<1/self.kill and (c := children()): os.kill(DICE.choice(c), signal.SIGKILL)
    def after_epoch(self):
        self.kept.append(np.ones(int(self.leak*2**17))); self.points.append((time.monotonic(), rss()))
        if time.monotonic()>self.until and len(self.points)>=FEWEST: raise CancelFitException

def train(minutes, df, out, workers, kill, leak):
    "(points, epochs, losses of a worker)"
    until, points, lost = time.monotonic()+60*minutes, [], 0
    while time.monotonic()<until:
        dls = reid_dls(df, world_joints(df), size=(32,32), bs=12, per_id=2, seed=0, num_workers=workers); set_seed(0)
        log = RunLog(out/'run.pth', 'soak', 0); learn = pgflkd_learner(dls, arch=resnet18, weights=None, cbs=[log, Watch(until, points, kill, leak)]); learn.remove_cb(ProgressCallback)
        try:
            with learn.no_logging(): learn.fit(10**6, 1e-4, start_epoch=log.resume())
        except RuntimeError as e:
            if 'worker' not in str(e): raise
            lost += 1; del dls, learn; gc.collect()     # torch says which worker died; the checkpoint of the last epoch stands, and the loop goes on with it
    return points, len(log.rows), lost

def embed(minutes, df, out, model):
    until, points, n = time.monotonic()+60*minutes, [], 0; net = load_embedder(model)
    while time.monotonic()<until or len(points)<FEWEST:
        embed_pictures(df, net, out/'gallery', bs=8); shutil.rmtree(out/'gallery'); n += len(df); points.append((time.monotonic(), rss()))
    return points, n

def added(points):
    "MB between the end of the first fifth and the end, medians of a fifth each"
    m = np.array(points)[:,1]; n = max(1, len(m)//5); return float(np.median(m[-n:])-np.median(m[n:2*n]))

def slope(points):
    "MB an hour, and the memory at the end"
    t, m = np.array(points).T; keep = t>=t[0]+(t[-1]-t[0])/5
    return float(np.polyfit((t[keep]-t[0])/3600, m[keep], 1)[0]) if keep.sum()>2 else float('nan'), float(m[-1])

def main(minutes, workers, kill, out, most, leak):
    tmp = Path(tempfile.mkdtemp(prefix='pgflkd-soak-')); rows = []
    try:
        df = render_world(World(n_train=6, n_test=3, n_distractors=0, n_cams=2, cams_per_person=2, frames=2), out=tmp/'world', progress=False)
        points, epochs, lost = train(minutes/2, df, tmp, workers, 3 if kill else 0, leak)
        rows.append(dict(what='training', count=epochs, unit='epochs', workers=workers, workers_killed=lost, points=len(points), slope_mb_per_hour=slope(points)[0], last_mb=slope(points)[1], minutes=(points[-1][0]-points[0][0])/60)); grown = dict(training=added(points))
        if not kill and not leak:
            learn = pgflkd_learner(reid_dls(df, world_joints(df), size=(32,32), bs=12, per_id=2, seed=0), arch=resnet18, weights=None)
            points, n = embed(minutes/2, df, tmp, learn.save_student(tmp/'student.safetensors'))
            rows.append(dict(what='embedding', count=n, unit='pictures', workers=0, workers_killed=0, points=len(points), slope_mb_per_hour=slope(points)[0], last_mb=slope(points)[1], minutes=(points[-1][0]-points[0][0])/60)); grown['embedding'] = added(points)
    finally: shutil.rmtree(tmp, ignore_errors=True)
    df = pd.DataFrame(rows).round(2).assign(trimmed=True, **run_facts(torch.device('cpu'))); print(df.iloc[:, :9].to_string(index=False))
    if out: add_rows(out, df, ['what','workers','commit','minutes'])
    print('MB added: ' + ', '.join(f'{k} {v:.1f}' for k,v in grown.items()))
    if most and max(grown.values())>most: sys.exit(1)

if __name__=='__main__':
    p = argparse.ArgumentParser(); p.add_argument('--minutes', type=float, default=60); p.add_argument('--workers', type=int, default=0); p.add_argument('--kill', action='store_true'); p.add_argument('--out', default=str(Path(__file__).parent/'soak.csv'))
    p.add_argument('--most', type=float, default=0); p.add_argument('--leak', type=float, default=0)
    a = p.parse_args(); main(a.minutes, a.workers, a.kill, a.out, a.most, a.leak)
