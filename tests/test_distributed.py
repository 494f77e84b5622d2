"Two processes on the CPU (gloo) train as one does: the same weights, loss terms and metrics. Each side is a process of its own, started by `torchrun`."
import json, os, subprocess, sys
from pathlib import Path
import torch

root = Path(__file__).resolve().parent.parent
script = '''
import json, os, sys, warnings
warnings.filterwarnings('ignore')
import torch, torch.distributed as dist
torch.set_num_threads(1)
from torch import nn
from functools import partial
from fastai.basics import *
from pgflkd.baseline import reid_splitter
from pgflkd.callbacks import LogTerms, RankGallery, reid_metrics
from pgflkd.data import reid_dls
from pgflkd.losses import PGFLKDLoss
from pgflkd.network import PGFLKD
from pgflkd.pipeline import fast
from pgflkd.precision import Ranks
from pgflkd.synthetic import render_world, world_joints

many, out = int(os.environ.get('WORLD_SIZE', 1))>1, sys.argv[1]
if many: dist.init_process_group('gloo')
df  = render_world('tiny', progress=False)
off = dict(flip=0., pad=0, erase=0.)                     # each process throws its own dice
dls = reid_dls(df, world_joints(df), size=(64,32), bs=32, per_id=4, seed=0, stride=8, loader=partial(fast, folder=os.path.dirname(out)), **off)
conv = lambda i,o: nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
set_seed(1+(dist.get_rank() if many else 0))             # only rank 0's weights count
body = nn.Sequential(conv(3,16), conv(16,32), conv(32,64)); body.n_features = 64
class Double(Callback):                                  # in 64 bits the sums of two halves agree with the whole's: no near tie falls the other way
    order = -5
    def before_batch(self): self.learn.xb = apply(lambda t: t.double() if t.is_floating_point() else t, self.xb)
learn = Learner(dls, PGFLKD(body, dls.n_classes).double(), PGFLKDLoss(.25, 3.), opt_func=partial(SGD, mom=.9), splitter=reid_splitter, metrics=reid_metrics(),
                cbs=[Double(), RankGallery(), LogTerms()] + [Ranks()]*many)
with learn.no_bar(), learn.no_logging():
    learn.fit(2, 1e-3)
    whole = learn.get_preds()[0]
    again = learn.validate()
if not many or dist.get_rank()==0:
    torch.save(dict(weights=learn.model.state_dict(), terms=learn.log_terms.history, values=[list(v) for v in learn.recorder.values], again=list(again)[1:], preds=whole,
                    sets={k: (r.mAP, r.rank1, r.n_valid) for k,r in learn.rank_gallery.results.items()}, bn=type(learn.model.neck_g.bn).__name__), out)
if many: dist.barrier(); dist.destroy_process_group()
'''

def run(tmp, n, script=script):
    (tmp/'job.py').write_text(script)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(root), PYTHONWARNINGS='ignore')
    launch = [sys.executable] if n==1 else [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(n)]
    r = subprocess.run([*launch, str(tmp/'job.py'), str(tmp/f'{n}.pt')], env=env, cwd=tmp, capture_output=True, text=True, timeout=280)
    assert r.returncode==0, r.stderr[-3000:]
    return torch.load(tmp/f'{n}.pt', weights_only=False)

def apart(a, b): return max(abs(a[k]-b[k])/abs(a[k]) for k in a)

def test_two_processes_train_as_one(tmp_path):
    one, two = run(tmp_path, 1), run(tmp_path, 2)
    for a,b in zip(one['terms'], two['terms']): assert a.keys()==b.keys()
    first, second = (apart(a, b) for a,b in zip(one['terms'], two['terms']))
    assert max(first, second)<=1e-6                      # the losses work in 32 bits
    for k,w in one['weights'].items(): assert torch.allclose(w, two['weights'][k], rtol=1e-9, atol=1e-9), k
    assert torch.allclose(one['preds'], two['preds'], rtol=1e-9, atol=1e-9)
    assert one['sets'].keys()==two['sets'].keys()
    for k,(mAP,rank1,n) in one['sets'].items():
        assert two['sets'][k][2]==n                      # every query was ranked, once
        assert abs(two['sets'][k][0]-mAP)<1e-6 and two['sets'][k][1]==rank1, k
    assert two['again'][0]==dict(zip(two['sets'], two['sets'].values()))['occluded'][0]    # `validate` says what `fit` said
    assert two['bn']=='BatchNorm1d'                      # what was swapped is swapped back

    alone = script.replace("from pgflkd.precision import Ranks", "import pgflkd.precision; pgflkd.precision._gather = lambda t: t.as_subclass(torch.Tensor)\nfrom pgflkd.precision import Ranks")
    assert apart(one['terms'][0], run(tmp_path, 2, alone)['terms'][0])>5e-3                # each with a loss of its own pictures: the comparison can fail
