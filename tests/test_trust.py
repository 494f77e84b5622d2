"""A run that is killed, a disk that is full, a file that wants to harm: what is lost, what is said, what is kept.

SECURITY.md names the test for each threat."""
import io
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pgflkd.errors import InputError, guarded
from pgflkd.files import locked

root = Path(__file__).parent.parent
TRUST = root/'results/trust'

def python(*args, limit=600):
    command = [sys.executable, '-W', 'ignore', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=root)

def script(name, *args, limit=600):
    r = python(TRUST/name, *args, limit=limit)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-3000:]
    return r.stdout

# Killed

@pytest.mark.slow
def test_killed_runs_end_as_unbroken_ones():
    "Short form of results/trust/kill.py: each command killed once and taken up again: the same bits, no socket"
    said = script('kill.py', '--points', 1, '--out', '')
    assert said.count("'same_bits': True")==2 and '2 kills, 0 runs' in said, said

# What goes wrong around a run

@pytest.fixture(scope='module')
def crops(tmp_path_factory):
    from pgflkd.synthetic import World, render_world, world_joints
    world = World(n_train=6, n_test=3, n_distractors=0, n_cams=2, cams_per_person=2, frames=2)
    df = render_world(world, out=tmp_path_factory.mktemp('world')/'w', progress=False)
    return df, world_joints(df)

def loaders(crops, **kwargs):
    from pgflkd.data import reid_dls
    return reid_dls(*crops, **{**dict(size=(32,32), bs=8, per_id=2, seed=0), **kwargs})

def learner(crops, file, cbs=(), **kwargs):
    from fastai.basics import set_seed
    from fastai.callback.progress import ProgressCallback
    from pgflkd.checkpoint import RunLog
    from pgflkd.learner import baseline_learner
    dls = loaders(crops, **kwargs)
    set_seed(0)
    learn = baseline_learner(dls, 'resnet18', None, cbs=[RunLog(file, 'tiny', kwargs.get('seed', 0)), *cbs])
    learn.remove_cb(ProgressCallback)
    return learn

def fit(learn, n, start=0):
    with learn.no_logging(): learn.fit(n, 1e-3, start_epoch=start)
    return learn

def said_by(f, capsys):
    "Exit code and the last line that `guarded` prints"
    with pytest.raises(SystemExit) as e: guarded('pgflkd_train', f)
    err = capsys.readouterr().err
    assert 'Traceback' not in err and err.count('\n')==1, err
    return e.value.code, err

def with_small_files(f, capsys):
    "What `f` says where the kernel lets no file grow beyond a megabyte"
    import resource
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
    try: return said_by(f, capsys)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)

def test_full_disk(crops, tmp_path, capsys):
    "The checkpoint does not fit: one line, the old one untouched, nothing half written"
    from pgflkd.deploy import export
    file = tmp_path/'a.pth'
    fit(learner(crops, file), 1)
    was = file.read_bytes()
    learn = learner(crops, file)
    start = learn.run_log.resume()
    code, said = with_small_files(lambda: fit(learn, 2, start), capsys)
    assert code==2 and 'make room' in said and 'a.pth' in said
    assert file.read_bytes()==was and os.listdir(tmp_path)==['a.pth']
    code, said = with_small_files(lambda: export(learn, tmp_path/'s.safetensors'), capsys)
    assert code==2 and 'make room' in said and os.listdir(tmp_path)==['a.pth']

def test_closed_folder(tmp_path, capsys, monkeypatch):
    def enter(folder):
        with locked(folder): pass
    (tmp_path/'file').touch()
    code, said = said_by(lambda: enter(tmp_path/'file/run'), capsys)
    assert code==2 and 'can be written' in said
    def closed(self, *args, **kwargs): raise OSError(30, 'Read-only file system', str(self))
    monkeypatch.setattr(Path, 'mkdir', closed)
    code, said = said_by(lambda: enter(tmp_path/'run'), capsys)
    assert code==2 and 'Read-only file system' in said and 'can be written' in said

def copied(crops, folder):
    "The table of `crops` with the pictures in `folder`, and its joints"
    df, joints = crops
    return df.assign(fn=[shutil.copy(f, folder/f'{i}.jpg') for i,f in enumerate(df.fn)]), joints

def same_weights(a, b): return all(torch.equal(x, y) for x,y in zip(a.state_dict().values(), b.state_dict().values()))

