"""Feed every reader of this library, and the options of its commands, with what is nearly right and what is nonsense.

Allowed: an answer, or an error that `guarded` turns into one line. Everything else is a find.

    python results/trust/fuzz.py --cases 120000       # writes results/trust/fuzz.csv, a few CPU minutes
    python results/trust/fuzz.py --cases 4000 --out ''  # the short form of CI
    python results/trust/fuzz.py --target pictures --case 1234 --show   # one case again

Each case is made from the seed, the target's name and its own number, so a find can be repeated. No file but the one
that is read may be there afterwards.
"""
import argparse
import contextlib
import io
import json
import os
import random
import shutil
import string
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastcore.script import anno_parser
from PIL import Image

from pgflkd.baseline import read_weights
from pgflkd.commands import ablate, train
from pgflkd.data import check_table, row_joints
from pgflkd.datasets import READERS
from pgflkd.deploy import load_student
from pgflkd.errors import trouble
from pgflkd.files import open_picture
from pgflkd.keypoints import KeypointStore
from pgflkd.readers.folders import from_df
from pgflkd.readers.poses import read_keypoints
from pgflkd.records import add_rows, run_facts

torch.set_num_threads(1)

ODD = ['', ' ', '0', '-1', '1', '2', '1e309', '-1e309', 'nan', 'NaN', 'inf', 'None', 'true', '٣', '１２８', '1_0',
       '0x10', '1.5', '1,5', '9'*30, '\x00', '\n', '\r', '\ufeff', '🙂', 'é', '"', "'", ',', ';', ':', '=', '/', '..',
       '../x', '~', '%s', '{}', '\\', '\ud800']
NUMBERS = [0, -1, 1, 2, 17, 51, 52, -2**31, 2**31, 2**63, 10**30, .5, -.0, 1e308, True, None,
           float('nan'), float('inf'), -float('inf')]
WORDS = [2**31-1, 2**31, 2**32-1, 0, 1, 65535, 10**6]
JSON = [None, [], {}, '', 'x', *NUMBERS, [[]], {'a': 1}, [1]*5, [1]*51, [[1, 2, 3]]*17]
LETTERS = string.ascii_letters+string.digits+'_-. '

def word(r): return r.choice(ODD) if r.random()<.3 else ''.join(r.choice(LETTERS) for _ in range(r.randrange(12)))

def spoil_text(r, s):
    "`s` with some pieces replaced, doubled, cut or swapped"
    for _ in range(r.choice((0, 1, 1, 1, 2, 3, 6))):
        i = r.randrange(len(s)+1)
        j = min(len(s), i+r.choice((0, 1, 1, 2, 5, 20)))
        s = s[:i] + r.choice((r.choice(ODD), s[i:j]*2, '', word(r))) + s[j:]
    return s

def spoil_bytes(r, b):
    "`b` with some bytes changed, cut or put in"
    b = bytearray(b)
    for _ in range(r.choice((1, 1, 2, 4, 16))):
        how, i = r.randrange(6), r.randrange(len(b)+1)
        if how==0: b[i:i+1] = r.randbytes(1)
        if how==1 and i<len(b): b[i] ^= 1<<r.randrange(8)
        if how==2: del b[i:i+r.choice((1, 4, 64, 10**6))]
        if how==3: b[i:i] = r.randbytes(r.choice((1, 4, 32)))
        if how==4: b[i:i+4] = struct.pack(r.choice('<>')+'I', r.choice(WORDS))
        if how==5: b[i:i+8] = struct.pack('<q', r.choice((-1, 2**62)))
    return bytes(b)

def spoil_json(r, o, depth=0):
    "The JSON value `o`, something in it replaced"
    if depth and r.random()<.12: return r.choice(JSON)
    if isinstance(o, dict):
        o = {k: spoil_json(r, v, depth+1) for k, v in o.items()}
        if o and r.random()<.15: o.pop(r.choice(list(o)))
        if r.random()<.08: o[word(r)] = r.choice(NUMBERS)
        return o
    if isinstance(o, list): return [spoil_json(r, v, depth+1) for v in o][:r.choice((None, None, None, 0, 1, 50))]
    return r.choice(NUMBERS) if r.random()<.02 else o

