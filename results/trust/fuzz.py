"""Feed every reader of this library, and the arguments of its commands, with what is nearly right and what is nonsense. Allowed: an answer, or an error that `guarded` turns into one line. Everything else is a find.

    python results/trust/fuzz.py --cases 120000       # writes results/trust/fuzz.csv, a few CPU minutes
    python results/trust/fuzz.py --cases 4000 --out ''  # the short form of CI
    python results/trust/fuzz.py --target pictures --cases 9286    # one target again, with as many cases; its row is replaced
    python results/trust/fuzz.py --target pictures --case 1234 --show   # one case again
    python results/trust/fuzz.py --guided 60 --target 'keypoint JSON'   # atheris, if it is installed: seconds of search led by coverage

Each case is made from the seed, the target's name and its own number, so a find can be repeated. No file but the one that is read may be there afterwards."""
import argparse, contextlib, io, json, os, random, shutil, string, struct, sys, tempfile, time, traceback, warnings, zlib
os.environ.setdefault('OMP_NUM_THREADS', '1'); warnings.filterwarnings('ignore')
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, torch
from PIL import Image
from fastcore.script import anno_parser
from pgflkd.commands.ablate import ablate_command, plan_rows, read_recipe, read_seeds, world_of
from pgflkd.baseline import read_weights
from pgflkd.commands.train import check_settings, read_source, train_command
from pgflkd.readers.folders import from_df
from pgflkd.data import check_table, open_picture, row_joints
from pgflkd.datasets import READERS, occluded_duke_names
from pgflkd.readers.poses import read_keypoints
from pgflkd.keypoints import KeypointStore
from pgflkd.learner import load_student
from pgflkd.records import add_rows, run_facts, trouble
torch.set_num_threads(1)

ODD = ['', ' ', '0', '-1', '1', '2', '1e309', '-1e309', 'nan', 'NaN', 'inf', 'None', 'true', '٣', '１２８', '1_0', '0x10', '1.5', '1,5', '9'*30, '\x00', '\n', '\r', '\ufeff', '🙂', 'é', '"', "'", ',', ';', ':', '=', '/', '..', '../x', '~', '%s', '{}', '[]', '\\', '\ud800', 'a'*300]
NUMBERS = [0, -1, 1, 2, 17, 51, 52, -2**31, 2**31, 2**63, 10**30, .5, -.0, 1e308, float('nan'), float('inf'), -float('inf'), True, None]

def word(r, like=string.ascii_letters+string.digits+'_-. '):
    return r.choice(ODD) if r.random()<.3 else ''.join(r.choice(like) for _ in range(r.randrange(12)))

def spoil_text(r, s):
    "`s` with some pieces replaced, doubled, cut or swapped"
    for _ in range(r.choice((0,1,1,1,2,3,6))):
        i = r.randrange(len(s)+1); j = min(len(s), i+r.choice((0,1,1,2,5,20))); how = r.randrange(4)
        s = s[:i]+(r.choice(ODD) if how==0 else s[i:j]*2 if how==1 else '' if how==2 else word(r))+s[j:]
    return s

def spoil_bytes(r, b):
    b = bytearray(b)
    for _ in range(r.choice((1,1,2,4,16))):
        how, i = r.randrange(6), r.randrange(len(b)+1)
        if how==0 and i<len(b): b[i] = r.randrange(256)
        elif how==1 and i<len(b): b[i] ^= 1<<r.randrange(8)
        elif how==2: del b[i:i+r.choice((1,4,64,10**6))]
        elif how==3: b[i:i] = r.randbytes(r.choice((1,4,32)))
        elif how==4 and i+4<=len(b): b[i:i+4] = struct.pack(r.choice('<>')+'I', r.choice((0,1,2**31-1,2**31,2**32-1,65535,10**6)))
        elif i+8<=len(b): b[i:i+8] = struct.pack('<q', r.choice((-1,0,2**62,2**40)))
    return bytes(b)

def spoil_json(r, o, depth=0):
    "The JSON value `o`, something in it replaced"
    if depth and r.random()<.12: return r.choice([None, [], {}, '', 'x', *NUMBERS, [[]], {'a':1}, [1]*r.randrange(60), [[1,2,3]]*17])
    if isinstance(o, dict):
        o = {k: spoil_json(r, v, depth+1) for k,v in o.items()}
        if o and r.random()<.15: o.pop(r.choice(list(o)))
        if r.random()<.08: o[word(r)] = r.choice(NUMBERS)
        return o
    if isinstance(o, list): return [spoil_json(r, v, depth+1) for v in o][:r.choice((None,None,None,0,1,50))]
    return r.choice(NUMBERS) if r.random()<.02 else o