def test_pictures_vanish_while_it_trains(crops, tmp_path, capsys):
    "A person's files vanish in epoch 1: they are named, the checkpoint is kept, and with the files back it goes on"
    from fastai.callback.core import Callback
    crops = copied(crops, tmp_path)
    train = crops[0][crops[0].role=='train']
    kept = {f: Path(f).read_bytes() for f in train.fn[train.pid==train.pid.iloc[0]]}
    class Thief(Callback):
        def before_epoch(self):
            for f in kept if self.epoch==1 else (): os.unlink(f)
    whole = fit(learner(crops, tmp_path/'whole.pth'), 2)
    code, said = said_by(lambda: fit(learner(crops, tmp_path/'b.pth', [Thief()]), 2), capsys)
    assert code==2 and any(str(f) in said for f in kept) and 'replace the file' in said
    for f,b in kept.items(): Path(f).write_bytes(b)
    again = learner(crops, tmp_path/'b.pth')
    assert again.run_log.resume()==1
    assert same_weights(whole.model, fit(again, 2, 1).model)

def test_loss_is_no_number(crops, tmp_path, capsys):
    file = tmp_path/'a.pth'
    fit(learner(crops, file), 1)
    was = file.read_bytes()
    learn = learner(crops, file)
    start = learn.run_log.resume()
    learn.loss_func.list[0].weight = float('nan')
    code, said = said_by(lambda: fit(learn, 2, start), capsys)
    assert code==2 and 'no number in epoch 1' in said and 'keeps the weights after epoch 0' in said
    assert file.read_bytes()==was

_MEMORY = """
import resource
import sys
sys.path.insert(0, {ci!r})
from test_trust import *
crops = pickle.load(open({crops!r}, 'rb'))
fit(learner(crops, Path({warm!r})), 1)       # threads and small buffers are there before the limit is
big = learner(crops, Path({file!r}), size=(2048,1024))
start = big.run_log.resume()
used = int(next(l for l in open('/proc/self/status') if l.startswith('VmSize')).split()[1])*1024
room = used+3*2**28                             # for a batch, not for the first layer's 1 GiB
resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
guarded('pgflkd_train', lambda: fit(big, 2, start))
"""

def test_out_of_memory(crops, tmp_path):
    "In a process that may have little more memory: the allocator's own error, one line, the checkpoint kept"
    file = tmp_path/'a.pth'
    fit(learner(crops, file), 1)
    was = file.read_bytes()
    (tmp_path/'crops').write_bytes(pickle.dumps(crops))
    paths = dict(crops=tmp_path/'crops', warm=tmp_path/'warm.pth', file=file, ci=Path(__file__).parent)
    r = python('-c', _MEMORY.format(**{k: str(v) for k,v in paths.items()}), limit=300)
    assert r.returncode==2 and 'out of memory; lower --bs' in r.stderr and r.stderr.count('\n')==1, r.stderr[-2000:]
    assert file.read_bytes()==was

def test_two_runs_in_one_folder(tmp_path):
    "While another *process* holds the folder it is refused; the claim dies with a SIGKILL"
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        with locked(tmp_path, wait=False):
            os.write(w, b'x')
            time.sleep(60)
        os._exit(0)
    os.read(r, 1)
    with pytest.raises(InputError, match='another process is working in it'):
        with locked(tmp_path, wait=False): pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with locked(tmp_path, wait=False): pass

# Files that would like to harm

class Bomb:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (open, (self.path, 'w'))

def as_pickle(to, mark): to.write_bytes(pickle.dumps({'conv1.weight': Bomb(mark)}))
def as_torch(to, mark): torch.save({'model': {'conv1.weight': torch.zeros(1)}, 'opt': Bomb(mark), 'rows': []}, to)

def saved(save, *args, **kwargs):
    f = io.BytesIO()
    save(f, *args, **kwargs)
    return f.getvalue()

def as_array(to, mark): to.write_bytes(saved(np.save, np.array([Bomb(mark)], object), allow_pickle=True))
def as_store(to, mark):
    to.write_bytes(saved(np.savez, names=np.array([Bomb(mark)], object), joints=np.zeros((1,17,3), np.float32)))