TARGETS = {}   # name -> share of the cases, `make(r, folder)` that writes a case, `read(case)`

def target(share, read):
    "Register the function below, which makes the cases of one reader"
    def add(make): TARGETS[make.__name__.replace('_', ' ')] = share, make, read
    return add

def put(path, what):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(what, bytes): path.write_bytes(what)
    else: path.write_text(what, encoding='utf-8', errors='surrogatepass')
    return path

BOXES = ('bounding_box_train', 'query', 'bounding_box_test')
SHAPES = {'market1501': (BOXES, '0002_c1s1_000451_03.jpg'), 'duke': (BOXES, '0002_c2_f0046302.jpg'),
          'cuhk03': (BOXES, '0002_c1_1.png'), 'folders': (('a', 'b'), '1.jpg'),
          'occluded_reid': (('occluded_body_images', 'whole_body_images'), '001_01.tif'),
          'partial_ilids': (('Probe', 'Gallery'), '001_01.jpg')}

@target(4, lambda case: READERS[case[0]](case[1]))
def file_names(r, d):
    layout = r.choice(list(SHAPES))
    folders, name = SHAPES[layout]
    for o in folders:
        put(d/o/name, '')
        other = spoil_text(r, name).replace('/', '_')
        with contextlib.suppress(OSError, ValueError):
            if other not in ('', '.', '..'): put(d/o/other, '')
    return layout, d

@target(4, lambda d: READERS['msmt17'](d))
def lists_of_names(r, d):
    name = '0000/0000_000_01_0303morning_0008_0.jpg'
    for o in ('train', 'test'): put(d/o/name, '')
    for role in ('train', 'query', 'gallery'): put(d/f'list_{role}.txt', spoil_text(r, f'{name} 0\n'))
    return d

POSE = [x for i in range(17) for x in (3.*i, 4.*i, .5)]
ONE = dict(keypoints=POSE, bbox=[0, 0, 64, 128])
DOCS = [[dict(ONE, image_id='a.jpg', category_id=1, score=.9)], [dict(ONE, score=.8, category_id=1)],
        dict(images=[dict(id=1, file_name='a.jpg', height=128, width=64)],
             annotations=[dict(ONE, id=1, image_id=1, num_keypoints=17)]),
        dict(version=1.3, people=[dict(pose_keypoints_2d=[1., 2., .5]*25, person_id=[-1])]),
        {'a.jpg': dict(version='AlphaPose', bodies=[dict(joints=[1., 2., .5]*18)])}]

@target(30, read_keypoints)
def keypoint_JSON(r, d):
    text = json.dumps(spoil_json(r, r.choice(DOCS)))
    if r.random()<.3: text = spoil_text(r, text)
    if r.random()<.002: text = '['*r.choice((10, 5000, 10**5))
    return put(d/r.choice(('a.json', 'a_keypoints.json')), text)

@target(12, read_keypoints)
def keypoint_CSV(r, d):
    xs, ys = [3*j if j%5 else -1 for j in range(18)], [5*j for j in range(18)]
    lines = [spoil_text(r, f'{i:04d}_c1s1_000151_01.jpg: {ys}: {xs}\n') for i in range(3)]
    return put(d/'a.csv', 'name:keypoints_y:keypoints_x\n'+''.join(lines))

def saved(save, *args, **kwargs):
    f = io.BytesIO()
    save(f, *args, **kwargs)
    return f.getvalue()

TWO = np.array([POSE, POSE], np.float32).reshape(2, 17, 3)
STORE = dict(names=np.array(['a.jpg', 'q/b.jpg']), joints=TWO, size=np.array([[128, 64]]*2))

