"""What a GPU would refuse, on a machine without one: mixed devices, a value asked for in the middle of a step.

A fake tensor (`FakeTensorMode`) has a shape, a type and a device, and no values; an operation that joins two devices
raises as it would on a GPU, and so does everything that must look at a value (`.item()`, `bool`, `.tolist()`), where a
GPU would make the program wait. Three things are replaced, because a fake tensor cannot do them:
dice are thrown for real; an array that leaves the network (`.numpy()`, from the CPU only) holds random numbers; and
fastai's types are left out. Gradients cannot be made of fake CUDA tensors on a machine without CUDA (the engine asks
the driver), so backward, optimiser and Grad-CAM run on the device `meta`, which refuses the same mixtures.
"""
import importlib.util
import inspect
import os
import subprocess
import sys
import types
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from test_ranks import make_learner as make_tiny
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily

warnings.filterwarnings('ignore')

SIZES = {'mobilenet_v2': (128, 64), 'resnet50': (384, 128)}
KINDS = ('baseline', 'pgflkd', 'san', 'both', 'where')

@pytest.fixture(scope='module')
def world():
    from pgflkd.synthetic import render_world, world_joints
    df = render_world('tiny', progress=False)
    return df, world_joints(df)

def move(module, device=None, **_):
    "`nn.Module.to` for fake tensors, whose parameters cannot be exchanged in place; what is no buffer stays behind"
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, old in store.items():
                if old is None: continue
                new = old.detach().to(device)
                learns = isinstance(old, nn.Parameter)
                store[name] = nn.Parameter(new, requires_grad=old.requires_grad) if learns else new
    return module

def numpy(tensor):
    "Random numbers in the shape of a fake tensor on the CPU; any other device refuses, as a GPU does"
    if tensor.device.type!='cpu': raise TypeError(f'cannot convert a {tensor.device.type} tensor to numpy')
    numbers = np.random.default_rng(0).random(tuple(tensor.shape))
    return numbers.astype(str(tensor.dtype).split('.')[1])

def cast(autocast, device, **how):
    "`autocast`, which knows no device `meta`"
    return nullcontext() if device=='meta' else autocast(device, **how)

@pytest.fixture
def fake(monkeypatch):
    "Within it, every new tensor is fake; real ones that the library keeps become fake on the device they are on"
    from pgflkd import metrics
    monkeypatch.setattr(FakeTensor, 'as_subclass', lambda self, kind: self, raising=False)
    monkeypatch.setattr(FakeTensor, 'numpy', numpy, raising=False)
    monkeypatch.setattr(nn.Module, 'to', move)
    monkeypatch.setattr(metrics, 'need', lambda ok, why: None)         # looks at values, once a ranking
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: True)
    monkeypatch.setattr(torch, 'autocast', partial(cast, torch.autocast))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode: yield mode

def make_dls(world, size, device, **kwargs):
    "Loaders whose batches go to `device`"
    from pgflkd.data import reid_dls
    with unset_fake_temporarily(): dls = reid_dls(*world, bs=16, per_id=4, size=size, stride=16, seed=0, **kwargs)
    dls.device = torch.device(device)
    for transform in dls.train.after_batch.fs:
        if hasattr(transform, 'draw'): transform.draw = for_real(transform.draw)
    return dls

def for_real(draw):
    "`draw` with real dice"
    def thrown(*args):
        with unset_fake_temporarily(): return draw(*args)
    return thrown

def make_batch(dl, mode, n=16):
    "A batch of `dl` as its loader hands it out: opened, put on the device, transformed there"
    with unset_fake_temporarily():
        rows = list(dl.get_idxs())[:n]
        opened = dl.create_batch([dl.after_item(dl.dataset[i]) for i in rows])
    plain = [o.as_subclass(torch.Tensor) for o in opened]
    return dl.after_batch(tuple(mode.from_tensor(o).to(dl.device) for o in plain))

