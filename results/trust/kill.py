"""Kill pgflkd_train and pgflkd_ablate (SIGKILL) at random moments, take them up again, compare with an unbroken run.

Bit by bit: weights, optimiser, log, results.

    python results/trust/kill.py --points 5           # all of it: twelve kills, about 5 CPU minutes; writes kills.csv
    python results/trust/kill.py --points 1 --out ''  # the short form of CI

A moment is a share of the CPU time that the unbroken run took, so a busy machine does not move it. Runs are forked
from one process that has everything imported, and neither import nor run may open a socket. The two pictures that
pgflkd_train draws when all is trained are replaced by empty files: they cost as much as the training.
"""
import argparse
import inspect
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')

def closed(*args, **kwargs): raise RuntimeError('a socket was asked for')

socket.socket.connect = closed
socket.create_connection = closed
socket.getaddrinfo = closed

import pandas as pd
import torch

torch.set_num_threads(1)
import pgflkd.interpret
from pgflkd import diagnose, occlude, robustness   # what the commands import when they have work to do  # noqa: F401
from pgflkd.commands import train
from pgflkd.commands.ablate import ablate_command
from pgflkd.commands.train import train_command
from pgflkd.keypoints import KeypointStore
from pgflkd.records import run_facts
from pgflkd.synthetic import World, render_world, world_joints

def empty_picture(found, rows, path): path.touch()

def no_response(learns, path, *args):
    path.touch()
    return dict.fromkeys(learns, 0.)

pgflkd.interpret.ranking_picture = empty_picture
train._response_picture = no_response

SMALL = dict(n_train=6, n_test=3, n_distractors=0, n_cams=2, cams_per_person=2, frames=2)
SHORT = dict(epochs=3, bs=12, per_id=2, size='32x32', arch='resnet18', weights='none')
TRAIN = dict(SHORT, format='csv', seed=3)        # real files: a kill may also fall on the pasted and cut queries
HAMLET = 'tiny:' + ','.join(f'{k}={v}' for k, v in SMALL.items())
ABLATE = dict(SHORT, preset='pair', data=HAMLET, seeds='3', keep=True)
BESIDE = ['commit', 'date', 'device', 'train_seconds', 'train_loss']   # fastai smooths the last from the start of a fit

def crops(to):
    "A CSV of rendered pictures and their keypoints; the arguments that name them"
    df = render_world(World(**SMALL), out=to/'world', seed=3, progress=False)
    df = df[df.query_set.isin(['', 'holistic'])].reset_index(drop=True)
    df[['fn', 'pid', 'camid', 'role']].to_csv(to/'crops.csv', index=False)
    KeypointStore([Path(f).name for f in df.fn], world_joints(df), (128, 64)).save(to/'joints.npz')
    return dict(data=str(to/'crops.csv'), keypoints=str(to/'joints.npz'))

def defaults(f):
    return {k: p.default for k, p in inspect.signature(f).parameters.items()}

def work(command, home):
    "Run `command` in the folder `home`, with --resume where that has begun"
    if command=='pgflkd_ablate':
        folders = dict(out=str(home/'out'), work=str(home/'work'))
        return ablate_command(**{**defaults(ablate_command), **ABLATE, **folders})
    resume = (home/'settings.json').exists()
    given = dict(resume=True) if resume else TRAIN
    return train_command(**{**defaults(train_command), **given, 'out': str(home)})

def start(command, home, cache):
    "Fork a process that runs `command` in `home`; its id"
    if pid := os.fork(): return pid
    code = 1
    try:
        log = os.open(home.with_suffix('.log'), os.O_CREAT|os.O_WRONLY|os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ['PGFLKD_CACHE'] = str(cache)
        socket.socket = closed
        work(command, home)
        code = 0
    except SystemExit as e: code = e.code
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

def cpu(pid):
    "CPU seconds that `pid` has used, 0 if it is gone"
    try: fields = Path(f'/proc/{pid}/stat').read_text().rsplit(') ', 1)[1].split()
    except (FileNotFoundError, ProcessLookupError): return 0.
    return (int(fields[11])+int(fields[12]))/os.sysconf('SC_CLK_TCK')

def finish(pid, at=None):
    "Wait for `pid`, or kill it when it has used `at` CPU seconds; (was it killed?, CPU seconds)"
    used = 0.
    while True:
        used = max(used, cpu(pid))
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code: raise SystemExit(f'a run ended with {code}, see its log')
            return False, used
        if at is not None and used>=at:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True, used
        time.sleep(.005)

def table(path):
    df = pd.read_csv(path)
    return df.drop(columns=[c for c in BESIDE if c in df])

def bits(t): return t.contiguous().reshape(-1).view(torch.uint8)

def same(a, b):
    "Do two nested states hold the same bits?"
    if isinstance(a, torch.Tensor): return a.dtype==b.dtype and torch.equal(bits(a), bits(b))
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a)==len(b) and all(map(same, a, b))
    return a==b

