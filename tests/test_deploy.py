"A file without fastai, a file with a bomb in it, a kill in the middle of embedding, two writers, readers during a change."
import json, os, pickle, signal, subprocess, sys, textwrap, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from safetensors.torch import save_file

def python(code, *args, **kw):
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, timeout=120, **kw)

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A student with random weights"
    from pgflkd.deploy import Student, fingerprint
    torch.manual_seed(0)
    card = dict(arch='resnet18', stride=16, same_padding=False, size=[32,16], stats=[[.5]*3,[.25]*3], dim=512)
    net = Student(card)
    path = tmp_path_factory.mktemp('model')/'student.safetensors'
    save_file({k: v.contiguous() for k,v in net.state_dict().items()}, path, metadata={'pgflkd': json.dumps(dict(card, weights=fingerprint(net.state_dict())))})
    return path

@pytest.fixture(scope='module')
def crops(tmp_path_factory):
    "Six hundred pictures, one of them broken"
    d, rng = tmp_path_factory.mktemp('crops'), np.random.default_rng(0)
    for i in range(600): Image.fromarray(rng.integers(0, 255, (32,16,3), dtype=np.uint8)).save(d/f'{i%50:04d}_c{i%4+1}s1_{i:06d}_00.png')
    (d/'0007_c1s1_999999_00.png').write_bytes(b'\x89PNG broken')
    return d

def test_no_fastai(model):
    "The embedder loads and runs where fastai cannot be imported, and imports no pose"
    r = python('''
        import sys; sys.modules['fastai'] = None
        import torch
        from pgflkd.deploy import load_embedder
        f = load_embedder(sys.argv[1])(torch.rand(3,3,32,16))
        assert f.shape==(3,512) and (f.norm(dim=1)-1).abs().max()<1e-5
        try: load_embedder('nothing.safetensors')
        except ValueError as e: assert 'no such file' in str(e)
        else: raise SystemExit('a missing file was loaded')
        assert not [m for m in sys.modules if m.startswith('fastai') and m!='fastai' or m=='pgflkd.pose']''', model)
    assert r.returncode==0, r.stderr

class Bomb:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (open, (self.path, 'w'))

@pytest.mark.parametrize('name', ['bomb.safetensors', 'bomb.onnx', 'bomb.pth', 'bomb.pt2', 'bomb.pkl', 'bomb'])
@pytest.mark.parametrize('how', ['pickle', 'torch'])
def test_bomb(tmp_path, name, how):
    "A pickle under any name is refused, and what is in it does not run"
    from pgflkd.deploy import load_embedder
    mark, f = tmp_path/'it ran', tmp_path/name
    f.write_bytes(pickle.dumps(Bomb(mark))) if how=='pickle' else torch.save(dict(x=Bomb(mark)), f)
    with pytest.raises(ValueError): load_embedder(f)
    assert not mark.exists()
    if how=='pickle': pickle.loads(f.read_bytes()); assert mark.exists()      # the bomb was a real one

@pytest.fixture(scope='module')
def command(tmp_path_factory):
    "name of a module, name of a command -> the start of a command line, as an installed script has it"
    d = tmp_path_factory.mktemp('bin')
    def make(module, name):
        f = d/f'pgflkd_{name}'
        f.write_text(f'from pgflkd.{module} import {name}_command\n{name}_command()\n')
        return [sys.executable, '-W', 'ignore', str(f)]
    return make

def test_kill_and_resume(model, crops, command, tmp_path):
    "SIGKILL three times in the middle; in the end every picture is there once, with the features of an undisturbed run"
    from pgflkd.deploy import load_embedder
    from pgflkd.shelf import View, check_folder, embed_pictures
    out = tmp_path/'gallery'
    args = [*command('shelf', 'embed'), str(crops), '--model', str(model), '--out', str(out), '--every', '25', '--bs', '5']
    counts = []
    for want in (1, 6, 12):                    # shards that must be there before the kill
        p = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ, OMP_NUM_THREADS='1'))
        while p.poll() is None and not ((out/'manifest.json').exists() and len(json.loads((out/'manifest.json').read_text())['shards'])>=want): time.sleep(.005)
        p.send_signal(signal.SIGKILL); p.wait()
        counts.append(len(View(out))); check_folder(out)
    assert 25<=counts[0]<counts[1]<counts[2]<600, counts          # it was killed in the middle each time, and went on
    r = subprocess.run(args, capture_output=True, text=True, timeout=120)
    assert r.returncode==0 and '600 pictures' in r.stdout and '1 skipped' in r.stdout and '999999' in r.stdout, r.stdout+r.stderr
    v = View(out)
    assert sorted(map(os.path.basename, v.table.fn))==sorted(p.name for p in crops.iterdir() if '999999' not in p.name)
    assert v.table.id.is_unique and check_folder(out)==600
    embed_pictures(crops, load_embedder(model), tmp_path/'calm', bs=5)
    w = View(tmp_path/'calm')
    a, b = (o.table.fn.argsort().to_numpy() for o in (v, w))
    assert np.abs(v.rows(a)-w.rows(b)).max()<1e-5
    (out/'000000.npy').write_bytes((out/'000000.npy').read_bytes()[:-4]+b'\0\0\0\1')
    with pytest.raises(ValueError, match='checksum'): check_folder(out)

def test_two_writers(model, crops, command, tmp_path):
    "The second writer is refused in one line, and may write when the first is done"
    from pgflkd.shelf import writing
    args = [*command('shelf', 'embed'), str(crops), '--model', str(model), '--out', str(tmp_path/'g')]
    with writing(tmp_path/'g'):
        r = subprocess.run(args, capture_output=True, text=True)
        assert r.returncode==2 and 'another process is writing' in r.stderr and r.stderr.count('\n')==1, r.stderr
    assert subprocess.run(args, capture_output=True).returncode==0