def make_learner(dls, arch, kind):
    "An untrained learner of `kind` on the device of `dls`"
    from pgflkd.learner import baseline_learner, pgflkd_learner, san_learner, where_learner
    how = dict(arch=arch, weights=None)
    if kind=='pgflkd': return pgflkd_learner(dls, **how)
    if kind in ('san', 'both'): return san_learner(dls, size=64, pose=kind=='both', **how)
    return where_learner(dls, **how) if kind=='where' else baseline_learner(dls, **how)

def textures(n, device): return torch.rand(n, 3, 64, 64, device=device)

def loss_of(learn, batch, kind, dtype=None):
    "The loss of a batch of `learn`, its network in `dtype`"
    x, hint, *yb = batch
    if kind in ('san', 'both'): yb.append(textures(len(x), x.device))
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None): out = learn.model.train()(x, hint)
    assert out['fmap'].dtype==(dtype or torch.float32)
    return learn.loss_func(out, *yb)

def step(learn, loss=None):
    "Gradients of `loss` (None: of nothing, in the shape of the weights), and a step of the optimiser"
    learn.create_opt()
    if loss is not None: loss.backward()
    else:
        for p, *_ in learn.opt.all_params(): p.grad = torch.zeros_like(p)
    learn.opt.set_hypers(lr=1e-3)
    learn.opt.step()
    learn.opt.step()                    # the second time its averages are there
    kept = [v for state in learn.opt.opt.state.values() for v in state.values()]
    learn.opt.zero_grad()
    return {o.device.type for o in kept if isinstance(o, torch.Tensor)}

def test_batch(world, fake):
    "Each transform of a training batch works where the batch is: no CPU, no value asked for"
    from pgflkd.augment import RotatePerson
    from pgflkd.occlude import HidePerson
    more = [RotatePerson(.5, 20, 1), HidePerson(.5, looks=2)]
    dls = make_dls(world, (128, 64), 'cuda', batch_tfms=more)
    for dl in dls:
        x, hint, *yb = make_batch(dl, fake)
        assert x.shape==(16, 3, 128, 64) and x.dtype==torch.float32
        assert {o.device.type for o in (x, *hint, *yb)}=={'cuda'}

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('arch', SIZES)
def test_step(world, fake, arch, kind):
    "Network, loss in float32 and optimiser on a fake GPU, in three precisions; nothing is asked for a value"
    dls = make_dls(world, SIZES[arch], 'cuda')
    learn, batch = make_learner(dls, arch, kind), make_batch(dls.train, fake)
    for dtype in (None, torch.bfloat16, torch.float16):
        loss = loss_of(learn, batch, kind, dtype)
        terms = learn.loss_func.terms.values()
        assert {(o.device.type, o.dtype) for o in (loss, *terms)}=={('cuda', torch.float32)}
        learn.log_terms.before_train()
        learn.log_terms.learn = types.SimpleNamespace(training=True, loss_func=learn.loss_func)
        learn.log_terms.after_loss()                         # the log of each step waits for nothing either
    assert step(learn)<={'cuda', 'cpu'}                      # Adam's own counter may stay on the CPU

@pytest.mark.parametrize('kind', KINDS)
def test_backward(world, fake, kind):
    "Gradients of every weight that learns, on a device that holds no values"
    dls = make_dls(world, (128, 64), 'meta')
    learn = make_learner(dls, 'mobilenet_v2', kind)
    loss_of(learn, make_batch(dls.train, fake), kind).backward()
    learns = {name: p for name, p in learn.model.named_parameters() if p.requires_grad}
    lost = [name for name, p in learns.items() if p.grad is None]
    assert not lost, lost
    assert {p.grad.device.type for p in learns.values()}=={'meta'}
    assert step(learn, loss_of(learn, make_batch(dls.train, fake), kind))<={'meta', 'cpu'}

