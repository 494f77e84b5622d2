"""Every estimator's real loading code on small checkpoints made here; resuming, bad pictures, the command. An estimator whose package is missing is skipped."""
import subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastcore.test import test_close, test_eq, test_fail
from pgflkd.estimate import KeypointRCNN, MoveNet, OnnxPose, ViTPose, estimate_poses, fit_into, pose_command
from pgflkd.readers.poses import MARKET_14, read_market_mat
from pgflkd.keypoints import KeypointStore, compare_joints
from pgflkd.errors import InputError

test_close.__test__ = test_eq.__test__ = test_fail.__test__ = False     # pytest takes them for tests
MOVENET = Path(__file__).resolve().parents[2]/'shared/data/movenet_single_pose_lightning_ptq.tflite'

def dot(x, y, size=(128,64)):
    "A black picture with a soft white dot at x, y"
    ys, xs = np.arange(size[0])[:,None]+.5, np.arange(size[1])+.5
    return Image.fromarray((255*np.exp(-((ys-y)**2+(xs-x)**2)/18)).astype(np.uint8)).convert('RGB')

PLACES = [(32,64,(128,64)), (10.5,100,(128,64)), (50,12,(128,64)), (70,40,(60,140)), (100,150,(384,128))]

# --- Hugging Face ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def vitpose(tmp_path_factory):
    hf = pytest.importorskip('transformers', reason='needs the extra pose-hf')
    torch.manual_seed(0); d = tmp_path_factory.mktemp('vitpose')
    body = hf.VitPoseBackboneConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=[256,192], patch_size=[16,16])
    hf.VitPoseForPoseEstimation(hf.VitPoseConfig(backbone_config=body, num_labels=17, use_simple_decoder=True)).save_pretrained(d)
    hf.VitPoseImageProcessor().save_pretrained(d)
    return d

def test_vitpose_loads_a_local_folder(vitpose):
    est = ViTPose(str(vitpose), device='cpu'); ims = [dot(*o) for o in PLACES]
    a = est(ims); test_eq(a.shape, (5,17,3)); assert np.isfinite(a).all()
    test_close(a[:2], est(ims[:2]), eps=1e-3)                            # a batch is its pictures
    test_close(a, ViTPose(str(vitpose), device='cpu')(ims), eps=1e-5)    # loading twice is loading the same

def test_vitpose_coordinates(vitpose):
    "With a net that only answers where it is bright, all joints come back on the dot"
    est = ViTPose(str(vitpose), device='cpu')
    class Bright:
        def __call__(self, pixel_values, **kw):
            import types
            return types.SimpleNamespace(heatmaps=torch.nn.functional.interpolate(pixel_values.mean(1, keepdim=True)-pixel_values.min(), (64,48), mode='bilinear', align_corners=False).expand(-1,17,-1,-1)/6)
    est.net = Bright()
    for x,y,size in PLACES:
        got = est([dot(x, y, size)])[0]; test_close(got[:,:2], np.tile([x,y], (17,1)), eps=max(size)/64)   # two cells of the map

def test_vitpose_refuses(tmp_path):
    pytest.importorskip('transformers', reason='needs the extra pose-hf')
    test_fail(lambda: ViTPose(str(tmp_path), device='cpu'), contains='cannot be loaded by transformers', exc=InputError)

# --- ONNX -----------------------------------------------------------------------------------------------------------------------

