"""What the network and each loss give for numbers that any version of any library makes the same (sines, no random
generator). A silent change shows here.

    python results/trust/reference.py --check    # compare with results/trust/reference.json
    python results/trust/reference.py            # write it anew, after a change that was meant

Tolerance: 2e-4 of each number (and 2e-5 absolute): other versions of torch and other processors add up in another
order.
"""
import json
import math
import os
import sys
import warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
from functools import partial
from pathlib import Path
import torch
from torchvision.models import resnet18
from pgflkd.baseline import Baseline, reid_body
from pgflkd.foreground import Foreground
from pgflkd.losses import (Consistent, MultiPart, ReID, Terms, batch_hard_triplet, consistent_loss, id_loss,
                           multi_part_contrastive_loss)
from pgflkd.metrics import evaluate_features
from pgflkd.network import PGFLKD, to_baseline
from pgflkd.pose import draw_hint, part_visibility
from pgflkd.records import run_facts
from pgflkd.san import paint_triplet, texture_loss
from pgflkd.semantics import Semantics

FILE = Path(__file__).parent/'reference.json'
RTOL, ATOL = 2e-4, 2e-5
B, N = 8, 4
TEACHERS = dict(
    table6_6       = [Foreground, Semantics],
    no_feb         = [Semantics],
    no_interaction = [Foreground, partial(Semantics, interact=False)],
    dot            = [partial(Foreground, how='dot'), Semantics],
    mean_pool      = [partial(Foreground, pool='mean'), partial(Semantics, pool='mean')],
)

def wave(*shape, k=1.):
    "Numbers in [-1,1] that look random and are the same everywhere"
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(i*i*.7071*k % 6.283185307179586 + k).float().view(shape)

@torch.no_grad()
def filled(net):
    "`net` with weights from `wave`, scaled as one would initialise them"
    for i, (name, p) in enumerate(net.named_parameters()):
        w = wave(*p.shape, k=1+.01*i)
        if p.ndim>1: p.copy_(w*(2/p[0].numel())**.5)
        else: p.copy_(1+.1*w if name.endswith('weight') else .1*w)
    return net

def summary(t):
    "Mean, deviation and four of the numbers in `t`"
    t = t.detach().double().flatten()
    some = t[::max(1, len(t)//4)][:4]
    return [float(t.mean()), float(t.std()), *map(float, some)]

def features(out):
    "What is said of features and logits in the dict `out`"
    return {k: summary(v) for k, v in out.items() if k.startswith(('f_', 'logits_'))}

def trained(net, x, hint, pid):
    "Few numbers of `net` in training: its features and logits, loss and terms, two gradients"
    out = net(x, hint)
    loss = Terms(ReID(), Consistent(), MultiPart())
    total = loss(out, torch.stack([pid, pid], 1))
    total.backward()
    gradients = [float(p.grad.norm()) for p in (net.body[0].weight, net.neck_g.fc.weight)]
    return features(out) | dict(loss=[float(total), *map(float, loss.terms.values())], gradient=gradients)

def networks(x, hint, pid):
    "Name -> few numbers, of networks in training and of what is deployed"
    found = {}
    for name, teachers in TEACHERS.items():
        net = PGFLKD(reid_body(resnet18, None, stride=8), N, [make(512, N) for make in teachers])
        found |= {f'{name}.{k}': v for k, v in trained(filled(net), x, hint, pid).items()}
    found['deployed'] = summary(to_baseline(net)(x))
    base = filled(Baseline(reid_body(resnet18, None, stride=16), N))
    return found | {f'baseline.{k}': v for k, v in features(base(x)).items()}

def losses(pid):
    "Name -> one number, of each loss"
    f_g, f_e, logits = wave(B,64,k=5), wave(B,64,k=6), wave(B,N,k=7)*3
    found = {
        'id_loss':       id_loss(logits, pid),
        'id_loss plain': id_loss(logits, pid, 0.),
        'triplet':       batch_hard_triplet(f_g, pid),
        'triplet soft':  batch_hard_triplet(f_g, pid, None),
        'contrastive':   multi_part_contrastive_loss(f_g, f_e),
        'contrastive literal': multi_part_contrastive_loss(f_g, f_e, normalize=False, temperature=1.),
        'texture':       texture_loss(wave(B,3,16,16,k=8), wave(B,3,16,16,k=9), torch.arange(B)%3>0),
        'paint triplet': paint_triplet(wave(B,4,8,8,k=10), pid, .3),
    }
    for how in ('mean', 'sum', 'normalized', 'cosine'): found[f'consistent {how}'] = consistent_loss(f_g, f_e, how)
    return {k: [float(v)] for k, v in found.items()}

def outputs():
    "Name -> few numbers"
    torch.set_num_threads(1)
    x, pid = wave(B,3,64,32), torch.arange(B)//2
    at = [(wave(B,17,k=2)+1)*16, (wave(B,17,k=3)+1)*32, (wave(B,17,k=4)+1)/2]
    hint = draw_hint(torch.stack(at, -1), (8,4), (64,32))
    found = dict(parts=summary(hint.parts), visibility=summary(part_visibility(hint.parts)))
    found |= networks(x, hint, pid) | losses(pid)
    i, k = torch.arange(12), torch.arange(40)
    r = evaluate_features(wave(12,32,k=11), wave(40,32,k=12), i%5, k%5, i%3, k%3)
    found['ranking'] = [r.mAP, r.mAP_trapezoid, r.mINP, float(r.cmc[0]), float(r.cmc[4])]
    return found

def far(a, b):
    "Places where `a` is not `b`"
    places = [i for i, (x, y) in enumerate(zip(a, b)) if not abs(x-y)<=ATOL+RTOL*abs(y)]
    return places + ['length']*(len(a)!=len(b))

if __name__=='__main__':
    got = outputs()
    assert all(all(map(math.isfinite, v)) for v in got.values())
    if '--check' in sys.argv:
        want = json.loads(FILE.read_text())['outputs']
        wrong = [f'{k}: {got.get(k)} instead of {v}' for k, v in want.items() if k not in got or far(got[k], v)]
        wrong += [f'{k}: not stored' for k in got if k not in want]
        print('\n'.join(wrong) or f'{len(want)} outputs, {sum(map(len, want.values()))} numbers: all agree')
        sys.exit(bool(wrong))
    facts = dict(made_by='python results/trust/reference.py', **run_facts(torch.device('cpu')), rtol=RTOL, atol=ATOL)
    FILE.write_text(json.dumps(dict(facts, outputs=got), indent=1)+'\n')
    print(f'{len(got)} outputs')