@pytest.mark.parametrize('kind', KINDS)
def test_ranking(world, fake, kind):
    "A test batch, its feature in float32, the ranking on the device, and what the callback puts aside"
    from pgflkd.callbacks import RankGallery, rank_sets
    dls = make_dls(world, (128, 64), 'cuda')
    model = make_learner(dls, 'mobilenet_v2', kind).model.eval()
    x, _, pid, camid = make_batch(dls.valid, fake)
    f = model(x)
    assert (f.device.type, f.dtype)==('cuda', torch.float32)
    df = pd.DataFrame(dict(pid=np.arange(16)%4+1, camid=[0]*4+[1]*12, role=['query']*4+['gallery']*12))
    assert rank_sets(df, f)['query'].n_valid==4
    gallery = RankGallery()
    gallery.learn = types.SimpleNamespace(training=False, pred=f, yb=(pid, camid))
    gallery._out = []
    gallery.after_pred()
    assert {o.device.type for o in gallery._out[0]}=={'cpu'}

@pytest.mark.parametrize('kind', KINDS)
def test_looking(world, fake, kind):
    "Every feature, responses, attributions and painted textures: made on the device, handed out on the CPU"
    from pgflkd import attribution, diagnose, interpret
    from pgflkd.san import paint
    dls = make_dls(world, (128, 64), 'cuda')
    model = make_learner(dls, 'mobilenet_v2', kind).model.eval()
    x, hint, *_ = make_batch(dls.valid, fake)
    found = diagnose._embed(model, x, hint)
    assert {o.device.type for o in found.values()}=={'cuda'}
    assert {o.device.type for o in diagnose._join([found, found]).values()}=={'cpu'}
    assert interpret.feature_response(model, x, scale=True).device.type=='cpu'
    everything = dict(all=torch.ones(16, 128, 64, dtype=torch.bool))
    assert len(attribution.influence(model, x, everything, torch.zeros(16, 3, 1, 1)))==16
    if kind!='where': assert attribution.feature_contribution(model, x).device.type=='cpu'
    if kind in ('san', 'both'): assert paint(model, x).device.type=='cuda'

def test_deployed(world, fake):
    "The network that `load_embedder` runs takes arrays and gives arrays"
    from pgflkd.deploy import _run_torch
    model = make_learner(make_dls(world, (128, 64), 'cuda'), 'mobilenet_v2', 'baseline').model.eval()
    run = _run_torch(model, dict(stats=[[.5]*3, [.2]*3]), 'cuda')
    assert run(np.zeros((2, 3, 128, 64), np.float32)).shape==(2, 1280)

def test_grad_cam(world, fake):
    "Grad-CAM needs gradients, thus `meta`; its picture arrives on the CPU"
    from pgflkd.interpret import similarity_cam
    dls = make_dls(world, (128, 64), 'meta')
    for kind in KINDS:
        model = make_learner(dls, 'mobilenet_v2', kind).model.eval()
        x = make_batch(dls.valid, fake)[0]
        assert similarity_cam(model, x, model(x)[:1]).shape==(16, 128, 64)

# Four faults, planted: each of the tests above must be able to fail

class OnCPU(nn.Module):
    "An average that takes the map off the device, as a careless line does"
    def forward(self, fmap): return fmap.cpu().mean((2, 3))

class Planted:
    "A term with a fault: a tensor of its own on the CPU, a value that it looks at, a condition of whole numbers (G1)"
    name, weight = 'planted', 1.
    def __init__(self, fault): self.fault = fault
    def term(self, out, yb):
        f = out['f_g']
        if self.fault=='mix': return (f*torch.ones(f.shape[1])).mean()
        if self.fault=='value': return f.mean()*f.amax().item()
        return torch.where(torch.zeros(len(f), 1, dtype=torch.long, device=f.device), f, 0).mean()

