"Bodies: any torchvision constructor, any timm name, any module with a map; the checkpoints of other toolboxes."
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision import models

from pgflkd.baseline import Average, Baseline, FeatureLoss, GeM, finer_map, load_weights, read_weights, reid_body
from pgflkd.deploy import export, load_embedder
from pgflkd.errors import InputError

root = Path(__file__).resolve().parent.parent
timm = pytest.mark.skipif(not find_spec('timm'), reason='timm is not installed')
X = torch.rand(1, 3, 128, 64)

@torch.no_grad()
def shape(body): return tuple(body.eval()(X).shape[1:])

NAMES = 'resnet18', 'mobilenet_v3_small', 'shufflenet_v2_x0_5', 'squeezenet1_1', 'mnasnet0_5'

@pytest.mark.parametrize('name', NAMES)
def test_torchvision(name):
    "By name and by constructor, down to 8 pixels a cell; what cannot be refined says which stride to ask for"
    make = getattr(models, name)
    if name=='squeezenet1_1':
        with pytest.raises(InputError, match='a cell of this map has 21 pixels, not 8; ask `reid_dls` for stride=21'):
            reid_body(make, stride=8)
        return
    a, b = reid_body(name, stride=8), reid_body(make, stride=8)
    assert a.arch==b.arch==name and shape(a)==shape(b)==(a.n_features, 16, 8)

SMALL = dict(test_resnet=8, test_convnext=8, test_efficientnet=8, test_vit=16)

@timm
@pytest.mark.parametrize('name,stride', SMALL.items())
def test_timm(name, stride):
    "Networks of timm; a transformer's tokens as a map at the stride of its patches, for pictures of any size"
    body = reid_body(name, stride=stride)
    assert shape(body)==(body.n_features, 128//stride, 64//stride) and body.arch==name

class Alone(nn.Module):
    "An attention that looks nowhere else"
    def forward(self, x, *args, **kwargs): return x

@timm
def test_tokens_lie_where_their_pixels_are():
    "A change at the bottom right of the picture moves the last token most, if every token sees only itself"
    body = reid_body('test_vit', stride=16).eval()
    for block in body.net.blocks: block.attn = Alone()
    other = X.clone()
    other[:, :, 112:, 48:] = 0
    with torch.no_grad(): moved = (body(X)-body(other)).abs().sum(1)[0]
    assert moved.argmax()==moved.numel()-1 and moved.flatten()[:-1].max()<1e-4

@timm
def test_refused():
    "What has no finer map, what is unknown, and a module that makes no map: one line each, with the remedy"
    for arch, stride, why in [('test_vit', 8, 'ask `reid_dls` for stride=16'),
                              ('swin_t', 8, 'ask `reid_dls` for stride=32'),
                              ('vit_b_16', 16, 'makes no map'), ('no_such_net', 16, 'neither torchvision nor timm'),
                              (nn.ReLU, 16, 'pass the module that it makes'),
                              (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), 16, 'makes no map')]:
        with pytest.raises(InputError, match=why): reid_body(arch, stride=stride)

@pytest.mark.parametrize('layer', [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 2, 2), nn.MaxPool2d(3, 2, 1)])
def test_undone(layer):
    "Every second cell of the finer map is the coarse map: no weight changed its meaning"
    x = torch.randn(2, 3, 16, 8)
    body = nn.Sequential(nn.Conv2d(3, 3, 1), layer)
    with torch.no_grad():
        coarse = body(x)
        fine = finer_map(body, 1)(x)
    assert fine.shape[2:]==x.shape[2:]
    torch.testing.assert_close(fine[:, :, ::2, ::2], coarse, atol=1e-6, rtol=1e-5)   # float32, another order of sums

def saved(net): return {k: v.clone() for k, v in net.state_dict().items()}

OTHERS = dict(        # how each toolbox writes a ResNet: what stands before the body, the rest, the wrapper
    torchvision=('', {'fc.weight': (7, 512), 'fc.bias': (7,)}, None),
    torchreid=('module.', {'module.classifier.weight': (751, 512), 'module.classifier.bias': (751,)}, 'state_dict'),
    fastreid=('backbone.', {'heads.bottleneck.0.weight': (512,), 'heads.bottleneck.0.running_mean': (512,),
                            'heads.weight': (702, 512), 'pixel_mean': (1, 3, 1, 1)}, 'model'),
    strong_baseline=('base.', {'bottleneck.weight': (512,), 'bottleneck.bias': (512,),
                               'classifier.weight': (751, 512)}, None),
    layumi=('model.', {'model.fc.weight': (1000, 512), 'classifier.add_block.0.weight': (512, 512),
                       'classifier.classifier.0.weight': (751, 512)}, None),
    parallel=('module.base.', {'module.bottleneck.weight': (512,),
                               'module.classifier.weight': (9, 512)}, 'state_dict'))