class Target:
    "One reader: `make(r, folder)` writes a case and returns what `read` is called with"
    known = {}
    def __init__(self, share, make, read): self.share, self.make, self.read = share, make, read

def target(share):
    "Register the class of two functions below as a target with its `share` of the cases"
    def add(c): Target.known[c.__name__.replace('_',' ')] = Target(share, c.make, c.read); return c
    return add

def put(path, what):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(what) if isinstance(what, bytes) else path.write_text(what, encoding='utf-8', errors='surrogatepass')
    return path

SHAPES = {'market1501': (('bounding_box_train','query','bounding_box_test'), '0002_c1s1_000451_03.jpg'), 'duke': (('bounding_box_train','query','bounding_box_test'), '0002_c2_f0046302.jpg'),
    'occluded_reid': (('occluded_body_images','whole_body_images'), '001_01.tif'), 'partial_ilids': (('Probe','Gallery'), '001_01.jpg'), 'cuhk03': (('bounding_box_train','query','bounding_box_test'), '0002_c1_1.png'),
    'p_duke': (('train/occluded_body_images','train/whole_body_images','test/occluded_body_images','test/whole_body_images'), '0002_c1_f0046302.jpg'), 'folders': (('a','b'), '1.jpg')}

@target(4)
class file_names:
    def make(r, d):
        f = r.choice(list(SHAPES)); folders, name = SHAPES[f]
        for o in folders:
            (d/o).mkdir(parents=True, exist_ok=True); (d/o/name).touch()
            with contextlib.suppress(OSError, ValueError, UnicodeEncodeError):
                if len(n := spoil_text(r, name).replace('/','_')) and n not in ('.','..'): (d/o/n).touch()
        return f, d
    def read(a): return READERS[a[0]](a[1])

@target(6)
class lists_of_names:
    def make(r, d):
        for role in ('train','query','gallery'): put(d/f'{role}.list', spoil_text(r, '0002_c1_f0044158.jpg\n0002_c2_f0044159.jpg\n'))
        if r.random()<.5: return occluded_duke_names, d
        for o in ('train','test'): put(d/f'{o}/0000/0000_000_01_0303morning_0008_0.jpg', '')
        for role in ('train','query','gallery'): put(d/f'list_{role}.txt', spoil_text(r, '0000/0000_000_01_0303morning_0008_0.jpg 0\n'))
        return READERS['msmt17'], d
    def read(a): return a[0](a[1])

POSE = [x for i in range(17) for x in (3.*i, 4.*i, .5)]
DOCS = [[dict(image_id='a.jpg', category_id=1, keypoints=POSE, score=.9)], dict(images=[dict(id=1, file_name='a.jpg', height=128, width=64)], annotations=[dict(id=1, image_id=1, keypoints=POSE, num_keypoints=17, bbox=[0,0,64,128])]),
    dict(version=1.3, people=[dict(pose_keypoints_2d=[1.,2.,.5]*25, person_id=[-1])]), {'a.jpg': dict(version='AlphaPose', bodies=[dict(joints=[1.,2.,.5]*18)])}, [dict(keypoints=POSE, bbox=[0,0,1,1], score=.8, category_id=1)],
    [dict(keypoints=[[1,2,.5]]*17, is_target=True), dict(keypoints=[[1,2,.5]]*17, is_target=False)]]

@target(30)
class keypoint_JSON:
    def make(r, d):
        text = json.dumps(spoil_json(r, r.choice(DOCS)))
        if r.random()<.3: text = spoil_text(r, text)
        if r.random()<.002: text = '['*r.choice((10,5000,10**5))
        return (put(d/r.choice(('a.json','a_keypoints.json','a.jpg.predictions.json')), text), r.random()<.3)
    def read(a): return KeypointStore.read_coco(a[0]) if a[1] else read_keypoints(a[0])

@target(12)
class keypoint_CSV:
    def make(r, d): return put(d/'a.csv', 'name:keypoints_y:keypoints_x\n'+''.join(spoil_text(r, f'{i:04d}_c1s1_000151_01.jpg: {[5*j for j in range(18)]}: {[3*j if j%5 else -1 for j in range(18)]}\n') for i in range(3)))
    def read(a): return read_keypoints(a)

def npz(**arrays): f = io.BytesIO(); np.savez(f, **arrays); return f.getvalue()
def npy(a): f = io.BytesIO(); np.save(f, a); return f.getvalue()
STORE = dict(names=np.array(['a.jpg','q/b.jpg']), joints=np.array([POSE,POSE], np.float32).reshape(2,17,3), size=np.array([[128,64]]*2))
def odd_array(r, a):
    num, how = a.dtype.kind!='U', r.randrange(8)
    if how==0: return a[:1]
    if how==1: return a.astype(r.choice(('f2','f8','i4','U8','c8','?'))) if num else a.astype('S')
    if how==2: return a.reshape(-1)
    if how==3: return np.full_like(a, r.choice((np.nan,np.inf,-1,1e9))) if a.dtype.kind=='f' else a
    if how==4: return a[...,None]
    if how==5: return np.zeros((0,*a.shape[1:]), a.dtype)
    return a*r.choice((0,-1,1000)) if num else np.array(r.choice(ODD[1:-2]))