@pytest.mark.parametrize('fault', ['mix', 'value', 'condition'])
@pytest.mark.parametrize('device', ['cuda', 'meta'])
def test_a_fault_in_a_loss_is_found(world, fake, device, fault):
    dls = make_dls(world, (128, 64), device)
    learn, batch = make_learner(dls, 'mobilenet_v2', 'pgflkd'), make_batch(dls.train, fake)
    loss_of(learn, batch, 'pgflkd')                          # without the fault nothing is wrong
    learn.loss_func.list.append(Planted(fault))
    said = dict(mix='same device', value='_local_scalar_dense', condition='boolean|bool')
    with pytest.raises((RuntimeError, DataDependentOutputException), match=said[fault]):
        loss_of(learn, batch, 'pgflkd')

@pytest.mark.parametrize('device', ['cuda', 'meta'])
def test_a_fault_in_a_network_is_found(world, fake, device):
    dls = make_dls(world, (128, 64), device)
    learn, batch = make_learner(dls, 'mobilenet_v2', 'baseline'), make_batch(dls.train, fake)
    learn.model.pool = OnCPU()
    with pytest.raises(RuntimeError, match='same device'): loss_of(learn, batch, 'baseline')

# Half the bits, by fastai's own callbacks; on the CPU, as they are written for CUDA

@pytest.fixture
def on_cpu(monkeypatch):
    from fastai.callback import fp16
    monkeypatch.setattr(fp16, 'autocast', lambda device, dtype: torch.autocast('cpu', dtype=dtype))
    monkeypatch.setattr(fp16, 'GradScaler', lambda device, **how: torch.amp.GradScaler('cpu', **how))

class Types(Callback):
    "Write down the types of what the network gives and of the loss, and which steps were skipped"
    order = 20
    def before_fit(self):
        self.seen, self.skipped = set(), []
        self.hook = self.model.body[0][0].register_forward_hook(lambda m, i, out: self.seen.add(('conv', out.dtype)))
    def after_pred(self):
        made = self.pred if isinstance(self.pred, dict) else dict(f=self.pred)
        self.seen |= {('pred', o.dtype) for o in made.values() if isinstance(o, torch.Tensor)}
    def after_loss(self): self.seen.add(('loss', self.loss.dtype))
    def after_step(self): self.skipped.append(getattr(self.learn.mixed_precision, 'skipped', False))
    def after_fit(self): self.hook.remove()

def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn

@pytest.mark.parametrize('mode, dtype', [('fp16', torch.float16), ('bf16', torch.bfloat16)])
def test_mixed_precision(on_cpu, mode, dtype):
    "`learn.to_fp16()` and `to_bf16()`: convolutions in half the bits, what the loss sees and the loss in float32"
    from pgflkd.precision import precision_of
    learn = make_tiny(cbs=[Types()])
    assert precision_of(learn)=='fp32'
    getattr(learn, f'to_{mode}')()
    assert precision_of(SimpleNamespace(cbs=learn.cbs, dls=SimpleNamespace(device=torch.device('cuda'))))==mode
    before = learn.model.body[0][0].weight.detach().clone()
    fit(learn)
    assert learn.types.seen=={('conv', dtype), ('pred', torch.float32), ('loss', torch.float32)}
    after = learn.model.body[0][0].weight
    assert after.isfinite().all() and not torch.equal(before, after) and after.dtype==torch.float32
    assert learn.rank_gallery.results and np.isfinite(list(learn.log_terms.history[-1].values())).all()

def test_the_scaler_handles_an_overflow(on_cpu):
    "Gradients too large for float16 are seen, their steps skipped, the scale lowered; then the training goes on"
    learn = make_tiny(cbs=[Types()]).to_fp16(init_scale=2.**60, backoff_factor=2.**-12)
    fit(learn)
    skipped = learn.types.skipped
    assert skipped[0] and not skipped[-1], skipped
    assert all(o.isfinite().all() for o in learn.model.state_dict().values())