def unpickle(f):
    zipped = zipfile.is_zipfile(f)
    if zipped and 'names.npy' in zipfile.ZipFile(f).namelist(): return np.load(f, allow_pickle=True)['names']
    if f.read_bytes()[:6]==b'\x93NUMPY': return np.load(f, allow_pickle=True)
    if zipped: return torch.load(io.BytesIO(f.read_bytes()), weights_only=False)
    return pickle.loads(f.read_bytes())

def readers():
    from pgflkd.baseline import read_weights
    from pgflkd.data import row_joints
    from pgflkd.deploy import load_student
    from pgflkd.keypoints import KeypointStore
    from pgflkd.readers.poses import read_keypoints
    table = pd.DataFrame(dict(fn=['a.jpg'], pid=1, camid=0, role='train', joints=[0]))
    return dict(weights=read_weights, student=load_student, store=KeypointStore.load, keypoints=read_keypoints,
                row_joints=lambda f: row_joints(table, f))

BOMBS = [
    ('a.pth', as_pickle, 'weights'),
    ('a.pth', as_torch, 'weights'),
    ('a.pt', as_pickle, 'weights'),
    ('a.safetensors', as_pickle, 'weights'),
    ('a.safetensors', as_torch, 'student'),
    ('a.npz', as_store, 'store'),
    ('a.npz', as_pickle, 'store'),
    ('a.npz', as_array, 'store'),
    ('a.npz', as_store, 'keypoints'),
    ('a.npz', as_pickle, 'row_joints'),
    ('a.npz', as_array, 'row_joints'),
]

@pytest.mark.parametrize('name,make,reader', BOMBS, ids=[f'{r}-{m.__name__}-{n}' for n,m,r in BOMBS])
def test_pickles_stay_closed(name, make, reader, tmp_path):
    "A file that harms when it is unpickled is seen to do so; then our reader refuses it, and nothing is written"
    f, mark = tmp_path/name, tmp_path/'harm'
    make(f, mark)
    unpickle(f)
    assert mark.exists()
    mark.unlink()
    with pytest.raises(InputError, match='a.(pth|pt|npz|safetensors)'): readers()[reader](f)
    assert not mark.exists()

def test_checkpoint_stays_closed(crops, tmp_path):
    f, mark = tmp_path/'a.pth', tmp_path/'harm'
    as_torch(f, mark)
    with pytest.raises(InputError, match='a.pth: is no checkpoint'): learner(crops, f).run_log.resume()
    assert not mark.exists()

def test_archive_that_climbs_out(tmp_path):
    "A keypoint archive with a member ../evil: read by name in memory, so nothing is ever unpacked"
    from pgflkd.keypoints import KeypointStore
    box = tmp_path/'box'
    box.mkdir()
    evil = saved(np.save, np.zeros(3))
    with zipfile.ZipFile(box/'a.npz', 'w') as z:
        z.writestr('../evil.npy', evil)
        z.writestr('/tmp/pgflkd-evil.npy', evil)
    with zipfile.ZipFile(box/'a.npz') as z:                             # a naive unpacker would have written outside
        assert not (box/z.namelist()[0]).resolve().is_relative_to(box)
    with pytest.raises(InputError, match='needs names'): KeypointStore.load(box/'a.npz')
    assert not (tmp_path/'evil.npy').exists() and not Path('/tmp/pgflkd-evil.npy').exists()
    assert os.listdir(box)==['a.npz']

def numpy_head(shape):
    "The head of a .npy file that promises float32 numbers of `shape`"
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', 118) + text.ljust(117).encode() + b'\n'

def test_archive_that_grows(tmp_path):
    "An archive of a megabyte that claims, or unpacks to, what no memory holds"
    from pgflkd.keypoints import KeypointStore
    names = saved(np.save, np.array(['a']))
    with zipfile.ZipFile(tmp_path/'a.npz', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('names.npy', names)
        z.writestr('joints.npy', numpy_head((10**12,17,3))+bytes(2**20))
    with pytest.raises(InputError, match='a.npz'): KeypointStore.load(tmp_path/'a.npz')
    file = tmp_path/'b.npz'
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        z.writestr('names.npy', names)
        with z.open('joints.npy', 'w', force_zip64=True) as o: o.write(numpy_head((2**23+1,17,3)))
    raw = bytearray(file.read_bytes())
    i = raw.rfind(b'PK\x01\x02')
    raw[i+24:i+28] = struct.pack('<I', 2**32-2)                                     # the directory says 4 GB
    file.write_bytes(raw)
    with pytest.raises(InputError, match='b.npz: unpacks to'): KeypointStore.load(file)

def chunk(name, data): return struct.pack('>I', len(data))+name+data+struct.pack('>I', zlib.crc32(name+data))

def png(w, h):
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(bytes(10**5))) + chunk(b'IEND', b'')

