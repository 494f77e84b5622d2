"""Every estimator's real loading code on small checkpoints made here; resuming, bad pictures, the command. An estimator
whose package is missing is skipped."""
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from fastcore.test import test_close, test_eq, test_fail
from PIL import Image

from pgflkd.commands.pose import pose_command
from pgflkd.errors import InputError
from pgflkd.estimate import KeypointRCNN, ViTPose, estimate_poses
from pgflkd.keypoints import KeypointStore

test_close.__test__ = test_eq.__test__ = test_fail.__test__ = False     # pytest takes them for tests

def dot(x, y, size=(128,64)):
    "A black picture with a soft white dot at x, y"
    ys, xs = np.arange(size[0])[:,None]+.5, np.arange(size[1])+.5
    return Image.fromarray((255*np.exp(-((ys-y)**2+(xs-x)**2)/18)).astype(np.uint8)).convert('RGB')

PLACES = [(32,64,(128,64)), (10.5,100,(128,64)), (50,12,(128,64)), (70,40,(60,140)), (100,150,(384,128))]

# --- Hugging Face ---------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def vitpose(tmp_path_factory):
    hf = pytest.importorskip('transformers', reason='needs transformers')
    torch.manual_seed(0)
    d = tmp_path_factory.mktemp('vitpose')
    body = hf.VitPoseBackboneConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                                    image_size=[256,192], patch_size=[16,16])
    config = hf.VitPoseConfig(backbone_config=body, num_labels=17, use_simple_decoder=True)
    hf.VitPoseForPoseEstimation(config).save_pretrained(d)
    hf.VitPoseImageProcessor().save_pretrained(d)
    return d

def test_vitpose_loads_a_local_folder(vitpose):
    est = ViTPose(str(vitpose), device='cpu')
    ims = [dot(*o) for o in PLACES]
    a = est(ims)
    test_eq(a.shape, (5,17,3))
    assert np.isfinite(a).all()
    test_close(a[:2], est(ims[:2]), eps=1e-3)                            # a batch is its pictures
    test_close(a, ViTPose(str(vitpose), device='cpu')(ims), eps=1e-5)    # loading twice is loading the same

def test_vitpose_coordinates(vitpose):
    "With a net that only answers where it is bright, all joints come back on the dot"
    est = ViTPose(str(vitpose), device='cpu')
    class Bright:
        def __call__(self, pixel_values, **kw):
            light = pixel_values.mean(1, keepdim=True)-pixel_values.min()
            heat = torch.nn.functional.interpolate(light, (64,48), mode='bilinear', align_corners=False)
            return types.SimpleNamespace(heatmaps=heat.expand(-1,17,-1,-1)/6)
    est.net = Bright()
    for x,y,size in PLACES:
        got = est([dot(x, y, size)])[0]
        test_close(got[:,:2], np.tile([x,y], (17,1)), eps=max(size)/64)         # two cells of the map

def test_vitpose_refuses(tmp_path):
    pytest.importorskip('transformers', reason='needs transformers')
    test_fail(lambda: ViTPose(str(tmp_path), device='cpu'), contains='cannot be loaded by transformers', exc=InputError)

# --- torchvision ----------------------------------------------------------------------------------

def save_rcnn(arch, file):
    "Weights of a small random detector"
    from torchvision.models.detection import KeypointRCNN as Net
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    torch.manual_seed(0)
    torch.save(Net(resnet_fpn_backbone(backbone_name=arch, weights=None), num_classes=2).state_dict(), file)

def test_rcnn(tmp_path):
    save_rcnn('resnet18', tmp_path/'r.pth')
    est = KeypointRCNN(tmp_path/'r.pth', arch='resnet18', min_size=64, device='cpu')
    ims = [dot(*o) for o in PLACES[:2]]
    heads = est.net.roi_heads
    heads.score_thresh, heads.detections_per_img = 0., 3        # a random network believes in nobody
    got = est(ims)
    test_eq(got.shape, (2,17,3))
    assert np.isfinite(got).all() and (0<=got[...,2]).all() and (got[...,2]<=1).all()
    heads.score_thresh = 1.
    test_eq(est(ims).sum(), 0)                                  # nobody found: no pose
    test_fail(lambda: KeypointRCNN(tmp_path/'r.pth', arch='resnet50', device='cpu'), contains='no state dict',
              exc=InputError)
    test_fail(lambda: KeypointRCNN(tmp_path/'none.pth', device='cpu'), contains='No such file', exc=InputError)

