"A kill while embedding, two writers, readers during a change, spoilt tables and files, two galleries on one server."
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pgflkd.errors import InputError


def unit(rng, n, width):
    "`n` random unit vectors"
    f = rng.normal(size=(n, width))
    return (f/np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A student with random weights"
    from pgflkd.baseline import Baseline, reid_body
    from pgflkd.deploy import export
    torch.manual_seed(0)
    net = Baseline(reid_body('resnet18', None, stride=16), 5).eval()
    return export(net, tmp_path_factory.mktemp('model')/'student.onnx', size=(32, 16))


@pytest.fixture(scope='module')
def crops(tmp_path_factory):
    "Three hundred pictures, and one that is broken"
    folder, rng = tmp_path_factory.mktemp('crops'), np.random.default_rng(0)
    for i in range(300):
        noise = rng.integers(0, 255, (32, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder/f'{i%50:04d}_c{i%4+1}s1_{i:06d}_00.png')
    (folder/'0007_c1s1_999999_00.png').write_bytes(b'\x89PNG broken')
    return folder


@pytest.fixture(scope='module')
def command(tmp_path_factory):
    "Name of a command -> the start of a command line, as an installed script has it"
    folder = tmp_path_factory.mktemp('bin')
    def make(name):
        file = folder/f'pgflkd_{name}'
        file.write_text(f'from pgflkd.commands.{name} import {name}_command\n{name}_command()\n')
        return [sys.executable, '-W', 'ignore', str(file)]
    return make


def run(command, *args):
    return subprocess.run([*command, *map(str, args)], capture_output=True, text=True, timeout=300)


def killed_after(args, out, rows):
    "Run `args` until the gallery `out` holds so many `rows`, and kill it; how many it holds then"
    from pgflkd.gallery import Gallery
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ, OMP_NUM_THREADS='1'))
    process = subprocess.Popen(args, **quiet)
    while process.poll() is None:
        if (out/'gallery.json').exists() and len(Gallery.open(out))>=rows: break
        time.sleep(.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return Gallery.open(out).check()


@pytest.mark.slow
def test_kill_and_resume(model, crops, command, tmp_path):
    "SIGKILL three times in the middle; in the end every picture is there once, with the features of an undisturbed run"
    from pgflkd.gallery import Gallery
    out = tmp_path/'gallery'
    args = [*command('embed'), str(crops), '--model', str(model), '--out', str(out), '--every', '20', '--bs', '5']
    counts = [killed_after(args, out, rows) for rows in (20, 100, 180)]
    assert counts==sorted(set(counts)) and counts[2]<300, counts       # killed in the middle each time, and it went on
    ids = set(Gallery.open(out).table.id)
    said = run(args)
    assert said.returncode==0 and '300 pictures, 1 skipped' in said.stdout and '999999' in said.stdout, said.stderr
    killed, calm = Gallery.open(out), Gallery.create(tmp_path/'calm', model)
    assert ids<set(killed.table.id)                                    # nothing was done twice
    assert killed.check()==killed.table.fn.nunique()==300
    calm.fill(killed.table[['fn']])
    assert np.abs(killed._now().features-calm._now().features).max()<1e-5


@pytest.mark.slow
def test_kill_at_any_moment(tmp_path):
    "A process that adds and deletes pairs is killed at random moments; the gallery is always one of its whole states"
    from pgflkd.gallery import Gallery
    Gallery.create(tmp_path/'g', dim=8).add(np.eye(8)[:2], pd.DataFrame(dict(pid=[0, 0])))
    code = '''
        import sys, numpy as np, pandas as pd
        from pgflkd.gallery import Gallery
        g = Gallery.open(sys.argv[1])
        for i in range(10**6):
            ids = g.add(np.random.randn(2, 8), pd.DataFrame(dict(pid=[i, i])))
            print(i, flush=True)
            if i%2: g.delete(ids)'''
    versions, rng = [], np.random.default_rng(0)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code), str(tmp_path/'g')],
                                   stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.random()*.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        g = Gallery.open(tmp_path/'g')
        assert g.check()==len(g) and (g.table.pid.value_counts()%2==0).all()
        versions.append(g.facts['version'])
    assert sorted(set(versions))==versions