def test_picture_that_grows(tmp_path):
    "A hundred bytes that claim 60000 x 60000 pixels"
    from pgflkd.deploy import Embedder
    from pgflkd.files import check_pictures, open_picture
    from pgflkd.keypoints import KeypointStore
    from pgflkd.readers.poses import picture_sizes
    f = tmp_path/'0001_c1s1_000001_00.png'
    f.write_bytes(png(60000, 60000))
    assert f.stat().st_size < 10**4
    with pytest.raises(Image.DecompressionBombError): Image.open(f)
    with pytest.raises(InputError, match='00.png: cannot be read as a picture'): open_picture(f)
    embedder = Embedder(None, dict(size=[32,16]))
    with pytest.raises(InputError, match='cannot be read as a picture'): embedder.pixels(str(f))
    with pytest.raises(InputError, match='no pictures'): picture_sizes(tmp_path)
    with pytest.raises(InputError, match='00.png'): check_pictures([str(f)])
    KeypointStore(['0001_c1s1_000001_00'], np.zeros((1,17,3)), (128,64)).align(pd.DataFrame(dict(fn=[str(f)])))

# Numbers that repeat

def tensors(batch):
    "The tensors in `batch`, however nested"
    if isinstance(batch, torch.Tensor): return [batch.as_subclass(torch.Tensor)]
    return [t for part in batch for t in tensors(part)]

def test_same_batches_with_workers_and_without(crops):
    "Two epochs from one seed, read here, and by two other processes: the same bits"
    def batches(n):
        dls = loaders(crops, num_workers=n)
        first, second = list(dls.train), list(dls.train)
        return [tensors(b) for b in first+second]
    here, there = batches(0), batches(2)
    assert len(here)==len(there)>1
    for a,b in zip(here, there):
        for x,y in zip(a, b): assert torch.equal(x, y)
    assert not torch.equal(here[0][0], here[-1][0])

def test_same_numbers_twice(crops, tmp_path):
    a, b = (fit(learner(crops, tmp_path/f'{i}.pth', num_workers=n), 2) for i,n in enumerate((0,2)))
    assert same_weights(a.model, b.model)
    def rows(learn): return [{k: v for k,v in row.items() if v==v} for row in learn.run_log.rows]
    assert rows(a)==rows(b)
    other = fit(learner(crops, tmp_path/'c.pth', seed=1), 1)
    assert other.run_log.rows[0]['tri_g']!=a.run_log.rows[0]['tri_g']

def test_reference_outputs():
    "Network and losses give the numbers that are stored in results/trust/reference.json"
    assert 'all agree' in script('reference.py', '--check')

# Short forms of what takes hours

@pytest.mark.slow
def test_fuzz_short():
    "Short form of results/trust/fuzz.py: no traceback reaches a user, no half-written file"
    assert 'no traceback' in script('fuzz.py', '--cases', 4000, '--out', '')

@pytest.mark.slow
def test_soak_short():
    "Short form of results/trust/soak.py: epochs and pictures add less than 8 MB; a leak made on purpose is seen"
    said = script('soak.py', '--minutes', .5, '--most', 8, '--out', '')
    assert 'embedding' in said and 'MB added' in said
    r = python(TRUST/'soak.py', '--minutes', .5, '--most', 8, '--leak', 16, '--out', '')
    assert r.returncode==1 and 'MB added' in r.stdout, r.stdout+r.stderr

@pytest.mark.slow
def test_mutants_short():
    "Short form of results/trust/mutate.py: mutants of the losses and of Eq. 5, all of them noticed by their pages"
    all_possible = 0
    for page in ('losses', 'semantics'):
        said = script('mutate.py', '--module', page, '--minutes', .4, '--limit', 120, '--out', '')
        found = re.search(rf'{page}: (\d+) of (\d+) killed, (\d+) possible', said).groups()
        killed, tried, possible = map(int, found)
        assert killed==tried>=8, said
        all_possible += possible
    assert all_possible>=70
