"""Two processes train as one does: fastai's `distrib_ctx`, on two CPUs that talk through gloo.

The same file is the script of the two processes; `torchrun` starts them, as `accelerate launch` does on GPUs.
One process then trains on the same batches: each of its batches is the two that the processes have at the same time,
its BatchNorms see both, and its loss is the mean of the losses of the two halves, since strangers and friends are
looked for within a process. Two stand-ins, as torch and fastai have these parts for GPUs only: `SyncBatchNorm` adds up
mean and variance through gloo, and the order of the pictures is sent from the CPU. Plain SGD: Adam's first steps are
signs, and a sign cannot be nearly equal.
"""
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from torch import nn

BS, PER_ID = 16, 4
EPOCHS, LR = 2, 1e-3       # larger steps would make another training of each rounding, in one process as in two

def make_learner(seed=0, bs=BS, kind=None, cbs=()):
    "PGFL-KD on a tiny world, with a tiny body; no augmentation, whose dice would differ"
    from fastai.basics import SGD, set_seed
    from pgflkd.data import reid_dls
    from pgflkd.learner import pgflkd_learner
    from pgflkd.synthetic import render_world, world_joints
    df = render_world('tiny', progress=False)
    joints = world_joints(df)
    if (df.role!='train').sum()%2==0:                                # an odd number of test pictures cannot be halved
        keep = (df.index!=df.index[df.role=='gallery'][-1])
        df, joints = df[keep].reset_index(drop=True), joints[keep]
        df['joints'] = range(len(df))
    dls = reid_dls(df, joints, size=(64, 32), bs=bs, per_id=PER_ID, stride=8, flip=0, pad=0, erase=0, seed=seed)
    set_seed(0)
    def conv(i, o): return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    body = nn.Sequential(conv(3, 16), conv(16, 32), conv(32, 64))
    body.n_features = 64
    learn = pgflkd_learner(dls, arch=body, opt_func=SGD, wd=0., cbs=list(cbs))
    return learn

class Saw(Callback):
    "The people and the loss of each training batch"
    def before_fit(self): self.people, self.losses = [], []
    def after_loss(self):
        if not self.training: return
        self.people.append(self.yb[0][:,1].as_subclass(torch.Tensor).clone())
        self.losses.append(self.loss.detach().as_subclass(torch.Tensor).clone())

class Sum(torch.autograd.Function):
    "The sum of a tensor over all processes; so is its gradient"
    @staticmethod
    def forward(ctx, x): return added(x)
    @staticmethod
    def backward(ctx, grad): return added(grad)

def added(x):
    x = x.clone()
    dist.all_reduce(x)
    return x

def batch_norm(self, x):
    "What `SyncBatchNorm` computes, on the CPU"
    if not self.training:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
    n, among = dist.get_world_size(), [i for i in range(x.ndim) if i!=1]
    shape = [1, -1] + [1]*(x.ndim-2)
    mean = Sum.apply(x.mean(among))/n
    away = x-mean.view(shape)
    var = Sum.apply(away.pow(2).mean(among))/n
    count = n*x.numel()//x.shape[1]
    with torch.no_grad():
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var*count/(count-1), self.momentum)
        self.num_batches_tracked += 1
    return away/(var.view(shape)+self.eps).sqrt()*self.weight.view(shape)+self.bias.view(shape)

def joint(model):
    "`SyncBatchNorm.convert_sync_batchnorm`, whose modules torch refuses on the CPU"
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm): part.forward = partial(batch_norm, part)
    return model

def broadcast(self, order, rank):
    "`DistributedDL._broadcast` without a GPU"
    order = torch.tensor(order)
    dist.broadcast(order, rank)
    return order.tolist()

def work(out):
    "What each process does"
    from fastai.distributed import DistributedDL
    from fastai.torch_core import rank_distrib
    from pgflkd.checkpoint import RunLog
    nn.SyncBatchNorm.convert_sync_batchnorm, DistributedDL._broadcast = joint, broadcast
    rank = rank_distrib()
    torch.set_num_threads(1)
    learn = make_learner()
    log = RunLog(out/f'run{rank}.pth', 'two', 0)
    learn.add_cbs([log, Saw()])
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(cpu=True): learn.fit(EPOCHS, LR)
    ranking = {name: r.ap for name, r in learn.rank_gallery.results.items()}
    weights = {name: o.clone() for name, o in learn.model.state_dict().items()}
    saw = dict(weights=weights, ranking=ranking, people=learn.saw.people, losses=learn.saw.losses)
    torch.save(saw | dict(world=dist.get_world_size()), out/f'saw{rank}.pt')

