"""What a GPU is asked, in pieces of ten minutes: checks, times, Table 6 and `where` by `PAPER`, Figures 1 and 4.

    python results/gpu/run.py                          # the next piece; give it again until it says that all is done
    python results/gpu/run.py --weights FILE.pth       # where torchvision cannot download the ImageNet weights
    python results/gpu/run.py --dry --out /tmp/gpu     # all of it at tiny size on the CPU: a rehearsal of a minute

It needs Python 3.10, torch, torchvision and what `requirements` in `settings.ini` names; fastai 2.8.7 with fastcore
1.14.5 will do. pgflkd itself need not be installed. Packages unpacked in a folder are found by `PYTHONPATH=FOLDER`.
With several GPUs start it once for each, `CUDA_VISIBLE_DEVICES=1 python results/gpu/run.py`: each takes rows that no
other has.
"""
import argparse
import sys
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from os import cpu_count
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
try:
    import fastcore.script
    import numpy as np
    import pandas as pd
    import torch
    if not hasattr(fastcore.script, 'parse_cli'): fastcore.script.parse_cli = None   # fastcore 1; no command is called
    from fastai.torch_core import default_device, set_seed, to_cpu
    from pgflkd.commands import ablate
    from pgflkd.data import denorm, reid_dls
    from pgflkd.deploy import load_student
    from pgflkd.interpret import compare_responses, feature_response, read_masks, response_share, spread_queries
    from pgflkd.learner import PAPER
    from pgflkd.metrics import evaluate_features
    from pgflkd.precision import fast_bf16
    from pgflkd.records import add_rows, run_facts
except ImportError as e:
    sys.exit(f'results/gpu/run.py: {e}; it needs torch, torchvision and the requirements in settings.ini')

# Rows by their worth: preset of `pgflkd_ablate`, rows of it, places in --seeds
WORTH = [('table6', 'baseline,PGFL-KD', (0,)),
         ('where', 'where,where other,hidden', (0,)),
         ('table6', 'baseline,PGFL-KD', (1, 2)),
         ('table6', '+SAB,+SAB w/ I,+SAB w/ IM,+FEB', (0,)),
         ('where', 'where,where other,hidden', (1, 2)),
         ('table6', '+SAB,+SAB w/ I,+SAB w/ IM,+FEB', (1, 2))]

@dataclass
class Job:
    "What is asked, and of which machine"
    recipe:object       # `Recipe` of every row
    data:str            # name of the rendered world
    out:Path            # folder of the tables and figures
    work:Path           # folder of checkpoints
    seeds:list          # of world, weights and batches
    until:float         # a value of `time.monotonic`
    steps:int           # that are timed
    workers:int         # processes that read pictures
    def source(self): return ablate._Source(num_workers=self.workers)
    def learner(self, row, seed=0):
        df, joints, _ = ablate._open_dataset(self.data, self.seeds[seed], self.work)
        made = ablate.plan_rows('table6', self.recipe)[row]
        return ablate._start_learner(df, joints, made, self.recipe, self.seeds[seed], self.workers)
    def minutes(self): return (self.until-time.monotonic())/60
    def plans(self):
        for preset, rows, places in WORTH:
            seeds = [self.seeds[i] for i in places if i<len(self.seeds)]
            if seeds: yield ablate.plan_rows(preset, self.recipe, rows), seeds

# 1. Are the numbers those of the CPU?

def forward_backward(model, loss_func, batch):
    "Terms of the loss, gradient and deployed feature of a batch"
    x, hint, *yb = batch
    model.train().zero_grad()
    loss_func(model(x, hint), *yb).backward()
    gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    terms = {name: float(o) for name, o in loss_func.terms.items()}
    with torch.no_grad(): return terms, gradient, model.eval()(x).float().cpu()

def against_the_cpu(learn):
    "Largest relative difference of the terms; 1 - cosine of the gradient; difference of a feature by its length"
    batch = learn.dls.train.one_batch()
    start = deepcopy(learn.model)
    mine = forward_backward(deepcopy(start), learn.loss_func, batch)
    cpu = forward_backward(deepcopy(start).cpu(), learn.loss_func, to_cpu(batch))
    terms = max(abs(mine[0][k]-v)/max(abs(v), 1e-3) for k, v in cpu[0].items())
    angle = 1-torch.cosine_similarity(mine[1].double(), cpu[1].double(), dim=0).item()
    far = ((mine[2]-cpu[2]).norm(dim=1)/cpu[2].norm(dim=1)).max().item()
    return [('terms of the loss', terms, 1e-3), ('angle of the gradient', angle, 1e-3), ('feature', far, 1e-3)]

def in_half(learn, device):
    "The largest difference that bfloat16 makes to a feature, by its length"
    if not fast_bf16(device): return []
    x, model = learn.dls.train.one_batch()[0], learn.model.eval()
    with torch.no_grad():
        full = model(x)
        with torch.autocast(device.type, dtype=torch.bfloat16): half = model(x).float()
    return [('feature in bfloat16', ((full-half).norm(dim=1)/full.norm(dim=1)).max().item(), .1)]