def odd_array(r, a):
    "The array `a`, or something like it"
    floats, how = a.dtype.kind=='f', r.randrange(6)
    if how==0: return a[:1]
    if how==1: return a.astype('S' if a.dtype.kind=='U' else r.choice(('f2', 'f8', 'i4', 'U8', 'c8', '?')))
    if how==2: return a.reshape(-1)
    if how==3 and floats: return np.full_like(a, r.choice((np.nan, np.inf, -1, 1e9)))
    if how==4: return a[..., None]
    return np.zeros((0, *a.shape[1:]), a.dtype)

def read_archive(case):
    path, how = case
    if how==0: return KeypointStore.load(path)
    if how==1: return read_keypoints(path)
    table = pd.DataFrame(dict(fn=['a.jpg', 'b.jpg'], pid=[1, 2], camid=0, role='train', joints=[0, 1]))
    return row_joints(table, path)

@target(12, read_archive)
def keypoint_archives(r, d):
    kept = {k: v for k, v in STORE.items() if r.random()<.95}
    b = saved(np.savez, **{k: odd_array(r, v) if r.random()<.4 else v for k, v in kept.items()})
    return put(d/'a.npz', spoil_bytes(r, b) if r.random()<.6 else b), r.randrange(3)

ROLES = ('train', 'query', 'gallery')
TABLE = 'fn,pid,camid,role\n'+''.join(f'{i}.jpg,{i//2+1},{i%2},{ROLES[i%3]}\n' for i in range(8))

@target(5, lambda case: check_table(from_df(case[0], rename=case[1]), 4, 2))
def tables(r, d):
    text = spoil_bytes(r, TABLE.encode()) if r.random()<.2 else spoil_text(r, TABLE)
    return put(d/'t.csv', text), r.choice((None, None, {'path': 'fn'}, {'fn': 'pid'}))

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 8, 3), dtype=np.uint8))
def drawn(f, kind): NOISE.save(f, kind)
PICTURES = {kind: saved(drawn, kind) for kind in ('png', 'jpeg', 'tiff', 'webp', 'bmp', 'gif')}

@target(10, open_picture)
def pictures(r, d):
    kind = r.choice(list(PICTURES))
    return put(d/f'a.{kind}', spoil_bytes(r, PICTURES[kind]))

def weight_files():
    from safetensors.torch import save
    tensors = {'conv1.weight': torch.zeros(4, 3), 'bn1.bias': torch.zeros(4)}
    card = dict(arch='resnet18', stride=16, size=[32, 16], stats=[[.5]*3]*2, width=512, weights='x')
    student = save(tensors, metadata=dict(pgflkd=json.dumps(card)))
    return dict(pth=saved(lambda f: torch.save(tensors, f)), safetensors=student)

WEIGHTS = weight_files()

@target(5, lambda case: load_student(case[0]) if case[1] else read_weights(case[0]))
def weights(r, d):
    kind = r.choice(list(WEIGHTS))
    return put(d/f'a.{kind}', spoil_bytes(r, WEIGHTS[kind])), r.random()<.3 and kind=='safetensors'

OPTIONS = ('data format keypoints preset recipe seed epochs arch weights size bs per-id lr lambda-mcl triplets hide '
           'models seeds stride rows').split()

def read_line(case):
    command, args = case
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return anno_parser(command).parse_args(args)

@target(2, read_line)
def command_lines(r, d):
    args = []
    for _ in range(r.randrange(7)):
        option = '--'+r.choice(OPTIONS)
        args.append(option if r.random()<.9 else spoil_text(r, option))
        if r.random()<.9: args.append(word(r) if r.random()<.7 else str(r.choice(NUMBERS)))
    return r.choice((train.train_command, ablate.ablate_command)), args

def read_options(case):
    "The checks of both commands, as argparse would hand the options over"
    given, plan, seeds, data, folder = case
    options, known = train._options(folder/'run', False, given)
    recipe = train._recipe(folder/'run', options, known, given)
    train.read_seeds(seeds)
    ablate.plan_rows(plan, recipe, '')
    ablate._world(data)

