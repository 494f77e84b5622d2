"""Kill pgflkd_train and pgflkd_ablate (SIGKILL) at random moments, take them up again, and compare with an unbroken run, bit by bit: weights, optimiser, log, results.

    python results/trust/kill.py --points 5           # all of it: twelve kills, about 5 CPU minutes; writes results/trust/kills.csv
    python results/trust/kill.py --points 1 --out ''  # the short form of CI

A moment is a share of the CPU time that the unbroken run took, so a busy machine does not move it. Runs are forked from one process that has everything imported, and neither import nor run may open a socket.
The two pictures that pgflkd_train draws when all is trained are replaced by empty files: they cost as much as the training."""
import argparse, os, random, shutil, signal, socket, sys, tempfile, time, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1'); warnings.filterwarnings('ignore')
from pathlib import Path
def closed(*a, **k): raise RuntimeError('a socket was asked for')
socket.socket.connect, socket.create_connection, socket.getaddrinfo = closed, closed, closed
import pandas as pd, torch
torch.set_num_threads(1)
import pgflkd.commands.train
from pgflkd.commands.ablate import ablate_command
from pgflkd.commands.train import train_command
from pgflkd.keypoints import KeypointStore
from pgflkd.records import run_facts
from pgflkd.synthetic import World, render_world, world_joints
pgflkd.commands.train.ranking_picture  = lambda interps, rows, path: path.touch()
pgflkd.commands.train.response_picture = lambda learns, path: path.touch() or {k: 0. for k in learns}

SMALL  = dict(n_train=6, n_test=3, n_distractors=0, n_cams=2, cams_per_person=2, frames=2)      # a world of minutes, not hours: what is tested does not depend on its size
TRAIN  = dict(format='csv', epochs=3, bs=12, per_id=2, size='32x32', seed=3)                    # real files, so that a kill may also fall on the pasted and cut queries
ABLATE = dict(preset='pair', data='tiny:'+','.join(f'{k}={v}' for k,v in SMALL.items()), seeds='3', epochs=3, bs=12, per_id=2, size='32x32', keep=True)
BESIDE = ['commit', 'date', 'device', 'train_seconds', 'train_loss']      # the last: fastai smooths it from the start of each fit

def defaults(f):
    import inspect
    return {k: p.default for k,p in inspect.signature(f).parameters.items()}

def crops(to):
    "A CSV of rendered pictures and their keypoints; the arguments that name them"
    df = render_world(World(**SMALL), out=to/'world', seed=3, progress=False); df = df[df.query_set.isin(['','holistic'])].reset_index(drop=True)
    df[['fn','pid','camid','role']].to_csv(to/'crops.csv', index=False)
    KeypointStore([Path(f).name for f in df.fn], world_joints(df), (128,64)).save(to/'joints.npz')
    return dict(data=str(to/'crops.csv'), keypoints=str(to/'joints.npz'))

def start(command, home, cache):
    "Fork a process that runs `command` in `home`; its id"
    if pid := os.fork(): return pid
    code = 1
    try:
        log = os.open(home.with_suffix('.log'), os.O_CREAT|os.O_WRONLY|os.O_APPEND); os.dup2(log, 1); os.dup2(log, 2); os.environ['PGFLKD_CACHE'] = str(cache)
        socket.socket = closed
        if command=='pgflkd_train': train_command(**{**defaults(train_command), **TRAIN, 'out': str(home), 'resume': (home/'settings.json').exists()})
        else: ablate_command(**{**defaults(ablate_command), **ABLATE, 'out': str(home/'out'), 'work': str(home/'work')})
        code = 0
    except SystemExit as e: code = e.code
    except BaseException: import traceback; traceback.print_exc()
    finally: sys.stdout.flush(); sys.stderr.flush(); os._exit(code)

def cpu(pid):
    "CPU seconds that `pid` has used"
    try: f = Path(f'/proc/{pid}/stat').read_text().rsplit(') ', 1)[1].split()
    except (FileNotFoundError, ProcessLookupError): return float('inf')
    return (int(f[11])+int(f[12]))/os.sysconf('SC_CLK_TCK')

def finish(pid, at=None):
    "Wait for `pid`, or kill it when it has used `at` CPU seconds; (was it killed?, CPU seconds)"
    used = 0.
    while True:
        used = max(used, c) if (c := cpu(pid)) < float('inf') else used
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status)!=0: raise SystemExit(f'a run ended with {os.waitstatus_to_exitcode(status)}, see its log')
            return False, used
        if at is not None and used>=at: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); return True, used
        time.sleep(.005)