def same_ranking(device):
    "The difference of the mAP of the same features, ranked on the device and on the CPU"
    rng = np.random.default_rng(0)
    pid, camid = rng.integers(1, 50, 600), rng.integers(0, 4, 600)
    f = torch.randn(600, 64, generator=torch.Generator().manual_seed(0)) + torch.from_numpy(pid).float()[:,None]%7
    split = pid[:100], pid[100:], camid[:100], camid[100:]
    found = [evaluate_features(o[:100], o[100:], *split).mAP for o in (f, f.to(device))]
    return [('mAP of the same features', abs(found[0]-found[1]), 1e-3)]

def repeated(job, learn):
    "The largest difference of a weight between two times the same three steps"
    batch, ends = learn.dls.train.one_batch(), []
    for _ in range(2):
        twin = job.learner('PGFL-KD')
        twin.model.load_state_dict(learn.model.state_dict())
        for _ in range(3): one_step(twin, batch)
        ends.append(torch.cat([p.detach().flatten() for p in twin.model.parameters()]))
    return [('weights after the same three steps', (ends[0]-ends[1]).abs().max().item(), 0.)]

def check(job):
    "Write checks.csv; stops where a number is another than the CPU's"
    device, file = default_device(), job.out/'checks.csv'
    if file.exists(): return
    learn = job.learner('PGFL-KD')
    kept = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False            # by default a convolution on a GPU rounds to 10 bits
    found = against_the_cpu(learn)
    torch.backends.cudnn.allow_tf32 = kept
    found += in_half(learn, device) + same_ranking(device) + repeated(job, learn)
    rows = [dict(what=what, value=value, tolerance=most, passed=value<=most) for what, value, most in found]
    table = pd.DataFrame(rows).assign(**run_facts(device))
    print(table[['what','value','tolerance','passed']].to_string(index=False), flush=True)
    wrong = table[~table.passed & (table.tolerance>0)]                # the last one is a fact, and stops nothing
    if len(wrong): sys.exit(f'not as on the CPU: {", ".join(wrong.what)}; nothing is trained, nothing was written')
    add_rows(file, table)

# 2. How fast?

def one_step(learn, batch):
    "A step of training"
    if learn.opt is None: learn.create_opt()
    x, hint, *yb = batch
    device = x.device
    half = torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast_bf16(device))
    with half: out = learn.model.train()(x, hint)
    learn.loss_func(out, *yb).backward()
    learn.opt.step()
    learn.opt.zero_grad()

def wait(device):
    "Until the device has done what it was asked"
    if device.type=='cuda': torch.cuda.synchronize(device)

def seconds(f, n, device):
    "Seconds for each call of `f`, mean of `n` after two"
    for _ in range(2): f()
    wait(device)
    start = time.perf_counter()
    for _ in range(n): f()
    wait(device)
    return (time.perf_counter()-start)/n

def traffic(learn, x):
    "Bytes that a step moves for each picture: a layer reads and writes its maps forward, and twice reads backward"
    moved, size = [], 2 if fast_bf16(x.device) else 4
    def note(part, inputs, out): moved.append(3*inputs[0][0].numel() + 2*out[0].numel())
    leaves = [m for m in learn.model.body.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(note) for m in leaves]
    with torch.no_grad(): learn.model.eval().body(x[:2])
    for hook in hooks: hook.remove()
    return size*sum(moved)

def bound(learn, x):
    "Pictures a second if nothing but memory took time, and what they are made of"
    n = 2**26 if x.device.type=='cuda' else 2**22
    copied = torch.empty(n, device=x.device)
    speed, each = 8*n/seconds(copied.clone, 5, x.device), traffic(learn, x)
    return dict(bound_a_second=speed/each, megabytes_a_picture=each/1e6, gigabytes_a_second=speed/1e9)

def ready(job, row):
    "The learner of `row` and a batch; the peak of the memory begins anew"
    learn = job.learner(row)
    if torch.cuda.is_available(): torch.cuda.reset_peak_memory_stats()
    return learn, learn.dls.train.one_batch()

def with_loader(learn, n, device):
    "Seconds a step whose pictures come from the loader, the first two left out"
    dl, start = learn.dls.train, None
    count = min(n+2, len(dl))
    for i, batch in enumerate(islice(iter(dl), count)):
        if i==min(2, count-1): start = time.perf_counter()
        one_step(learn, batch)
        wait(device)
    return (time.perf_counter()-start)/max(1, count-2)

def measure(job):
    "Write times.csv: steps, pictures a second, the bound, the share of the loader, memory"
    device, file = default_device(), job.out/'times.csv'
    if file.exists(): return
    bs = job.recipe.bs
    learn, batch = ready(job, 'baseline')
    baseline = seconds(lambda: one_step(learn, batch), job.steps, device)
    learn, batch = ready(job, 'PGFL-KD')
    step = seconds(lambda: one_step(learn, batch), job.steps, device)
    peak = torch.cuda.max_memory_allocated()/bs/2**20 if device.type=='cuda' else np.nan
    facts = dict(step_baseline=baseline, step_pgflkd=step, ratio=step/baseline, pictures_a_second=bs/step)
    facts |= bound(learn, batch[0]) | dict(memory_a_picture_mib=peak)
    loaded = with_loader(learn, job.steps, device)
    facts |= dict(step_with_loader=loaded, loader_share=max(0., 1-step/loaded), workers=job.workers,
                  batches_an_epoch=len(learn.dls.train))
    print(pd.Series(facts).round(4).to_string(), flush=True)
    add_rows(file, pd.DataFrame([facts]).assign(**run_facts(device)))