class Halves(nn.Module):
    "The mean of the loss of the two halves of a batch"
    def __init__(self, loss):
        super().__init__()
        self.of = loss
    def forward(self, out, *yb):
        from pgflkd.pose import Hint
        if not isinstance(out, dict): return self.of(out, *yb)
        n = len(yb[0])//2
        def cut(part):
            made = {k: v[part] for k, v in out.items() if k!='hint'}
            return made | dict(hint=Hint(*[o[part] for o in out['hint']])), [o[part] for o in yb]
        found = [self.of(made, *y) for made, y in map(cut, (slice(0, n), slice(n, None)))]
        return sum(found)/2

def pairs(order):
    "The order of the pictures in which each batch of one process is the two that the processes have at a time"
    ranks = torch.tensor(order).view(2, -1, BS)
    return ranks.transpose(0, 1).flatten().tolist()

def train_one(monkeypatch, file):
    "A learner of one process, trained on the same batches"
    from pgflkd.checkpoint import RunLog
    learn = make_learner(cbs=[RunLog(file, 'one', 0), Saw()])
    dl = learn.dls.train
    deal = dl.get_idxs
    def dealt():
        with monkeypatch.context() as m:
            m.setenv('WORLD_SIZE', '2')                   # as for two; nothing is started
            return pairs(deal())
    dl.get_idxs, dl.bs = dealt, 2*BS
    learn.loss_func = Halves(learn.loss_func)
    learn.loss_func.terms = {}
    with learn.no_bar(), learn.no_logging(): learn.fit(EPOCHS, LR)
    return learn

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What the two processes saw and wrote"
    pytest.importorskip('accelerate')
    out = tmp_path_factory.mktemp('ranks')
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', CUDA_VISIBLE_DEVICES='')
    env['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [env.get('PYTHONPATH')])])
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
               __file__, str(out)]
    r = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert r.returncode==0, r.stderr[-3000:]
    return out, [torch.load(out/f'saw{rank}.pt', weights_only=False) for rank in (0, 1)]

@pytest.fixture(scope='module')
def one(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m: yield train_one(m, tmp_path_factory.mktemp('one')/'one.pth')

pytestmark = pytest.mark.slow

def test_two_processes_are_one(two, one):
    "Every weight and every running mean after two epochs, within 1e-4 of the largest of its tensor, or of .01"
    _, (first, second) = two
    assert first['world']==2
    for mine, *parts in zip(one.saw.people, first['people'], second['people']):
        assert torch.equal(torch.cat(parts), mine)               # they did have the same batches
    for name, value in one.model.state_dict().items():
        found = first['weights'][name]
        assert torch.equal(found, second['weights'][name]), f'{name} differs between the processes'
        far = (found-value).abs().max()/value.abs().max().clamp_min(.01)
        assert far<=1e-4, f'{name}: {far:.1e}'

def test_every_process_knows_the_ranking(two, one):
    "That of all test pictures, an odd number of them"
    _, (first, second) = two
    assert len(one.dls.test_df)%2==1 and one.rank_gallery.results
    for name, ranking in one.rank_gallery.results.items():
        np.testing.assert_allclose(first['ranking'][name], ranking.ap, atol=.02)    # near ties may swap
        np.testing.assert_array_equal(first['ranking'][name], second['ranking'][name])

def test_without_the_joint_statistics_it_would_differ(one):
    "The test above can fail: BatchNorms that see one half at a time give other weights"
    learn = make_learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(EPOCHS, LR)
    apart = [(a-b).abs().max().item() for a, b in zip(learn.model.parameters(), one.model.parameters())]
    assert max(apart)>1e-3

def test_one_process_writes(two):
    "And what it wrote can be taken up by one process alone"
    from pgflkd.checkpoint import RunLog
    out, (first, second) = two
    assert [o.name for o in sorted(out.glob('run*.pth'))]==['run0.pth']
    learn = make_learner()
    log = RunLog(out/'run0.pth', 'two', 0)
    learn.add_cb(log)
    assert log.resume()==EPOCHS
    for name, value in learn.model.state_dict().items(): assert torch.equal(value, first['weights'][name]), name

def test_whole_people_for_each_process(monkeypatch):
    "Each process gets as many whole batches: `per_id` pictures of each of its people, nobody twice in a batch"
    def order_of(ranks):
        monkeypatch.setenv('WORLD_SIZE', str(ranks))
        dl = make_learner(bs=8).dls.train
        order = dl.get_idxs()
        assert len(order)==8*len(dl)
        return dl, order
    for ranks in (1, 2, 3, 5):
        dl, order = order_of(ranks)
        assert len(dl)%ranks==0
        pid = pd.Series([dl.dataset.items[i]['pid'] for i in order])
        for batch in np.split(pid.to_numpy(), len(dl)):
            assert [len(o) for o in np.split(batch, np.flatnonzero(np.diff(batch))+1)]==[PER_ID, PER_ID]
        assert set(pid)==set(dl.groups)                                     # and nobody is left out

if __name__=='__main__': work(Path(sys.argv[1]))