def test_the_scale_is_in_the_checkpoint(on_cpu, tmp_path):
    "A float16 run that was stopped goes on with the scale it had, and with the same bits"
    from pgflkd.checkpoint import RunLog
    scale = dict(init_scale=2.**60, backoff_factor=2.**-12, growth_interval=3)
    def run(name, n):
        learn = make_tiny(cbs=[RunLog(tmp_path/name, 'tiny', 0), Types()]).to_fp16(**scale)
        first = learn.run_log.resume()
        with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3, start_epoch=first)
        return learn.model.state_dict(), learn.types.skipped
    whole, skipped = run('a', 2)
    first = run('b', 1)[1]
    resumed, later = run('b', 2)
    assert first[0] and first+later==skipped and not later[0]
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())

def test_a_loss_would_overflow_and_does_not():
    "The squared length of a feature of 64 channels of 100 is beyond float16; the losses take it as float32"
    from pgflkd.losses import batch_hard_triplet, consistent_loss
    f, pid = 100*torch.ones(8, 64).half(), torch.arange(8)//2
    f[::2] += 50
    assert f.pow(2).sum(1).isinf().all()
    with torch.autocast('cpu', dtype=torch.float16):
        for loss in (batch_hard_triplet(f, pid), consistent_loss(f, 2*f, 'sum')):
            assert loss.isfinite() and loss.dtype==torch.float32

def made_up():
    "What a network with every teacher gives for 16 pictures of four people, and their targets, at random"
    from pgflkd.pose import Hint
    torch.manual_seed(0)
    pid, person = torch.arange(16)//4, torch.rand(16, 8, 4)
    hint = Hint(torch.rand(16, 8, 8, 4), torch.rand(16, 8), person/person.sum((1, 2), keepdim=True))
    out = dict(fmap=torch.randn(16, 64, 8, 4), attention=torch.rand(16, 8, 4), hint=hint)
    out |= dict(texture=torch.randn(16, 3, 8, 8))
    out |= {f'paint_{i}': torch.randn(16, 4, 8, 8) for i in (1, 2, 3, 4)}
    out |= {f'f_{k}': torch.randn(16, 64) for k in 'gepv'}
    out |= {f'logits_{k}': torch.randn(16, 4) for k in 'gev'}
    return out, (torch.stack([pid, pid+1], 1), pid, torch.randn(16, 3, 8, 8))

def test_losses_do_not_round():
    "Each term inside autocast has the value that it has outside, to the last bit"
    from pgflkd.losses import Consistent, MultiPart, ReID, Terms
    from pgflkd.san import PaintTriplets, Reconstruct
    from pgflkd.where import Focus, OnPerson
    terms = Terms(ReID(), Consistent(), Consistent(reduction='cosine', name='other'), MultiPart(), Focus(), OnPerson(),
                  Reconstruct(), PaintTriplets())
    plain = terms.weighted(*made_up())
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast('cpu', dtype=dtype): half = terms.weighted(*made_up())
        assert {k: float(v) for k, (_, v) in half.items()}=={k: float(v) for k, (_, v) in plain.items()}

# What a review found that a GPU would do wrong (G1 to G10); G7, a host that waits in each step, is `test_step`

def test_what_is_gone():
    "G1 the cached loader, G9 `deterministic`, G10 the benchmark of four compilations, G6 figures made on the CPU"
    from fastai.learner import Learner
    import pgflkd.precision  # noqa: F401, it gives Learner its to_fast
    assert importlib.util.find_spec('pgflkd.pipeline') is None
    assert 'deterministic' not in inspect.signature(Learner.to_fast).parameters
    here = Path(__file__).parent.parent
    assert not list(here.rglob('bench_gpu*')) and not (here/'results/ablation/responses.py').exists()

def test_g2_emulation_is_not_support(monkeypatch):
    "A T4 says that it supports bfloat16, and emulates it"
    from pgflkd.precision import fast_bf16
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation)
    assert not fast_bf16(torch.device('cuda'))