@target(20, read_options)
def options(r, d):
    def text(*usual):
        known = r.choice(usual)
        return known if r.random()<.6 else r.choice((spoil_text(r, known), word(r)))
    def number(kind, usual):
        odd = r.choice([o for o in NUMBERS if isinstance(o, kind)])
        return usual if r.random()<.6 else odd
    given = dict(preset=text('tiny', 'small'), recipe=text('quick', 'paper'), size=text('128x64', '384x128', '32x32'),
                 triplets=text('unit', 'raw'), weights=text('none', 'imagenet'), seed=number(int, 0),
                 epochs=number(int, 6), bs=number(int, 64), per_id=number(int, 4), lr=number(float, 1e-3),
                 lambda_mcl=number(float, .25), hide=number(float, 0.))
    return given, text('table6', 'pair'), text('0', '0,1,2'), text('small', 'tiny:repeat=0,wardrobe=9'), d

def attempt(name, seed, i, folder):
    "Run one case; what a user would see as a traceback, or None"
    _, make, read = TARGETS[name]
    try: case = make(random.Random(f'{seed} {name} {i}'), folder)
    except (UnicodeEncodeError, OSError): return None                    # the file system refuses the name
    before = set(folder.rglob('*'))
    try: read(case)
    except SystemExit as e: return None if e.code in (0, 2) else f'exit code {e.code}'
    except BaseException as e:
        if trouble(e) is None: return f'{type(e).__name__}: {e}'[:200]+'\n'+traceback.format_exc()
    left = set(folder.rglob('*'))-before
    return f'left behind: {left}' if left else None

def ask(name, seed, numbers, folder, show):
    "The row of one target; prints what was found"
    start, finds = time.process_time(), {}
    for i in numbers:
        folder.mkdir()
        why = attempt(name, seed, i, folder)
        shutil.rmtree(folder)
        if why: finds.setdefault('\n'.join(why.strip().split('\n')[-3:]), []).append((i, why))
    for words, cases in finds.items():
        number, why = cases[0]
        said = why[-1500:] if show else why.splitlines()[0][:150] + ' | ' + words.replace('\n', ' ')[-150:]
        print(f'  {len(cases)} times, first case {number}: {said}')
    counts = dict(cases=len(numbers), tracebacks=sum(map(len, finds.values())), kinds=len(finds))
    return dict(target=name, **counts, seed=seed, cpu_seconds=round(time.process_time()-start, 1))

def run(a):
    "One row for each target"
    base, here, rows = Path(tempfile.mkdtemp(prefix='pgflkd-fuzz-')), os.getcwd(), []
    total = sum(share for share, _, _ in TARGETS.values())
    (base/'cwd').mkdir()
    os.chdir(base/'cwd')
    try:
        for name, (share, _, _) in TARGETS.items():
            if a.target and name!=a.target: continue
            n = a.cases if a.target else max(1, round(a.cases*share/total))
            rows.append(ask(name, a.seed, range(n) if a.case is None else [a.case], base/'case', a.show))
            print(rows[-1], flush=True)
            assert not os.listdir(base/'cwd'), f'{name} left {os.listdir(base/"cwd")} in the working folder'
    finally:
        os.chdir(here)
        shutil.rmtree(base)
    return pd.DataFrame(rows)

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--cases', type=int, default=120_000)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--target')
    p.add_argument('--case', type=int)
    p.add_argument('--show', action='store_true')
    p.add_argument('--out', default=str(Path(__file__).parent/'fuzz.csv'))
    a = p.parse_args()
    df = run(a)
    if a.out and a.case is None: add_rows(a.out, df.assign(**run_facts(torch.device('cpu'))), ['target', 'seed'])
    bad = df.tracebacks.sum()
    print(f'{df.cases.sum():,} cases, '+(f'{bad} tracebacks' if bad else 'no traceback, nothing left behind'))
    sys.exit(bool(bad))