def test_readers_see_one_moment(tmp_path):
    "While another process adds pairs, deletes pairs and compacts, every look finds whole pairs"
    from pgflkd.gallery import Gallery
    from pgflkd.shelf import View
    g = Gallery.create(tmp_path/'g', dim=4)
    g.add(np.eye(4, dtype=np.float32)[:2], pd.DataFrame(dict(pid=[0,0])))
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', textwrap.dedent('''
        import sys, numpy as np, pandas as pd
        from pgflkd.gallery import Gallery
        g = Gallery.open(sys.argv[1])
        for i in range(1, 60):
            ids = g.add(np.random.randn(2,4), pd.DataFrame(dict(pid=[i,i])))
            if i%3==0: g.delete(ids)
            if i%10==0: g.compact()'''), str(tmp_path/'g')])
    looks = set()
    while p.poll() is None:
        g.refresh()
        v = g.view
        assert (v.table[v.alive].pid.value_counts()==2).all() and len(v.rows(np.arange(len(v))))==len(v)
        looks.add(len(g))
    assert p.returncode==0 and len(looks)>5 and len(g.refresh())==2*(1+59-19), (looks, len(g))

def test_search_command(model, crops, command, tmp_path):
    "The command finds the picture itself, obeys its filters, and refuses in one line"
    from pgflkd.deploy import load_embedder
    from pgflkd.shelf import embed_pictures
    embed_pictures(crops, load_embedder(model), tmp_path/'g')
    q = sorted(crops.glob('*_c2*.png'))[3]
    search = lambda *a: subprocess.run([*command('gallery', 'search'), str(tmp_path/'g'), str(q), *map(str, a)], capture_output=True, text=True)
    r = search('--model', model, '--top', 3)
    assert r.returncode==0 and q.name in r.stdout.split('\n')[1] and len(r.stdout.strip().split('\n'))==4, r.stdout+r.stderr
    r = search('--model', model, '--camera', '0,2')
    assert q.name not in r.stdout and '_c1s1' in r.stdout
    r = search('--model', model, '--camera', 'x')
    assert r.returncode==2 and r.stderr.count('\n')==1, r.stderr

def test_export_states_parity_and_int8_loss(tmp_path):
    "Every format is compared when it is written and again here; the card says what eight bits cost, and that is what they cost"
    pytest.importorskip('onnxruntime'); pytest.importorskip('onnxscript')
    from torchvision.models import resnet18
    from pgflkd.data import reid_dls
    from pgflkd.deploy import evaluate_embedder, export, load_embedder
    from pgflkd.learner import baseline_learner
    from pgflkd.synthetic import render_world, world_joints
    df = render_world('tiny', progress=False)
    dls = reid_dls(df, world_joints(df), size=(64,32), stride=16, bs=32, per_id=4, seed=0)
    torch.manual_seed(0)
    f = export(baseline_learner(dls, resnet18, weights=None), tmp_path/'student.safetensors', int8=True, accuracy=pd.DataFrame())
    card = json.loads((tmp_path/'student.json').read_text())
    assert {k: v['min_cosine']>=.99999 for k,v in card['parity'].items() if k!='int8'}==dict(safetensors=True, onnx=True, program=True)
    x = torch.rand(5, 3, 64, 32)
    a, b = (load_embedder(tmp_path/f'student{s}')(x) for s in ('.safetensors','.onnx'))
    assert (a*b).sum(1).min()>=.99999 and (a-b).abs().max()<=1e-5
    stated = {r['query_set']: r for r in card['int8']}
    mAP = evaluate_embedder(load_embedder(tmp_path/'student.int8.onnx'), dls.test_df).set_index('query_set').mAP
    assert set(stated)==set(mAP.index) and all(abs(stated[s]['mAP_int8']-mAP[s])<1e-6 for s in stated)
    assert all(abs(r['points_lost']-100*(r['mAP_fp32']-r['mAP_int8']))<1e-9 for r in stated.values())

def test_big_gallery_becomes_approximate(tmp_path, capsys):
    "Below 100,000 rows search is exact; from there on it is approximate, with the recall that was measured and that a new measurement confirms"
    pytest.importorskip('faiss', reason='faiss is not installed: pip install -e ".[search]"')
    from pgflkd.gallery import BIG, Gallery
    from pgflkd.index import crowd_features, recall
    f, pid, q, _ = crowd_features(BIG, 32, noise=.7, latent=16, queries=50)
    g = Gallery.create(tmp_path/'g', dim=32)
    g.add(f[:-1], pd.DataFrame(dict(pid=pid[:-1])))
    assert Gallery.open(tmp_path/'g').how=='exact' and not capsys.readouterr().err
    g.add(f[-1:])
    g = Gallery.open(tmp_path/'g')
    said, index = capsys.readouterr().err, g.view.m['index']
    assert 'building an index of 100,000 pictures' in said and index['recall']>=.95 and f"recall@10 {index['recall']:.3f}" in g.how, said
    exact = Gallery.open(tmp_path/'g', big=None)
    assert exact.how=='exact'
    found, true = ([o.search(x).id.to_numpy() for x in q] for o in (g, exact))
    assert recall(found, np.array(true))>=.9
    assert g.search(q[0]).attrs['how']==g.how and Gallery.open(tmp_path/'g').how==g.how and not capsys.readouterr().err