@target(12)
class keypoint_archives:
    def make(r, d):
        arrays = {k: odd_array(r, v) if r.random()<.4 else v for k,v in STORE.items() if r.random()<.95}
        if r.random()<.2: arrays = dict(arrays, heatmaps=np.random.default_rng(r.randrange(99)).random((2,r.choice((17,18,36,5)),4,4)).astype(np.float32))
        b = npz(**arrays)
        return put(d/'a.npz', spoil_bytes(r, b) if r.random()<.6 else b), r.randrange(3)
    def read(a):
        if a[1]==2: return row_joints(pd.DataFrame(dict(fn=['a.jpg','b.jpg'], pid=[1,2], camid=0, role='train', joints=[0,1])), a[0])
        return KeypointStore.load(a[0]) if a[1] else read_keypoints(a[0])

@target(6)
class keypoint_maps:
    def make(r, d): put(d/'m/a.npy', spoil_bytes(r, npy(np.random.default_rng(r.randrange(99)).random((17,6,3)).astype(np.float32)))); return d/'m'
    def read(a): return read_keypoints(a)

TABLE = 'fn,pid,camid,role\n'+''.join(f'{i}.jpg,{i//2+1},{i%2},{("train","query","gallery")[i%3]}\n' for i in range(8))
@target(5)
class tables:
    def make(r, d): return put(d/'t.csv', spoil_bytes(r, TABLE.encode()) if r.random()<.2 else spoil_text(r, TABLE)), r.choice((None, None, {'path':'fn'}, {'fn':'pid'}))
    def read(a): return check_table(from_df(a[0], rename=a[1]), 4, 2)

@target(10)
class pictures:
    seeds = {}
    def make(r, d):
        kind = r.choice(('png','jpeg','tiff','webp','bmp','gif')); s = pictures.seeds
        if kind not in s:
            f = io.BytesIO(); Image.fromarray(np.random.default_rng(0).integers(0, 255, (16,8,3), dtype=np.uint8)).save(f, kind); s[kind] = f.getvalue()
        return put(d/f'a.{kind}', spoil_bytes(r, s[kind]))
    def read(a): return open_picture(dict(fn=str(a)))

@target(5)
class weights:
    seeds = {}
    def make(r, d):
        from safetensors.torch import save
        s = weights.seeds
        if not s:
            t = {'conv1.weight': torch.zeros(4,3), 'bn1.bias': torch.zeros(4)}; f = io.BytesIO(); torch.save(t, f); s['pth'] = f.getvalue()
            s['safetensors'] = save(t, metadata=dict(pgflkd=json.dumps(dict(arch='resnet18', stride=16, same_padding=False, size=[32,16], stats=[[.5]*3]*2))))
        kind = r.choice(list(s)); return put(d/f'a.{kind}', spoil_bytes(r, s[kind])), r.random()<.3 and kind=='safetensors'
    def read(a): return load_student(a[0]) if a[1] else read_weights(a[0])

def argv(r, known):
    res = []
    for _ in range(r.randrange(7)):
        res.append('--'+r.choice(known) if r.random()<.9 else spoil_text(r, '--'+r.choice(known)))
        if r.random()<.9: res.append(word(r) if r.random()<.7 else str(r.choice(NUMBERS)))
    return res

def parsed(command, args):
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()): return SimpleNamespace(**vars(anno_parser(command).parse_args(args)))

@target(2)
class command_lines:
    def make(r, d): return r.choice((train_command, ablate_command)), argv(r, ['data','format','keypoints','preset','seed','epochs','arch','weights','size','bs','per_id','lr','lambda_mcl','hide','models','seeds','stride','minutes','folder','rows'])
    def read(a):
        s = parsed(*a)
        if a[0] is train_command:
            check_settings(s)
            if s.data: read_source(s)
        else:
            plan_rows(s.preset, s.lambda_mcl); read_recipe(s); read_seeds(s.seeds)
            for o in s.data.split(): o=='folder' or world_of(o)