# 3. The rows, and how long they will take

def train(job):
    "The rows in the order of their worth, until the time is up; True when all are there"
    for rows, seeds in job.plans():
        if job.minutes()<.5: return False
        how = job.recipe, job.out, job.work, job.source(), max(.1, job.minutes())
        if not ablate.run_plan(rows, [job.data], seeds, *how, keep=True): return False
    return True

def epochs_left(job):
    "Epochs that no row of runs.csv and no checkpoint has"
    done, left = ablate._done(job.out/'runs.csv'), 0
    for rows, seeds in job.plans():
        for seed in seeds:
            for name in rows:
                run = ablate._key(rows, job.recipe, job.source(), job.data, seed, name)['run']
                file = job.work/run/'run.pth'
                known = len(torch.load(file, map_location='cpu', weights_only=True)['rows']) if file.exists() else 0
                left += 0 if run in done else job.recipe.epochs-known
    return left

def tell(job):
    "Print the hours that remain"
    left, times = epochs_left(job), pd.read_csv(job.out/'times.csv').iloc[-1]
    hours = left*times.batches_an_epoch*times.step_with_loader/3600
    print(f'{left} epochs remain, about {hours:.1f} hours on this machine'
          f'{"; give the same command again" if left else ": all is done"}', flush=True)

# 4. Figures 1 and 4

def figures(job):
    "Draw responses to the same occluded queries: of the baseline (Figure 1) and of PGFL-KD (Figure 4)"
    files = {name: kept(job, name) for name in ('baseline', 'PGFL-KD')}
    if not all(o.exists() for o in files.values()): return
    shown, x, stats = occluded(job)
    mask = read_masks(shown, 'obstacle', x.shape[-2:])
    for number, (name, file) in zip((1, 4), files.items()):
        model = load_student(file).to(default_device())
        share = {name: response_share(feature_response(model, x), mask)}
        looks = {name: feature_response(model, x, scale=True)}
        fig = compare_responses(denorm(x, stats).cpu(), looks, share, title=f'Figure {number}, ours: {name}')
        fig.savefig(job.out/f'figure{number}.png')

def kept(job, name):
    "The file of the network that row `name` of Table 6 left"
    plan = ablate.plan_rows('table6', job.recipe, name)
    run = ablate._key(plan, job.recipe, job.source(), job.data, job.seeds[0], name)['run']
    return job.work/f'{run}.safetensors'

def occluded(job):
    "Six occluded queries: their rows, their pictures as a network sees them, the statistics of these"
    df, joints, _ = ablate._open_dataset(job.data, job.seeds[0], job.work)
    dls = reid_dls(df, joints, **job.recipe.data, seed=0)
    rows = dls.test_df.iloc[spread_queries(dls.test_df, 6, 'occluded')]
    return rows, torch.cat([o[0].as_subclass(torch.Tensor) for o in dls.test_dl(rows)]), dls.stats

def job_of(args):
    "The `Job` that the arguments of the command line name"
    recipe = PAPER if args.weights is None else replace(PAPER, weights=None if args.weights=='none' else args.weights)
    job = Job(recipe, 'occluded_tall', Path(args.out), Path(args.work), [0, 1, 2], 0., 30, min(8, cpu_count()))
    if args.dry:
        small = replace(PAPER, size=(64,32), bs=32, per_id=4, epochs=1, arch='resnet18', weights=None)
        work = Path(args.out)/'work'
        job = replace(job, recipe=small, data='tiny', seeds=[0], steps=2, workers=0, work=work)
    return replace(job, until=time.monotonic()+60*args.minutes)

def main():
    "A piece of the work"
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument('--minutes', type=float, default=10., help='length of a piece')
    asked.add_argument('--out', default=str(HERE), help='folder of tables and figures')
    asked.add_argument('--work', default='runs/gpu', help='folder of checkpoints')
    asked.add_argument('--weights', help="file of ImageNet weights, or none; left out: torchvision's")
    asked.add_argument('--dry', action='store_true', help='all of it, tiny, on the CPU')
    args = asked.parse_args()
    if args.dry: default_device(False)
    elif not torch.cuda.is_available(): sys.exit('results/gpu/run.py: no GPU is here; --dry --out FOLDER rehearses')
    if args.dry and Path(args.out)==HERE: sys.exit('--dry: name another folder with --out; here stand real rows only')
    job = job_of(args)
    job.out.mkdir(parents=True, exist_ok=True)
    set_seed(0)
    check(job)
    measure(job)
    train(job)
    figures(job)
    tell(job)

if __name__=='__main__': main()