def test_rcnn_takes_the_person_in_the_middle(tmp_path):
    est = KeypointRCNN.__new__(KeypointRCNN)
    est.device = torch.device('cpu')
    est.name = 'fake'
    def box(x0, x1): return torch.stack([torch.linspace(x0,x1,17), torch.linspace(10,110,17), torch.ones(17)], 1)
    def net(ims):
        return [dict(keypoints=torch.stack([box(50,63), box(20,44)]), keypoints_scores=torch.full((2,17), 5.),
                     scores=torch.tensor([.99,.6]))]*len(ims)
    est.net = net
    test_close(est([dot(*PLACES[0])])[0,0,:2], [20,10], eps=1e-4)

def test_missing_package_names_it(tmp_path, monkeypatch):
    from pgflkd import errors
    def absent(name): raise ModuleNotFoundError(name, name=name)
    monkeypatch.setattr(errors.importlib, 'import_module', absent)
    test_fail(lambda: ViTPose(str(tmp_path)), contains='transformers is not installed; run: pip install transformers',
              exc=InputError)

# --- the run --------------------------------------------------------------------------------------

class Counting:
    "An estimator that sees the size of a picture, and stops after some batches"
    def __init__(self, stop=None): self.stop, self.seen = stop, 0
    def __repr__(self): return 'counting'
    def __call__(self, ims):
        if self.stop==0: raise KeyboardInterrupt
        if self.stop: self.stop -= 1
        self.seen += len(ims)
        return np.stack([np.tile([o.width/2, o.height/2, .9], (17,1)) for o in ims])

@pytest.fixture
def folder(tmp_path):
    root = tmp_path/'pictures'
    rng = np.random.default_rng(0)
    for i in range(23):
        (root/f's{i%2}').mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 255, (40+i,20+i,3), dtype=np.uint8)
        Image.fromarray(noise).save(root/f's{i%2}'/f'a{i} ü.png')
    (root/'s0/zero.jpg').touch()
    (root/'s1/half.png').write_bytes((root/'s1/a1 ü.png').read_bytes()[:200])
    Image.new('L', (20,40)).save(root/'s0/grey.png')
    Image.new('CMYK', (20,40)).save(root/'s0/ink.jpg')
    return root

def check_same(fresh, store):
    "The run that was stopped made what a run in one go makes"
    test_eq(fresh.names, store.names)
    test_eq(fresh.joints, store.joints)
    test_eq(fresh.size, store.size)

def test_stopped_run_goes_on(folder, tmp_path):
    out = tmp_path/'k.npz'
    with pytest.raises(KeyboardInterrupt): estimate_poses(folder, Counting(stop=3), out, bs=4, every=2, progress=False)
    assert not out.exists() and len(list(tmp_path.glob('.k.npz*part*')))==1
    second = Counting()
    store, bad = estimate_poses(folder, second, out, bs=4, every=2, progress=False)
    test_eq(len(store), 25)
    test_eq(sorted(n for n,_ in bad), ['half.png','zero.jpg'])
    assert second.seen < 25
    fresh, _ = estimate_poses(folder, Counting(), tmp_path/'f.npz', bs=7, progress=False)
    check_same(fresh, store)
    test_eq(KeypointStore.load(out).names, store.names)
    test_eq(sorted(o.name for o in tmp_path.iterdir()), ['f.npz','k.npz','pictures'])
    test_close(store.joints[:,0,:2]*2, store.size[:,::-1], eps=1e-4)
    test_fail(lambda: estimate_poses(folder, Counting(), out, progress=False), contains='give another name',
              exc=InputError)

def test_what_goes_on_says_so(folder, tmp_path, capsys):
    "An estimator that was mended meanwhile has the old name: the line says which file to remove"
    out = tmp_path/'k.npz'
    with pytest.raises(KeyboardInterrupt): estimate_poses(folder, Counting(stop=3), out, bs=4, every=2, progress=False)
    part, = tmp_path.glob('.k.npz*part*')
    assert not capsys.readouterr().out
    n = len(KeypointStore.load(part))
    estimate_poses(folder, Counting(), out, bs=4, progress=False)
    assert f'goes on after {n} pictures of 27; remove {part} to begin anew' in capsys.readouterr().out

