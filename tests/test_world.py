"Two real processes that want the same world, one of them killed half-way; exact sizes at 384x128; memory bounded by the batch"
import json, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from pgflkd.synthetic import PRESETS, World, render_world, world_joints

WORLD = World(n_train=6, n_test=3, n_distractors=2, n_cams=3, cams_per_person=2, frames=6, size=(64,32))
CODE = '''
import sys, time
from pgflkd import synthetic
from pgflkd.synthetic import World, render_world
compose, slow = synthetic.compose, float(sys.argv[2])
def late(*a):
    print('drawing', flush=True); time.sleep(slow); return compose(*a)
synthetic.compose, synthetic._batch = late, lambda size: 16
df = render_world({world!r}, out=sys.argv[1], progress=False); print('pictures', len(df), flush=True)
'''

def start(out, slow): return subprocess.Popen([sys.executable, '-c', CODE.format(world=WORLD), str(out), str(slow)], stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))

def test_two_processes_one_world(tmp_path):
    a, b = start(tmp_path/'w', .2), start(tmp_path/'w', .2)
    logs = [p.communicate(timeout=300)[0] for p in (a,b)]
    assert [p.returncode for p in (a,b)]==[0,0] and all('pictures' in l for l in logs)
    assert sorted('drawing' in l for l in logs)==[False,True]                  # one drew, the other waited and found it
    assert [p.name for p in tmp_path.iterdir()]==['w']

def test_killed_half_way(tmp_path):
    a = start(tmp_path/'w', 600)
    assert a.stdout.readline().startswith('drawing')                                    # it holds the lock and has begun
    b = start(tmp_path/'w', 0); time.sleep(1); assert b.poll() is None
    left = [p.name for p in tmp_path.iterdir()]; assert len(left)==1 and left[0].startswith('.w-')
    a.send_signal(signal.SIGKILL); a.wait()
    log = b.communicate(timeout=300)[0]; assert b.returncode==0 and 'drawing' in log
    assert [p.name for p in tmp_path.iterdir()]==['w']                          # what the dead one left was swept up
    df = render_world(WORLD, out=tmp_path/'w', progress=False); assert all(Path(f).exists() for c in ('fn','mask','texture') for f in df[c])

def test_tall_pictures_keep_the_truth(tmp_path):
    from PIL import Image
    from pgflkd.world.people import _GROUP
    df = render_world(replace(WORLD, size=(96,32)), out=tmp_path/'t', progress=False); assert Image.open(df.fn[0]).size==(32,96)
    good = seen = 0
    for f,J in zip(df['mask'], world_joints(df)):
        M = np.asarray(Image.open(f))
        for k,(x,y,c) in enumerate(J):
            if c > .8: seen += 1; good += (M[max(int(y)-1,0):int(y)+2, max(int(x)-1,0):int(x)+2]==_GROUP[k].item()).any()
    assert seen > 300 and good/seen >= .98                                      # a third of the columns is gone