@target(20)
class arguments:
    "The same checks without argparse, which is slow: text and numbers as it would hand them over"
    def make(r, d):
        number = lambda usual: usual if r.random()<.6 else r.choice([o for o in NUMBERS if isinstance(o, (int,float))])
        whole  = lambda usual: int(n) if (n := number(usual))==n and abs(n)<1e300 else usual
        text   = lambda *usual: r.choice(usual) if r.random()<.6 else spoil_text(r, r.choice(usual)) if r.random()<.6 else word(r)
        return SimpleNamespace(data=r.choice((None, None, None, text('small', 'tiny:repeat=0,wardrobe=9'))), format=text('market1501','csv','folders'), keypoints=None, preset=text('tiny','small','table6','pair'), seed=whole(0), epochs=whole(6), arch=text('resnet18','mobilenet_v2'),
            weights=text('none','imagenet'), tf=False, student='', size=text('128x64','384x128','32x32'), stride=whole(0), bs=whole(64), per_id=whole(4), lr=float(number(1e-3)), lambda_mcl=float(number(3.)), hide=float(number(0.)), models=text('baseline','baseline,pgflkd','focus'), seeds=text('0','0,1,2'), out='x', resume=False, quick=False), r.random()<.5
    def read(a):
        s, train = a
        if train: check_settings(s); return read_source(s) if s.data else None
        read_recipe(s); read_seeds(s.seeds); plan_rows(s.preset, s.lambda_mcl); return world_of(s.data or 'small')

def attempt(t, r, folder):
    "Run one case; what a user would see as a traceback, or None"
    try: case = t.make(r, folder)
    except (UnicodeEncodeError, OSError): return None                    # the file system refuses the name
    before = {p for p in folder.rglob('*')}
    try: t.read(case)
    except SystemExit as e: return None if e.code in (0, 2) else f'exit code {e.code}'
    except BaseException as e:
        if trouble(e) is None: return f'{type(e).__name__}: {e}'[:200]+'\n'+traceback.format_exc()
    left = {p for p in folder.rglob('*')}-before
    return f'left behind: {left}' if left else None

def run(cases, seed, only=None, first=0, show=False):
    base = Path(tempfile.mkdtemp(prefix='pgflkd-fuzz-', dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None)); here, rows = os.getcwd(), []
    total = sum(t.share for n,t in Target.known.items())
    (base/'cwd').mkdir(); os.chdir(base/'cwd')
    try:
        for name,t in Target.known.items():
            if only and name!=only: continue
            n, start, finds = (cases if only else max(1, round(cases*t.share/total))), time.process_time(), {}
            for i in range(first, first+n):
                d = base/'case'; d.mkdir()
                why = attempt(t, random.Random(f'{seed} {name} {i}'), d)
                shutil.rmtree(d)
                if why: finds.setdefault('\n'.join(why.strip().split('\n')[-3:]), []).append((i, why))
            if list((base/'cwd').iterdir()): finds['left in the working folder'] = [(0, str(list((base/'cwd').iterdir())))]
            rows.append(dict(target=name, cases=n, tracebacks=sum(map(len, finds.values())), kinds=len(finds), seed=seed, cpu_seconds=round(time.process_time()-start, 1)))
            print(rows[-1], flush=True)
            for k,v in finds.items(): print(f'  {len(v)} times, first case {v[0][0]}: {v[0][1][-1500:] if show else v[0][1].splitlines()[0][:150]+" | "+k.replace(chr(10)," ")[-150:]}')
    finally: os.chdir(here); shutil.rmtree(base)
    return pd.DataFrame(rows)

def guided(seconds, name, seed):
    "Search led by coverage; stops at the first find"
    import atheris
    t, d = Target.known[name], Path(tempfile.mkdtemp(dir='/dev/shm'))
    def one(data):
        c = d/'case'; shutil.rmtree(c, ignore_errors=True); c.mkdir()
        if why := attempt(t, random.Random(data), c): raise RuntimeError(why)
    atheris.Setup([sys.argv[0], f'-max_total_time={seconds}', f'-seed={seed+1}'], one); atheris.Fuzz()

if __name__=='__main__':
    p = argparse.ArgumentParser(); p.add_argument('--cases', type=int, default=120_000); p.add_argument('--seed', type=int, default=0); p.add_argument('--target'); p.add_argument('--case', type=int)
    p.add_argument('--show', action='store_true'); p.add_argument('--guided', type=int); p.add_argument('--out', default=str(Path(__file__).parent/'fuzz.csv')); a = p.parse_args()
    if a.guided: guided(a.guided, a.target, a.seed); sys.exit()
    df = run(1 if a.case is not None else a.cases, a.seed, a.target, a.case or 0, a.show)
    if a.out and a.case is None: add_rows(a.out, df.assign(**run_facts(torch.device('cpu'))), ['target','seed'])
    bad = df.tracebacks.sum(); print(f'{df.cases.sum():,} cases, '+(f'{bad} tracebacks' if bad else 'no traceback, nothing left behind')); sys.exit(bool(bad))