def test_two_writers(model, crops, command, tmp_path):
    "The second writer is refused in one line, and may write when the first is done"
    from pgflkd.files import locked
    from pgflkd.gallery import Gallery
    g = Gallery.create(tmp_path/'g', model)
    with locked(tmp_path/'g'):
        said = run(command('embed'), crops, '--model', model, '--out', tmp_path/'g')
        assert said.returncode==2 and 'another process is working in it' in said.stderr
        assert said.stderr.count('\n')==1, said.stderr
        with pytest.raises(InputError, match='another process'): g.add(np.ones((1, 512)))
    assert len(g.add(np.ones((1, 512))))==1


def test_readers_see_one_moment(tmp_path):
    "While another process adds pairs and deletes pairs, every look finds whole pairs"
    from pgflkd.gallery import Gallery
    g = Gallery.create(tmp_path/'g', dim=4)
    g.add(np.eye(4, dtype=np.float32)[:2], pd.DataFrame(dict(pid=[0, 0])))
    writer = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', textwrap.dedent('''
        import sys, numpy as np, pandas as pd
        from pgflkd.gallery import Gallery
        g = Gallery.open(sys.argv[1])
        for i in range(1, 60):
            ids = g.add(np.random.randn(2,4), pd.DataFrame(dict(pid=[i,i])))
            if i%3==0: g.delete(ids)'''), str(tmp_path/'g')])
    looks = set()
    while writer.poll() is None:
        answer = g.search(np.ones(4), top=10**6)
        assert (answer.pid.value_counts()==2).all() and answer.score.is_monotonic_decreasing
        looks.add(len(answer))
    assert writer.returncode==0 and len(looks)>5 and len(g)==2*(1+59-19), (looks, len(g))


class Crowd:
    "Rows that come and go in the gallery `g`, and every set of ids that was there at a moment"
    def __init__(self, g, rng):
        self.g, self.rng = g, rng
        self.features, self.alive, self.moments = {}, set(), []
    def add(self, n):
        new = unit(self.rng, n, 16)
        ids = range(len(self.features), len(self.features)+n)
        self.alive |= set(ids)
        self.moments.append(frozenset(self.alive))
        assert self.g.add(new).tolist()==list(ids)
        self.features.update(zip(ids, new))
    def delete(self, n):
        out = self.rng.choice(sorted(self.alive), n, replace=False).tolist()
        self.alive -= set(out)
        self.moments.append(frozenset(self.alive))
        self.g.delete(out)
    def check(self, answer, query):
        "The `answer` is that of one moment, in order, with the right cosines"
        assert frozenset(answer.id) in self.moments and answer.score.is_monotonic_decreasing
        assert np.allclose(answer.score, [self.features[k]@query for k in answer.id], atol=1e-5)


def test_fifty_searches_while_rows_come_and_go(tmp_path):
    "Every answer is right for some moment of the gallery: all that was there then, ranked, and nothing else"
    from pgflkd.gallery import Gallery
    rng = np.random.default_rng(0)
    crowd = Crowd(Gallery.create(tmp_path/'g', dim=16), rng)
    wrong, answers, stop = [], [], threading.Event()
    crowd.add(40)
    queries = unit(rng, 50, 16)
    def ask(i):
        mine = Gallery.open(tmp_path/'g') if i%2 else crowd.g      # half of them share one object with the writer
        try:
            while not stop.is_set():
                answers.append((i, mine.search(queries[i], top=10**6)))
                time.sleep(.05)                   # or the writer would wait for Python's lock most of the time
        except Exception as e: wrong.append(f'{type(e).__name__}: {e}')
    with ThreadPoolExecutor(50) as pool:
        for i in range(50): pool.submit(ask, i)
        for _ in range(4):
            crowd.add(8)
            crowd.delete(5)
        stop.set()
    assert not wrong, wrong[:3]
    assert len(answers)>50 and len({frozenset(a.id) for _, a in answers})>2
    for i, answer in answers: crowd.check(answer, queries[i])


def test_names_of_people_and_cameras(tmp_path):
    "Text stays text, whole numbers stay numbers, dates are read; what was there before is never locked out"
    from pgflkd.gallery import Gallery
    g = Gallery.create(tmp_path/'g', dim=4)
    g.add(np.eye(4))
    known = dict(pid=['ann', '0007', None, 3], camid=['door', 'hall', 2., np.nan],
                 time=['2024-03-01 10:00:00', pd.Timestamp('2024-03-02'), None, 5])
    g.add(np.eye(4), pd.DataFrame(known))
    table = Gallery.open(tmp_path/'g').table
    assert len(table)==8 and table.pid.tolist()[4:]==['ann', '0007', '', '3']
    assert table.camid.tolist()[4:]==['door', 'hall', '2', ''] and table.time[4]==1709287200
    assert g.search(np.eye(4)[0], camera='door').pid.tolist()==['ann']
    assert g.search(np.eye(4)[2], camera=2).id.tolist()==[6]
    assert g.search(np.eye(4)[0], time=('2024-03-01', '2024-03-01T23:59')).pid.tolist()==['ann']


REFUSED = [dict(pid=[1.5]), dict(pid=[float('inf')]), dict(camid=[-.5]), dict(time=['yesterday']), dict(time=['nan']),
           dict(time=[float('inf')]), dict(time=[[1]]), dict(fn=['\ud800']), dict(pid=['a\rb'])]
TAKEN = [dict(pid=[2**70]), dict(pid=['a,"b"\nc']), dict(fn=['NA']), dict(pid=['nan']), dict(camid=[' x ']),
         dict(pid=['﻿']), dict(pid=[True]), dict(time=[-3]), dict(camid=['é中'])]


@pytest.mark.parametrize('row', REFUSED+TAKEN, ids=map(ascii, REFUSED+TAKEN))
def test_what_is_committed_can_be_read(row, tmp_path):
    "Refused in one line before anything changes, or there again, as given, for the next who opens the gallery"
    from pgflkd.gallery import Gallery
    g = Gallery.create(tmp_path/'g', dim=4)
    g.add(np.eye(4))
    before = g.facts
    if row in REFUSED:
        with pytest.raises(InputError) as said: g.add(np.eye(4)[:1], pd.DataFrame(row))
        assert '\n' not in str(said.value) and g.facts==before
    else:
        g.add(np.eye(4)[:1], pd.DataFrame(row))
        (column, value), = row.items()
        assert str(Gallery.open(tmp_path/'g').table[column].iloc[-1])==str(value[0] if column!='time' else -3.)
    assert Gallery.open(tmp_path/'g').check()>=4


def spoil(rng, data):
    "`data` with a few bytes changed, cut, doubled or put in"
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data)+1))
        kind = rng.integers(4)
        if kind==0: data[at:at+1] = bytes([rng.integers(256)])
        elif kind==1: del data[at:at+int(rng.integers(1, 30))]
        elif kind==2: data[at:at] = bytes(rng.choice(list(b'0,"\n{}[]-e.\r\0'), 3))
        else: data = data[:at]
        if not data: break
    return bytes(data)


def one_line(e):
    "The message of `e`"
    assert '\n' not in str(e)
    return str(e)


@pytest.mark.parametrize('which', ['gallery.json', 'table', 'features'])
def test_spoilt_gallery(which, tmp_path):
    "A spoilt file is refused in one line that names it, or the gallery answers; no traceback, ever"
    from pgflkd.gallery import Gallery
    g, rng, refused = Gallery.create(tmp_path/'g', dim=4), np.random.default_rng(0), []
    seen = dict(pid=['ann', 0, 0, 1, 1, 2, 2, 3, 3], camid=[3, 3, 4, 3, 4, 3, 4, 3, 4])
    g.add(unit(rng, 9, 4), pd.DataFrame(dict(fn='a.png', time=range(9), **seen)))
    g.calibrate(far=.3)
    names = dict(zip(('features', 'table'), g.facts['files']))
    file = g.folder/names.get(which, which)
    whole = file.read_bytes()
    for _ in range(150):
        file.write_bytes(spoil(rng, whole))
        try: Gallery.open(g.folder).search(np.ones(4), camera=3, time=(0, 5))
        except InputError as e: refused.append(one_line(e))
    assert len(refused)>30 and all(why.startswith(str(g.folder)) for why in refused)
    file.write_bytes(whole)
    assert g.check()==9


class Bomb:
    "Writes a file when it is unpickled"
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, 'w')


def test_no_pickle_is_opened(model, tmp_path):
    "Features that are pickles are refused, and what is in them does not run"
    from pgflkd.gallery import Gallery
    mark, g = tmp_path/'it ran', Gallery.create(tmp_path/'g', model)
    g.add(np.ones((2, 512)))
    file = tmp_path/'g'/g.facts['files'][0]
    whole = file.read_bytes()
    for harm in (pickle.dumps(Bomb(mark)), None):
        if harm: file.write_bytes(harm)
        else: np.save(file, np.array([Bomb(mark)], object), allow_pickle=True)
        with pytest.raises(InputError): Gallery.open(tmp_path/'g')
    file.write_bytes(whole)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))                    # the bomb was a real one
    assert mark.exists()


def test_a_table_names_no_other_file(tmp_path):
    "gallery.json cannot lead out of its folder"
    from pgflkd.gallery import Gallery
    g = Gallery.create(tmp_path/'g', dim=4)
    facts = g.facts
    for name in ('../features-1.npy', '/etc/passwd', 'features-1.npy\n'):
        (tmp_path/'g/gallery.json').write_text(json.dumps(facts | dict(files=[name, facts['files'][1]])))
        with pytest.raises(InputError, match='gallery.json'): Gallery.open(tmp_path/'g')


def finds_its_own(g):
    "Whether the server of `g` gives the answers of numpy"
    from pgflkd.gallery import Gallery
    exact = Gallery.open(g.folder)
    queries = exact._now().features[:20]
    for mine, true in zip(g.search(queries, 5), exact.search(queries, 5)):
        if mine.id.tolist()!=true.id.tolist() or not np.allclose(mine.score, true.score, atol=1e-5): return False
    return True


def test_two_galleries_on_one_server(tmp_path):
    "Same folder name, same number of rows: each finds its own; what changed is found; another's is not touched"
    client = pytest.importorskip('qdrant_client').QdrantClient(':memory:')
    from pgflkd.gallery import Gallery, Qdrant
    rng, pair = np.random.default_rng(0), []
    for where in ('a', 'b'):
        Gallery.create(tmp_path/where/'gallery', dim=16).add(unit(rng, 200, 16))
        pair.append(Gallery.open(tmp_path/where/'gallery', search=Qdrant(client, exact=False)))
    assert all(map(finds_its_own, pair))
    away = Gallery.open(tmp_path/'a/gallery')                 # changes without the server, as pgflkd_embed does
    away.delete(range(50))
    away.add(unit(rng, 50, 16))                               # as many rows as before
    assert all(map(finds_its_own, pair))
    name = f'pgflkd-{pair[1].facts["id"]}'
    client.update_collection(name, metadata=dict(gallery='of somebody else', sums=[]))
    with pytest.raises(InputError, match='was not touched'): pair[1].search(np.ones(16))
    assert client.count(name).count==200


def test_search_command(model, crops, command, tmp_path):
    "The command finds the picture itself, knows its network, obeys its filters, and refuses in one line"
    said = run(command('embed'), crops, '--model', model, '--out', tmp_path/'g')
    assert said.returncode==0, said.stderr
    query, other = sorted(crops.glob('*_c2*.png'))[3:5]
    said = run(command('search'), tmp_path/'g', query, other, '--top', 3)
    lines = said.stdout.split('\n')
    assert said.returncode==0 and query.name in lines[2] and other.name in lines[7], said.stdout+said.stderr
    said = run(command('search'), tmp_path/'g', query, '--camera', '1,3')
    assert query.name not in said.stdout and '_c1s1' in said.stdout
    said = run(command('search'), tmp_path/'g', query, '--time', 'x')
    assert said.returncode==2 and said.stderr.count('\n')==1, said.stderr


@pytest.mark.parametrize('name', ['export', 'embed', 'search'])
def test_help_starts_at_once(name, command):
    "Nothing heavy is imported to say what the options are"
    code = f'import sys, pgflkd.commands.{name}; print(*{{"torch", "pandas", "numpy", "PIL"}} & set(sys.modules))'
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert said.stdout.strip()=='', said.stdout+said.stderr
    assert 'usage' in run(command(name), '--help').stdout