def names(folder):
    found = [f for f in folder.rglob('*') if f.is_file() and f.name not in ('settings.json', '.lock')]
    return sorted(str(f.relative_to(folder)) for f in found)

def differ(x, y):
    "Do the files `x` and `y` say different things?"
    if x.suffix=='.csv': return not table(x).equals(table(y))
    if x.suffix!='.pth': return x.read_bytes()!=y.read_bytes()
    a, b = (torch.load(o, weights_only=True) for o in (x, y))
    return not all(same(a[k], b[k]) for k in ('model', 'opt'))

def differences(a, b):
    "Files of the run `a` that differ in `b`, or are there too many or too few"
    if names(a)!=names(b): return sorted(set(names(a))^set(names(b)))
    return [f for f in names(a) if differ(a/f, b/f)]

STAGES = {'results.csv': 'everything', 'response.png': 'pictures', 'runs.csv': 'rows of a run',
          'pgflkd.safetensors': 'both networks', 'pgflkd.pth': 'checkpoint of the second',
          'baseline.safetensors': 'first network', 'baseline.pth': 'checkpoint of the first',
          'run.pth': 'checkpoint', 'occluded': 'queries', 'settings.json': 'settings'}

def stage(home):
    "What stood on the disk when it was killed"
    there = {f.name for f in home.rglob('*')}
    return next((words for f, words in STAGES.items() if f in there), 'nothing')

def broken_run(command, home, cache, seconds, rng, kills):
    "Kill the run in `home` at `kills` random moments of its `seconds`, let it end; (moments, stages)"
    moments, stages = [], []
    for kill in range(kills):
        share = rng.uniform(.02, .98 if not kill else .5)
        killed, used = finish(start(command, home, cache), at=share*seconds)
        while not killed and not moments:                    # it was done before: CPU seconds vary; again, and earlier
            shutil.rmtree(home)
            share *= .7
            killed, used = finish(start(command, home, cache), at=share*seconds)
        if not killed: break
        moments.append(round(used/seconds, 3))
        stages.append(stage(home))
    if not (home/'results.csv').exists(): finish(start(command, home, cache))
    return moments, stages

def ask(command, points, rng, tmp):
    "One row for each broken run of `command`"
    whole, again = tmp/f'{command}-whole', tmp/f'{command}-again'
    finish(start(command, whole, tmp/'cache'))                # renders the world as well
    seconds = finish(start(command, again, tmp/'cache'))[1]   # the world is there: how long the rest takes
    wrong = differences(whole, again)
    assert not wrong, f'two unbroken runs differ: {wrong}'
    for i in range(points):
        home = tmp/f'{command}-{i}'
        moments, stages = broken_run(command, home, tmp/'cache', seconds, rng, 2 if i%3==2 else 1)
        wrong = differences(whole, home)
        at, on_disk = ' '.join(map(str, moments)), ', '.join(stages)
        yield dict(command=command, point=i, kills=len(moments), killed_at=at, on_disk=on_disk, same_bits=not wrong,
                   differs=' '.join(wrong), cpu_seconds_unbroken=round(seconds, 1))
        shutil.rmtree(home)

def main(points, seed, out, commands):
    shm = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    tmp, rng, rows = Path(tempfile.mkdtemp(prefix='pgflkd-kill-', dir=shm)), random.Random(seed), []
    try:
        TRAIN.update(crops(tmp))
        for command in commands:
            for row in ask(command, points, rng, tmp):
                rows.append(row)
                print(row, flush=True)
    finally:
        for f in tmp.glob('*.log') if sys.exc_info()[0] else (): print(f.name, f.read_text()[-1500:])
        shutil.rmtree(tmp, ignore_errors=True)
    df = pd.DataFrame(rows).assign(seed=seed, **run_facts(torch.device('cpu')))
    if out: df.to_csv(out, index=False)
    bad = int((~df.same_bits).sum())
    print(f'{df.kills.sum()} kills, {bad} runs that ended differently')
    return bad

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--points', type=int, default=5)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', default=str(Path(__file__).parent/'kills.csv'))
    p.add_argument('--commands', default='pgflkd_train pgflkd_ablate')
    a = p.parse_args()
    sys.exit(main(a.points, a.seed, a.out, a.commands.split())>0)