@pytest.mark.parametrize('toolbox', OTHERS)
def test_checkpoints(toolbox, tmp_path):
    "The file of another toolbox gives the body that was saved; its classifier and its neck are left out"
    prefix, more, wrapper = OTHERS[toolbox]
    net = models.resnet18()
    state = {prefix+k: v for k, v in saved(net).items() if not k.startswith('fc.')}
    state |= {k: torch.rand(shape) for k, shape in more.items()}
    if wrapper: state = {wrapper: state, 'epoch': 60, 'rank1': pd.Series([.9]).to_numpy()[0], 'optimizer': {'lr': 3e-4}}
    torch.save(state, tmp_path/'model.pth')
    body = reid_body('resnet18', tmp_path/'model.pth', 8)
    for name, value in body.state_dict().items(): assert torch.equal(value, net.state_dict()[name]), name

def test_another_arch(tmp_path):
    "Deeper, shallower, narrower: counted, not loaded in part"
    deep, wide = models.resnet34(), models.resnet18()
    torch.save(deep.state_dict(), tmp_path/'deep.pth')
    torch.save(wide.state_dict(), tmp_path/'wide.pth')
    with pytest.raises(InputError, match='deep.pth does not fit this arch: 0 of 120 tensors missing, [1-9]'):
        reid_body('resnet18', tmp_path/'deep.pth')
    with pytest.raises(InputError, match='wide.pth does not fit this arch: [1-9].* of 216 tensors missing'):
        reid_body('resnet34', tmp_path/'wide.pth')
    with pytest.raises(InputError, match='3 tensors missing, 0 unknown, 0 of another shape'):
        load_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU()), {})
    both = {f'{who}.{name}': o for who in ('teacher', 'student') for name, o in wide.state_dict().items()}
    torch.save(both, tmp_path/'both.pth')
    with pytest.raises(InputError, match='several such networks: student., teacher.; save the one that you want'):
        reid_body('resnet18', tmp_path/'both.pth')

def test_student(tmp_path):
    "The shipped student starts a body; so does any file that `export` wrote; another arch is refused by name"
    body, state = reid_body('mobilenet_v2', 'student', 8), read_weights('student')
    for name, value in body.state_dict().items():
        assert torch.equal(value, state[f'body.{name}'].to(value.dtype)), name
    with pytest.raises(InputError, match="weights='student' fits the arch mobilenet_v2, not resnet18"):
        reid_body('resnet18', 'student', 8)
    own = Baseline(reid_body('shufflenet_v2_x0_5', stride=8), 3)
    file = export(own, tmp_path/'own.safetensors', size=(64, 32))
    again = reid_body('shufflenet_v2_x0_5', file, 8)
    for name, value in again.state_dict().items(): assert torch.equal(value, own.body.state_dict()[name]), name
    assert load_embedder(file).card['arch']=='shufflenet_v2_x0_5'

def test_shipped():
    "The student is in the wheel: it is package data and no file keeps it out"
    assert "package_data={lib: ['weights/*', 'world/*.json']}" in (root/'setup.py').read_text()
    assert 'recursive-include pgflkd/weights *' in (root/'MANIFEST.in').read_text()
    assert not any('weights' in line for line in (root/'.gitignore').read_text().splitlines())

def test_gem():
    "p=1 is the mean, a large p the maximum; p is learned; what is negative counts as nothing"
    x = torch.rand(2, 5, 4, 3)
    torch.testing.assert_close(GeM(1.)(x), Average()(x))
    torch.testing.assert_close(GeM(200.)(x), x.amax((2, 3)), rtol=.02, atol=0)           # 12**(1/200) is 1.012
    dead, pool = torch.zeros(1, 1, 4, 3, requires_grad=True), GeM(9.)
    pool(dead).sum().backward()
    assert dead.grad.isfinite().all() and pool.p.grad.isfinite()                         # a channel that never fires
    assert GeM()(-x).max()<1e-5 and GeM()(x.bfloat16()).dtype==torch.float32
    model = Baseline(reid_body('resnet18', stride=32), 2, GeM())
    model(torch.rand(4, 3, 64, 32))['f_g'].sum().backward()
    assert model.pool.p.grad.abs()>0

def test_feature_loss():
    "A loss of features and classes becomes a term; one with weights of its own is refused"
    term = FeatureLoss(lambda f, y: (f.sum(1)*y).mean())
    out, yb = dict(f_g=torch.ones(2, 3)), [torch.tensor([[0, 7], [1, 9]])]
    assert term.term(out, yb)==1.5
    with pytest.raises(InputError, match='Linear has weights of its own'): FeatureLoss(nn.Linear(3, 2))

def test_table():
    "The matrix of 12 backbones: each trained a step, and all but a module of one's own can be rebuilt from safetensors"
    df = pd.read_csv(root/'results/backbones.csv').set_index('name')
    assert len(df)==12 and (df.loss_after<df.loss_before).all() and (df.onnx=='yes').all()
    assert (df.safetensors.drop('own')=='yes').all() and 'write .onnx' in df.safetensors['own']