def table(path):
    df = pd.read_csv(path); return df.drop(columns=[c for c in BESIDE if c in df])

def same(a, b):
    "Do two nested states hold the same bits?"
    if isinstance(a, torch.Tensor): return a.dtype==b.dtype and torch.equal(*(o.contiguous().reshape(-1).view(torch.uint8) for o in (a,b)))
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a)==len(b) and all(map(same, a, b)) if isinstance(a, (list,tuple)) else a==b

def differences(a, b):
    "Files of the run `a` that differ in `b`, or are there too many or too few"
    names = lambda d: sorted(str(f.relative_to(d)) for f in d.rglob('*') if f.is_file() and f.name!='settings.json')
    if names(a)!=names(b): return sorted(set(names(a))^set(names(b)))
    def differ(f):
        x, y = a/f, b/f
        if f.endswith('.csv'): return not table(x).equals(table(y))
        if f.endswith('.pth'): x, y = (torch.load(o, weights_only=True) for o in (x,y)); return not all(same(x[k], y[k]) for k in ('model','opt'))
        return x.read_bytes()!=y.read_bytes()
    return [f for f in names(a) if differ(f)]

def stage(home):
    "What stood on the disk when it was killed"
    names = {f.name for f in home.rglob('*') if f.is_file()} if home.exists() else set()
    return next((s for f,s in (('results.csv','everything'), ('response.png','pictures'), ('runs.csv','rows of a run'), ('pgflkd.safetensors','both networks'), ('pgflkd.pth','checkpoint of the second'), ('baseline.safetensors','first network'),
        ('baseline.pth','checkpoint of the first'), ('run.pth','checkpoint'), ('list.json','queries'), ('settings.json','settings')) if f in names), 'nothing')

def main(points, seed, out, commands):
    tmp, rng, rows = Path(tempfile.mkdtemp(prefix='pgflkd-kill-', dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None)), random.Random(seed), []
    try:
        TRAIN.update(crops(tmp))
        for command in commands:
            whole = tmp/f'{command}-whole'; finish(start(command, whole, tmp/'cache'))          # renders the world as well
            again = tmp/f'{command}-again'; T = finish(start(command, again, tmp/'cache'))[1]   # the world is there: how long the rest takes
            wrong = differences(whole, again); assert not wrong, f'two unbroken runs differ: {wrong}'
            for i in range(points):
                home, moments, stages = tmp/f'{command}-{i}', [], []
                for kill in range(1+(i%3==2)):                                                   # every third run is killed twice
                    share = rng.uniform(.02, .98 if not kill else .5)
                    killed, used = finish(start(command, home, tmp/'cache'), at=share*T)
                    while not killed and not moments:                                            # it was done before: CPU seconds vary; again, and earlier
                        shutil.rmtree(home); share *= .7
                        killed, used = finish(start(command, home, tmp/'cache'), at=share*T)
                    if killed: moments.append(round(used/T, 3)); stages.append(stage(home))
                if not (home/'results.csv').exists(): finish(start(command, home, tmp/'cache'))
                wrong = differences(whole, home)
                rows.append(dict(command=command, point=i, kills=len(moments), killed_at=' '.join(map(str, moments)), on_disk=', '.join(stages), same_bits=not wrong, differs=' '.join(wrong), seed=seed, cpu_seconds_unbroken=round(T,1)))
                print(rows[-1], flush=True)
                shutil.rmtree(home)
    finally:
        for f in tmp.glob('*.log'):
            if sys.exc_info()[0]: print(f.name, f.read_text()[-1500:])
        shutil.rmtree(tmp, ignore_errors=True)
    df = pd.DataFrame(rows).assign(**run_facts(torch.device('cpu')))
    if out: Path(out).parent.mkdir(parents=True, exist_ok=True); df.to_csv(out, index=False)
    bad = int((~df.same_bits).sum()); print(f'{df.kills.sum()} kills, {bad} runs that ended differently')
    return bad

if __name__=='__main__':
    p = argparse.ArgumentParser(); p.add_argument('--points', type=int, default=5); p.add_argument('--seed', type=int, default=0); p.add_argument('--out', default=str(Path(__file__).parent/'kills.csv'))
    p.add_argument('--commands', default='pgflkd_train pgflkd_ablate'); a = p.parse_args()
    sys.exit(main(a.points, a.seed, a.out, a.commands.split()) > 0)