def onnx_file(path, head, batch='n', size=(256,192)):
    "A network whose joints are all where the picture is bright: `head` heatmaps, simcc or wrong"
    onnx = pytest.importorskip('onnx', reason='needs onnx to make a checkpoint'); h, t, nh = onnx.helper, onnx.TensorProto.FLOAT, onnx.numpy_helper
    pytest.importorskip('onnxruntime', reason='needs the extra pose-onnx')
    w = nh.from_array(np.full((17,3,1,1), .3, np.float32), 'w'); H, W = size; inits = [w]
    nodes = [h.make_node('Conv', ['x','w'], ['c'])]
    if head=='heatmaps':
        nodes += [h.make_node('AveragePool', ['c'], ['y'], kernel_shape=[4,4], strides=[4,4])]; outs = [('y', [batch,17,H//4,W//4])]
    elif head=='simcc':
        inits += [nh.from_array(np.array([1,1,2], np.float32), 'scale')]
        for o,axis in (('simcc_y',3), ('simcc_x',2)):                    # y first: the order must not matter
            inits += [nh.from_array(np.array([axis], np.int64), f'axis{axis}')]
            nodes += [h.make_node('ReduceMax', ['c',f'axis{axis}'], [f'm{axis}'], keepdims=0), h.make_node('Resize', [f'm{axis}','','scale'], [o], mode='nearest')]
        outs = [('simcc_y', [batch,17,2*H]), ('simcc_x', [batch,17,2*W])]
    else: nodes, inits, outs = [h.make_node('Flatten', ['x'], ['y'])], [], [('y', [batch,3*H*W])]
    g = h.make_graph(nodes, 'g', [h.make_tensor_value_info('x', t, [batch,3,H,W])], [h.make_tensor_value_info(n, t, s) for n,s in outs], inits)
    onnx.save(h.make_model(g, opset_imports=[h.make_opsetid('', 18)], ir_version=9), path); return path

@pytest.mark.parametrize('head', ['heatmaps','simcc'])
@pytest.mark.parametrize('batch', ['n', 1, 4])
def test_onnx(tmp_path, head, batch):
    est = OnnxPose(onnx_file(tmp_path/'a.onnx', head, batch), origin=.5)   # averages of 4 x 4 pixels: cells have middles
    got = est([dot(*o) for o in PLACES])
    test_eq(got.shape, (5,17,3))
    for g,(x,y,size) in zip(got, PLACES): test_close(g[:,:2], np.tile([x,y], (17,1)), eps=max(size)/64); assert (g[:,2]>.1).all()

def test_onnx_refuses(tmp_path):
    (tmp_path/'bad.onnx').write_text('hello')
    est = OnnxPose(onnx_file(tmp_path/'a.onnx', 'wrong'))
    test_fail(lambda: est([dot(*PLACES[0])]), contains='known are heatmaps', exc=InputError)
    test_fail(lambda: OnnxPose(tmp_path/'bad.onnx'), contains='onnxruntime cannot read it', exc=InputError)
    test_fail(lambda: OnnxPose(tmp_path/'none.onnx'), contains='no such file', exc=InputError)

# --- torchvision ----------------------------------------------------------------------------------------------------------------

def test_rcnn(tmp_path):
    from torchvision.models.detection import KeypointRCNN as Net
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    torch.manual_seed(0); torch.save(Net(resnet_fpn_backbone(backbone_name='resnet18', weights=None), num_classes=2).state_dict(), tmp_path/'r.pth')
    est = KeypointRCNN(tmp_path/'r.pth', arch='resnet18', min_size=64, device='cpu'); ims = [dot(*o) for o in PLACES[:2]]
    est.net.roi_heads.score_thresh, est.net.roi_heads.detections_per_img = 0., 3                                   # a random network believes in nobody
    got = est(ims); test_eq(got.shape, (2,17,3)); assert np.isfinite(got).all() and (0<=got[...,2]).all() and (got[...,2]<=1).all()
    est.net.roi_heads.score_thresh = 1.; test_eq(est(ims).sum(), 0)       # nobody found: no pose
    test_fail(lambda: KeypointRCNN(tmp_path/'r.pth', arch='resnet50', device='cpu'), contains='no state dict', exc=InputError)
    test_fail(lambda: KeypointRCNN(tmp_path/'none.pth', device='cpu'), contains='no such file', exc=InputError)

def test_rcnn_takes_the_person_in_the_middle(tmp_path):
    est = KeypointRCNN.__new__(KeypointRCNN); est.device = torch.device('cpu'); est.name = 'fake'
    box = lambda x0,x1: torch.stack([torch.linspace(x0,x1,17), torch.linspace(10,110,17), torch.ones(17)], 1)
    est.net = lambda ims: [dict(keypoints=torch.stack([box(50,63), box(20,44)]), keypoints_scores=torch.full((2,17), 5.), scores=torch.tensor([.99,.6]))]*len(ims)
    test_close(est([dot(*PLACES[0])])[0,0,:2], [20,10], eps=1e-4)

# --- LiteRT ---------------------------------------------------------------------------------------------------------------------

def test_movenet_on_rendered_people(tmp_path):
    pytest.importorskip('ai_edge_litert', reason='needs the extra pose-litert')
    if not MOVENET.exists(): pytest.skip(f"MoveNet's weights are not at {MOVENET}")
    from pgflkd.synthetic import render_world, world_joints
    df = render_world('tiny', out=tmp_path/'w', seed=0, progress=False); rows = np.flatnonzero((df.role=='gallery') & ~df.occluded)[:40]
    est, truth = MoveNet(MOVENET), world_joints(df)[rows]
    got = est([Image.open(o).convert('RGB') for o in df.fn.iloc[rows]]); test_eq(got.shape, (len(rows),17,3))
    seen = truth*[1,1,0] + (truth[...,2:]>.3)*[0,0,1.]
    mean = np.tile((seen[...,:2]*seen[...,2:]).sum(0)/seen[...,2:].sum(0), (len(rows),1,1))
    share = lambda j: compare_joints(j, seen).within.iloc[0]
    print('MoveNet', share(got), 'mean pose', share(np.concatenate([mean, mean[...,:1]*0+1], -1)))
    assert share(got) > .5                                               # drawn people are not what it learned from

def test_movenet_refuses(tmp_path):
    pytest.importorskip('ai_edge_litert', reason='needs the extra pose-litert')
    (tmp_path/'a.tflite').write_text('hello'); test_fail(lambda: MoveNet(tmp_path/'a.tflite'), contains='cannot read it', exc=InputError)
    test_fail(lambda: MoveNet(tmp_path/'none.tflite'), contains='no such file', exc=InputError)

@pytest.mark.parametrize('package,make', [('ai_edge_litert', lambda p: MoveNet(p)), ('onnxruntime', lambda p: OnnxPose(p)), ('transformers', lambda p: ViTPose(str(p)))])
def test_missing_package_names_its_extra(tmp_path, monkeypatch, package, make):
    (tmp_path/'net').write_text('x'); real = __import__
    def absent(name, *a, **k):
        if name.split('.')[0] in (package, 'tflite_runtime'): raise ImportError(name)
        return real(name, *a, **k)
    monkeypatch.setattr('builtins.__import__', absent)
    test_fail(lambda: make(tmp_path/'net'), contains='pip install "pgflkd[pose-', exc=InputError)

# --- the run --------------------------------------------------------------------------------------------------------------------

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
    root = tmp_path/'pictures'; rng = np.random.default_rng(0)
    for i in range(23): (root/f's{i%2}').mkdir(parents=True, exist_ok=True); Image.fromarray(rng.integers(0,255,(40+i,20+i,3),dtype=np.uint8)).save(root/f's{i%2}'/f'a{i} ü.png')
    (root/'s0/zero.jpg').touch(); (root/'s1/half.png').write_bytes((root/'s1/a1 ü.png').read_bytes()[:200]); Image.new('L', (20,40)).save(root/'s0/grey.png'); Image.new('CMYK', (20,40)).save(root/'s0/ink.jpg')
    return root

def test_stopped_run_goes_on(folder, tmp_path):
    out = tmp_path/'k.npz'
    with pytest.raises(KeyboardInterrupt): estimate_poses(folder, Counting(stop=3), out, bs=4, every=2, progress=False)
    assert not out.exists() and len(list(tmp_path.glob('.k.npz*part*')))==1
    second = Counting(); store, bad = estimate_poses(folder, second, out, bs=4, every=2, progress=False)
    test_eq(len(store), 25); test_eq(sorted(n for n,_ in bad), ['half.png','zero.jpg']); assert second.seen < 25
    fresh, _ = estimate_poses(folder, Counting(), tmp_path/'f.npz', bs=7, progress=False)
    test_eq(fresh.names, store.names); test_eq(fresh.joints, store.joints); test_eq(fresh.size, store.size)
    test_eq(KeypointStore.load(out).names, store.names); test_eq(sorted(o.name for o in tmp_path.iterdir()), ['f.npz','k.npz','pictures'])
    test_close(store.joints[:,0,:2]*2, store.size[:,::-1], eps=1e-4)
    test_fail(lambda: estimate_poses(folder, Counting(), out, progress=False), contains='exists; give another', exc=InputError)

def test_run_refuses(folder, tmp_path):
    go = lambda est, root=folder, out='o.npz': estimate_poses(root, est, tmp_path/out, progress=False)
    test_fail(lambda: go(Counting(), tmp_path/'none'), contains='no such folder', exc=InputError)
    (tmp_path/'e').mkdir(); test_fail(lambda: go(Counting(), tmp_path/'e'), contains='holds no pictures', exc=InputError)
    (tmp_path/'e/x.jpg').touch(); test_fail(lambda: go(Counting(), tmp_path/'e'), contains='none of 1 pictures can be read', exc=InputError)
    test_fail(lambda: go(Counting(), out='o.txt'), contains='.npz', exc=InputError)
    test_fail(lambda: go(lambda ims: np.zeros((len(ims),18,3))), contains='returns (n,17,3)', exc=InputError)
    test_fail(lambda: go(lambda ims: np.full((len(ims),17,3), 90.)), contains='confidences run to 90', exc=InputError)
    assert not (tmp_path/'o.npz').exists()

def test_same_file_name_in_two_folders_keeps_the_folder(folder, tmp_path):
    (folder/'s1/grey.png').write_bytes((folder/'s0/grey.png').read_bytes())
    assert {'s0/grey.png','s1/grey.png'} <= set(estimate_poses(folder, Counting(), tmp_path/'k.npz', progress=False)[0].names)

def pgflkd_pose(*args, cwd):
    (cwd/'pgflkd_pose.py').write_text('from pgflkd.estimate import pose_command\npose_command()\n')        # what the installed script does
    return subprocess.run([sys.executable, 'pgflkd_pose.py', *map(str, args)], capture_output=True, text=True, cwd=cwd)

def test_command(folder, tmp_path):
    net = onnx_file(tmp_path/'a.onnx', 'heatmaps')
    r = pgflkd_pose(folder, '--estimator', 'onnx', '--weights', net, '--out', 'k.npz', cwd=tmp_path)
    test_eq(r.returncode, 0); assert 'k.npz: KeypointStore of 25 pictures' in r.stdout and '2 pictures could not be read' in r.stdout and 'zero.jpg' in r.stdout, r.stdout+r.stderr
    test_eq(len(KeypointStore.load(tmp_path/'k.npz')), 25)

def test_command_refuses(folder, tmp_path, capsys):
    net = onnx_file(tmp_path/'a.onnx', 'heatmaps'); (tmp_path/'k.npz').touch()
    for kw,why in ((dict(folder=folder, out=tmp_path/'k.npz', estimator='onnx', weights=net), 'k.npz exists'), (dict(folder=folder, estimator='magic'), 'unknown estimator magic'), (dict(folder=folder, estimator='movenet'), '--weights'),
                   (dict(folder=tmp_path/'x', estimator='onnx', weights=net), 'no such folder'), (dict(folder=folder, convert=tmp_path/'x.csv', out=tmp_path/'n.npz'), 'no such file')):
        with pytest.raises(SystemExit) as e: pose_command(**{k: v if k=='estimator' else str(v) for k,v in kw.items()})
        err = capsys.readouterr().err; test_eq((e.value.code, len(err.strip().splitlines())), (2,1)); assert err.startswith('pgflkd_pose: ') and why in err, err

def test_command_converts(folder, tmp_path, capsys):
    (tmp_path/'m.csv').write_text('name:keypoints_y:keypoints_x\n' + f'grey.png: {[20]*18}: {[10]*18}\n')
    pose_command(str(folder), convert=str(tmp_path/'m.csv'), out=str(tmp_path/'c.npz')); assert 'from market csv' in capsys.readouterr().out
    test_eq(KeypointStore.load(tmp_path/'c.npz').joints[0,0], [10.5,20.5,1])

def test_market_mat_of_matlab_73(tmp_path):
    h5py = pytest.importorskip('h5py', reason='needs the extra mat')
    rng = np.random.default_rng(0); pp = np.concatenate([rng.integers(1,65,(14,5)), rng.integers(1,129,(14,5))]).astype(float); (tmp_path/'p').mkdir()
    for i in range(5): Image.new('RGB', (64,128)).save(tmp_path/f'p/{i}.jpg')
    with h5py.File(tmp_path/'a.mat', 'w', userblock_size=512) as f: f['pp'] = pp.T
    with open(tmp_path/'a.mat', 'r+b') as f: f.write(b'MATLAB 7.3 MAT-file, Platform: GLNXA64'.ljust(124) + bytes([0,2]) + b'IM')
    o = read_market_mat(tmp_path/'a.mat', tmp_path/'p'); k = MARKET_14.index('left_wrist')
    test_close(o.joints[:,9,0], pp[k]-.5, eps=1e-4); test_close(o.joints[:,9,1], pp[14+k]-.5, eps=1e-4)

def test_fit_into_can_be_undone():
    for W,H in ((64,128), (200,50), (3,7)):
        for pad in (1., 1.25):
            canvas, scale, at = fit_into(Image.new('RGB', (W,H), 'white'), (256,192), pad); test_eq(canvas.size, (192,256))
            ys, xs = np.nonzero(np.asarray(canvas)[...,0]>250)
            test_close([xs.min(), xs.max()+1], np.array([0,W])*scale[0]+at[0], eps=1.01); test_close([ys.min(), ys.max()+1], np.array([0,H])*scale[1]+at[1], eps=1.01)
