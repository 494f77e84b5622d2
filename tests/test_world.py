"""The rendered world, to the byte; two real processes that want the same one, one of them killed half-way; what memory
a batch needs. `world_hashes.json` was made by the first code that drew this world."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import pytest
import torch
from PIL import Image

from pgflkd import synthetic
from pgflkd.synthetic import PRESETS, World, render_world, world_joints

TALL = replace(PRESETS['occluded_tall'], n_train=8, n_test=6, n_distractors=4, totals=(90,20,60))
WORLDS = {'tiny:0': (PRESETS['tiny'], 0), 'tiny:1': (PRESETS['tiny'], 1), 'small:0': (PRESETS['small'], 0),
          'tall:0': (TALL, 0)}
KNOWN = json.loads((Path(__file__).parent/'world_hashes.json').read_text())
HERE = dict(torch=torch.__version__.split('+')[0], pillow=PIL.__version__, numpy=np.__version__,
            cpu=torch.backends.cpu.get_cpu_capability())
same_machine = pytest.mark.skipif(HERE!=KNOWN['made_with'],
                                  reason=f'made with {KNOWN["made_with"]}: elsewhere a last bit may differ')

def short(content):
    "First 16 digits of SHA-256 of text or bytes"
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]

def picture_hash(folder, name):
    "Hash of a picture and its mask as they were written"
    files = folder/f'images/{name}.jpg', folder/f'masks/{name}.png'
    return ''.join(short(f.read_bytes()) for f in files)

def check_whole(name, folder):
    "Compare every file of a world"
    world, seed = WORLDS[name]
    known = KNOWN['worlds'][name]
    df = render_world(world, out=folder, seed=seed, progress=False)
    assert short((folder/'table.csv').read_bytes())==known['table']
    assert short(world_joints(df).tobytes())==known['joints']
    assert short(''.join(short(f.read_bytes()) for f in sorted(folder.glob('textures/*'))))==known['textures']
    pictures = [picture_hash(folder, Path(fn).stem) for fn in df.fn]
    wrong = [i for i,digest in known['pictures'].items() if short(pictures[int(i)])!=digest]
    assert not wrong, f'{len(wrong)} of {len(known["pictures"])} pictures of {name} differ, for example {wrong[:5]}'
    assert short(''.join(pictures))==known['all_pictures']

@same_machine
@pytest.mark.parametrize('name', ['tiny:0','tiny:1'])
def test_every_byte(name, tmp_path):
    check_whole(name, tmp_path/'w')

@pytest.mark.slow
@same_machine
@pytest.mark.parametrize('name', ['small:0','tall:0'])
def test_every_byte_of_larger_worlds(name, tmp_path):
    check_whole(name, tmp_path/'w')

@same_machine
@pytest.mark.parametrize('name', ['small:0','tall:0'])
def test_some_batches(name, tmp_path):
    "The batches in which the known pictures are"
    world, seed = WORLDS[name]
    stage = synthetic.Stage(world, seed)
    table = synthetic.plan(world, seed, stage.cams)
    table['name'] = table.index.astype(str)
    known, n = KNOWN['worlds'][name]['pictures'], synthetic._batch(world.size)
    for folder in ('images','masks'): (tmp_path/folder).mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                                     # as each core of `render_world`
    for batch in sorted({int(i)//n for i in known}):
        synthetic._draw(stage, tmp_path, table[batch*n:(batch+1)*n])
    torch.set_num_threads(threads)
    wrong = [i for i,digest in known.items() if short(picture_hash(tmp_path, i))!=digest]
    assert not wrong, f'{len(wrong)} of {len(known)} pictures of {name} differ, for example {wrong[:5]}'

def test_the_key_sees_every_module(tmp_path, monkeypatch):
    "A letter more in a module, and another world is drawn; in the cache it gets another folder"
    monkeypatch.setenv('PGFLKD_CACHE', str(tmp_path))
    world = World(n_train=2, n_test=1, n_distractors=0, n_cams=2, cams_per_person=2, frames=1, size=(32,16))
    render_world(world, progress=False)
    render_world(world, progress=False)
    def worlds(): return sorted(p.name for p in tmp_path.glob('world-*'))
    assert len(worlds())==1
    for i,module in enumerate(synthetic.MODULES):
        changed = tmp_path/f'{i}.py'
        changed.write_text(Path(module.__file__).read_text()+'\n')
        with monkeypatch.context() as m:
            m.setattr(module, '__file__', str(changed))          # a module that moved and changed
            render_world(world, progress=False)
        assert len(worlds())==i+2, module.__name__

WORLD = World(n_train=6, n_test=3, n_distractors=2, n_cams=3, cams_per_person=2, frames=6, size=(64,32))
CODE = '''
import sys, time
from pgflkd import synthetic
from pgflkd.synthetic import World, render_world
compose, slow = synthetic.compose, float(sys.argv[2])
def late(*args):
    print('drawing', flush=True)
    time.sleep(slow)
    return compose(*args)
def sixteen(size): return 16
synthetic.compose, synthetic._batch = late, sixteen
df = render_world({world!r}, out=sys.argv[1], progress=False)
print('pictures', len(df), flush=True)
'''

def start(out, slow):
    "A process that renders WORLD into `out`, `slow` seconds a batch"
    command = [sys.executable, '-c', CODE.format(world=WORLD), str(out), str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))

def visible(folder): return [p.name for p in folder.iterdir() if not p.name.startswith('.')]
def half_done(folder): return [p for p in folder.glob('.w.making/*') if p.is_dir()]

@pytest.mark.slow
def test_two_processes_one_world(tmp_path):
    both = start(tmp_path/'w', .2), start(tmp_path/'w', .2)
    logs = [p.communicate(timeout=300)[0] for p in both]
    assert [p.returncode for p in both]==[0,0]
    assert all('pictures' in log for log in logs)
    assert sorted('drawing' in log for log in logs)==[False,True]           # one drew, the other waited and found it
    assert visible(tmp_path)==['w'] and not half_done(tmp_path)

@pytest.mark.slow
def test_killed_half_way(tmp_path):
    first = start(tmp_path/'w', 600)
    assert first.stdout.readline().startswith('drawing')                    # it holds the lock and has begun
    second = start(tmp_path/'w', 0)
    time.sleep(1)
    assert second.poll() is None
    assert visible(tmp_path)==[] and len(half_done(tmp_path))==1
    first.send_signal(signal.SIGKILL)
    first.wait()
    log = second.communicate(timeout=300)[0]
    assert second.returncode==0 and 'drawing' in log
    assert visible(tmp_path)==['w'] and not half_done(tmp_path)             # what the dead one left was swept up
    df = render_world(WORLD, out=tmp_path/'w', progress=False)
    for name in [*df.fn, *df['mask'], *df.texture]: assert Path(name).exists()

def test_many_people_to_find():
    "150 people to learn from as in `small`, and 800 queries in each set"
    f = synthetic.plan(PRESETS['many'], 1000)
    assert f.who[f.role=='train'].nunique()==PRESETS['small'].n_train
    assert f[f.query_set!=''].groupby('query_set').size().to_dict()==dict(holistic=800, occluded=800, partial=800)

def test_obstacles_anywhere():
    "The dial turns obstacles evenly, a camera's own always in the same way, and changes nothing else of the plan"
    world = replace(PRESETS['small'], occluded_train=1.)
    still, turned = [synthetic.plan(replace(world, anywhere=dial), 0) for dial in (False,True)]
    assert (still.turn==0).all() and still.drop(columns='turn').equals(turned.drop(columns='turn'))
    behind = turned[turned.occluded]
    assert behind[behind.own].groupby('thing').turn.nunique().max()==1
    shares = behind.drop_duplicates('tracklet').turn.value_counts(normalize=True)
    assert len(shares)==4 and shares.between(.18, .32).all(), shares

def test_joints_of_two_worlds(tmp_path):
    "In a table of two worlds each picture has the joints of its own"
    worlds = [render_world('tiny', out=tmp_path/f'{seed}', seed=seed, progress=False) for seed in (0, 1)]
    both = pd.concat(worlds).sample(frac=1, random_state=0)
    each = pd.concat([pd.Series(list(world_joints(o)), o.fn) for o in worlds])
    assert np.array_equal(world_joints(both), np.stack(each[both.fn]))

def test_tall_pictures_keep_the_truth(tmp_path):
    from pgflkd.world.people import _GROUP
    df = render_world(replace(WORLD, size=(96,32)), out=tmp_path/'t', progress=False)
    assert Image.open(df.fn[0]).size==(32,96)
    good = seen = 0
    for name,joints in zip(df['mask'], world_joints(df)):
        mask = np.asarray(Image.open(name))
        for k,(x,y,c) in enumerate(joints):
            if c <= .8: continue
            seen += 1
            around = mask[max(int(y)-1,0):int(y)+2, max(int(x)-1,0):int(x)+2]
            good += (around==_GROUP[k].item()).any()
    assert seen > 300 and good/seen >= .98                                  # a third of the columns is gone