def test_a_picture_that_was_replaced_meanwhile_is_estimated_again(folder, tmp_path):
    out = tmp_path/'k.npz'
    with pytest.raises(KeyboardInterrupt): estimate_poses(folder, Counting(stop=3), out, bs=4, every=1, progress=False)
    first = min(o for o in folder.rglob('*.*') if o.name not in ('zero.jpg','half.png'))
    time.sleep(.05)
    Image.new('RGB', (60,80)).save(first)
    store, _ = estimate_poses(folder, Counting(), out, bs=4, progress=False)
    fresh, _ = estimate_poses(folder, Counting(), tmp_path/'f.npz', progress=False)
    assert [80,60] in store.size.tolist()
    check_same(fresh, store)

def test_run_refuses(folder, tmp_path):
    def go(est, root=folder, out='o.npz'): return estimate_poses(root, est, tmp_path/out, progress=False)
    test_fail(lambda: go(Counting(), tmp_path/'none'), contains='no such folder', exc=InputError)
    (tmp_path/'e').mkdir()
    test_fail(lambda: go(Counting(), tmp_path/'e'), contains='holds no pictures', exc=InputError)
    (tmp_path/'e/x.jpg').touch()
    test_fail(lambda: go(Counting(), tmp_path/'e'), contains='none of 1 pictures can be read', exc=InputError)
    test_fail(lambda: go(Counting(), out='o.txt'), contains='.npz', exc=InputError)
    test_fail(lambda: go(lambda ims: np.zeros((len(ims),18,3))), contains='returns (n,17,3)', exc=InputError)
    test_fail(lambda: go(lambda ims: np.full((len(ims),17,3), 90.)), contains='confidences run to 90', exc=InputError)
    assert not (tmp_path/'o.npz').exists()

def test_same_file_name_in_two_folders_keeps_the_folder(folder, tmp_path):
    (folder/'s1/grey.png').write_bytes((folder/'s0/grey.png').read_bytes())
    assert {'s0/grey.png','s1/grey.png'} <= set(
        estimate_poses(folder, Counting(), tmp_path/'k.npz', progress=False)[0].names)

# --- the command ----------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def rcnn(tmp_path_factory):
    "Weights of a small random detector"
    file = tmp_path_factory.mktemp('rcnn')/'r.pth'
    save_rcnn('resnet50', file)
    return file

def test_command(folder, rcnn, tmp_path):
    script = 'from pgflkd.commands.pose import pose_command\npose_command()\n'         # what the installed script does
    (tmp_path/'run.py').write_text(script)
    for i in range(3, 23): (folder/f's{i%2}'/f'a{i} ü.png').unlink()
    args = [folder, '--estimator', 'rcnn', '--weights', rcnn, '--out', 'k.npz']
    r = subprocess.run([sys.executable, 'run.py', *map(str, args)], capture_output=True, text=True, cwd=tmp_path)
    said = r.stdout+r.stderr
    test_eq(r.returncode, 0)
    assert ('k.npz: KeypointStore of 5 pictures' in said and '2 pictures could not be read' in said
            and 'zero.jpg' in said), said
    test_eq(len(KeypointStore.load(tmp_path/'k.npz')), 5)

def test_help_loads_no_torch():
    "`pgflkd_pose --help` starts at once"
    code = "import sys, pgflkd.commands.pose\nprint([o for o in ('torch','fastai','pandas') if o in sys.modules])"
    test_eq(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip(), '[]')

def test_command_refuses(folder, tmp_path, capsys):
    (tmp_path/'k.npz').touch()
    wrong = {'k.npz: exists': dict(convert=tmp_path/'m.csv', out=tmp_path/'k.npz'),
             'unknown estimator magic': dict(estimator='magic'), 'no such folder': dict(folder=tmp_path/'x'),
             'no such file': dict(convert=tmp_path/'x.csv', out=tmp_path/'n.npz')}
    for why,options in wrong.items():
        given = {k: str(v) for k,v in {'folder': folder, **options}.items()}
        with pytest.raises(SystemExit) as e: pose_command(**given)
        err = capsys.readouterr().err
        test_eq((e.value.code, len(err.strip().splitlines())), (2,1))
        assert err.startswith('pgflkd_pose: ') and why in err, err

def test_command_converts(folder, tmp_path, capsys):
    (tmp_path/'m.csv').write_text('name:keypoints_y:keypoints_x\n' + f'grey.png: {[20]*18}: {[10]*18}\n')
    pose_command(str(folder), convert=str(tmp_path/'m.csv'), out=str(tmp_path/'c.npz'))
    assert 'from market csv' in capsys.readouterr().out
    test_eq(KeypointStore.load(tmp_path/'c.npz').joints[0,0], [10.5,20.5,1])
