"""What the network and each loss give for numbers that any version of any library makes the same (sines, no random generator). A silent change shows here.

    python results/trust/reference.py --check    # compare with results/trust/reference.json
    python results/trust/reference.py            # write it anew, after a change that was meant

Tolerance: 2e-4 of each number (and 2e-5 absolute): other versions of torch and other processors add up in another order."""
import json, math, os, sys, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1'); warnings.filterwarnings('ignore')
from pathlib import Path
import torch
from torchvision.models import resnet18
from pgflkd.baseline import reid_body, Baseline
from pgflkd.losses import PGFLKDLoss, batch_hard_triplet, consistent_loss, id_loss, multi_part_contrastive_loss
from pgflkd.network import PGFLKD, to_baseline
from pgflkd.pose import draw_attention, part_visibility
from pgflkd.metrics import evaluate_features
from pgflkd.records import run_facts
from pgflkd.san import paint_triplet, texture_loss

FILE, RTOL, ATOL = Path(__file__).parent/'reference.json', 2e-4, 2e-5

def wave(*shape, k=1.):
    "Numbers in [-1,1] that look random and are the same everywhere"
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(i*i*.7071*k % 6.283185307179586 + k).float().view(shape)

@torch.no_grad()
def filled(net):
    "`net` with weights from `wave`, scaled as one would initialise them"
    for j,(n,p) in enumerate(net.named_parameters()):
        w = wave(*p.shape, k=1+.01*j)
        p.copy_(w*(2/(p[0].numel() if p.ndim>1 else 1))**.5 if p.ndim>1 else (1+.1*w if n.endswith('weight') else .1*w))
    return net

def summary(t):
    t = t.detach().double().flatten(); return [float(t.mean()), float(t.std()), *map(float, t[:: max(1, len(t)//4)][:4])]

def outputs():
    "Name -> few numbers"
    torch.set_num_threads(1)
    B, N = 8, 4; x, pid = wave(B,3,64,32), torch.arange(B)//2
    joints = torch.stack([(wave(B,17,k=2)+1)*16, (wave(B,17,k=3)+1)*32, (wave(B,17,k=4)+1)/2], -1)
    parts = draw_attention(joints, (8,4), (64,32)); res = dict(parts=summary(parts), visibility=summary(part_visibility(parts)))
    for name,kw in dict(table6_6={}, no_feb=dict(feb=False), no_interaction=dict(interact=False), dot=dict(attn='dot'), mean_pool=dict(pool='mean')).items():
        net = filled(PGFLKD(reid_body(resnet18, None, stride=8), N, **kw)).train(); out = net(x, parts)
        res |= {f'{name}.{k}': summary(v) for k,v in out.items()}
        loss = PGFLKDLoss(); total = loss(out, torch.stack([pid,pid], 1)); total.backward()
        res[f'{name}.loss'] = [float(total), *(float(v) for v in loss.terms.values())]
        res[f'{name}.gradient'] = [float(p.grad.norm()) for p in (net.body[0].weight, net.neck_g.fc.weight)]
    res['deployed'] = summary(to_baseline(net)(x)); base = filled(Baseline(reid_body(resnet18, None, stride=16), N)).train()
    res |= {f'baseline.{k}': summary(v) for k,v in base(x).items()}
    f_g, f_e, logits = wave(B,64,k=5), wave(B,64,k=6), wave(B,N,k=7)*3
    one = lambda v: [float(v)]
    res['id_loss'] = one(id_loss(logits, pid)); res['id_loss plain'] = one(id_loss(logits, pid, 0.))
    res['triplet'] = one(batch_hard_triplet(f_g, pid)); res['triplet soft'] = one(batch_hard_triplet(f_g, pid, None))
    for r in ('mean','sum','normalized','cosine'): res[f'consistent {r}'] = one(consistent_loss(f_g, f_e, r))
    res['contrastive'] = one(multi_part_contrastive_loss(f_g, f_e)); res['contrastive literal'] = one(multi_part_contrastive_loss(f_g, f_e, normalize=False, temperature=1.))
    res['texture'] = one(texture_loss(wave(B,3,16,16,k=8), wave(B,3,16,16,k=9), torch.arange(B)%3>0)); res['paint triplet'] = one(paint_triplet(wave(B,4,8,8,k=10), pid, .3, 'hard'))
    r = evaluate_features(wave(12,32,k=11), wave(40,32,k=12), *(torch.arange(n)%m for n,m in ((12,5),(40,5),(12,3),(40,3))))
    res['ranking'] = [r.mAP, r.mAP_trapezoid, r.mINP, float(r.cmc[0]), float(r.cmc[4])]
    return res

def far(a, b): return [i for i,(x,y) in enumerate(zip(a, b)) if not abs(x-y)<=ATOL+RTOL*abs(y)] + ['length']*(len(a)!=len(b))

if __name__=='__main__':
    got = outputs(); assert all(math.isfinite(x) for v in got.values() for x in v)
    if '--check' in sys.argv:
        want = json.loads(FILE.read_text())['outputs']
        wrong = [f'{k}: {got.get(k)} instead of {v}' for k,v in want.items() if k not in got or far(got[k], v)] + [f'{k}: not stored' for k in got if k not in want]
        print('\n'.join(wrong) or f'{len(want)} outputs, {sum(map(len, want.values()))} numbers: all agree'); sys.exit(bool(wrong))
    FILE.write_text(json.dumps(dict(made_by='python results/trust/reference.py', **run_facts(torch.device('cpu')), rtol=RTOL, atol=ATOL, outputs=got), indent=1)+'\n'); print(f'{len(got)} outputs')