def test_g3_g4_pictures_are_read_ahead_and_the_schedule_is_the_papers(world):
    from pgflkd.commands import ablate
    from pgflkd.commands.train import make_recipe
    recipe = make_recipe('paper', size='64x32', bs=16, per_id=4, arch='resnet18', weights='none')
    assert recipe.schedule=='paper' and 'schedule' in inspect.signature(ablate.ablate_command).parameters
    learn = ablate._start_learner(*world, ablate.plan_rows('baseline', recipe)['baseline'], recipe, 0, num_workers=3)
    assert [dl.fake_l.num_workers for dl in learn.dls]==[3, 3]

def test_g5_responses_are_made_in_small_batches():
    from pgflkd.interpret import feature_response
    sizes = []
    body = nn.Conv2d(3, 4, 3)
    body.register_forward_hook(lambda m, inputs, out: sizes.append(len(inputs[0])))
    model = nn.Module()
    model.body = body
    assert feature_response(model, torch.zeros(150, 3, 8, 8)).shape==(150, 6, 6)
    assert sizes==[64, 64, 22]

def test_g8_the_neck_subtracts_before_anything_is_rounded():
    "In bfloat16 a channel of mean 1 and spread .01 would be mostly rounding if its average were rounded"
    from pgflkd.baseline import Baseline
    from pgflkd.where import Where
    torch.manual_seed(0)
    body = nn.Identity()
    body.n_features = 3
    x = (1 + .01*torch.randn(8, 3, 1, 1)).expand(-1, -1, 16, 8) + .01*torch.randn(8, 3, 16, 8)
    half, attention = x.bfloat16(), torch.rand(8, 16, 8).flatten(1).softmax(1).view(8, 16, 8)
    model = Baseline(body, 2).eval()
    model.neck_g.bn.running_mean.fill_(1.)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        f, under = model(half), Where(body, 2).under(half, attention)
    assert f.dtype==torch.float32 and (f-(half.float().mean((2, 3))-1)).abs().max()<1e-4
    assert (under-(half.float()*attention[:,None]).sum((2, 3))).abs().max()<1e-4

@pytest.mark.slow
def test_the_script_rehearses(tmp_path):
    "`results/gpu/run.py --dry`: checks, times, rows and figures; a second call finds everything done"
    script = Path(__file__).parent.parent/'results/gpu/run.py'
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    command = [sys.executable, str(script), '--dry', '--out', str(tmp_path)]
    r = subprocess.run(command, env=env, capture_output=True, text=True)
    assert r.returncode==0 and 'all is done' in r.stdout, r.stdout[-1500:] + r.stderr[-1500:]
    checks, times, runs = (pd.read_csv(tmp_path/f'{name}.csv') for name in ('checks', 'times', 'runs'))
    assert checks.passed.all() and (times[['step_baseline', 'bound_a_second']]>0).all(axis=None)
    assert {'baseline', 'PGFL-KD', '+FEB', 'where'}<=set(runs.row) and set(runs.device)==set(checks.device)
    assert {o.name for o in tmp_path.glob('*.png')}=={'figure1.png', 'figure4.png'}
    again = subprocess.run(command, env=env, capture_output=True, text=True)
    assert again.returncode==0 and len(pd.read_csv(tmp_path/'runs.csv'))==len(runs)

def test_no_rows_are_made_up():
    "Without a GPU its folder holds a script and says so; with one, the rows name it"
    folder = Path(__file__).parent.parent/'results/gpu'
    made = {name: pd.read_csv(folder/name).device for name in ('times.csv', 'runs.csv') if (folder/name).exists()}
    wrong = [name for name, device in made.items() if device.str.contains('CPU').any()]
    assert not wrong
    assert made or 'There are no rows here yet' in (folder/'README.md').read_text()
