"""The ablation of SAN, and how well its painter paints: `python results/san/run.py` (from the repository's root).

Rows times seeds; a row that stands in ablation.csv is not run again, one that was killed goes on at its last epoch.
Writes ablation.csv, history.csv, texture.csv and, for the first of the seeds, painted_NAME.jpg into `out`, checkpoints into `work`."""
import warnings
warnings.filterwarnings('ignore', message='.*torch.jit.script', category=FutureWarning)
import time
from pathlib import Path
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, torch
from fastcore.script import call_parse
from fastai.vision.all import *
from pgflkd.errors import InputError
from pgflkd.synthetic import PRESETS, render_world, world_joints
from pgflkd.data import denorm, reid_dls
from pgflkd.baseline import ARCHS
from pgflkd.interpret import feature_response, read_masks, response_share
from pgflkd.callbacks import BF16, RunLog, fast_bf16
from pgflkd.learner import baseline_learner, pgflkd_learner, san_learner
from pgflkd.records import PROTOCOL, add_rows, guarded, run_facts
from pgflkd.texture import Textures, texture_error

ROWS = dict(baseline=(baseline_learner, {}),
            reconstruction=(san_learner, dict(lambda_tr=0.)),
            SAN=(san_learner, {}),
            pgflkd=(pgflkd_learner, dict(lambda_mcl=3.)),                       # as results/first_run
            pgflkd_SAN=(san_learner, dict(pose=True, lambda_mcl=3.)),
            SAN_PG=(san_learner, dict(reid=False, lambda_tr=0.)))               # the painter alone: only in texture.csv

def make(name, dls, arch, size, bf16):
    "The learner of row `name` on `dls`, textures of `size`"
    factory, kw = ROWS[name]
    if factory is san_learner: kw = dict(kw, textures=Textures.from_table(dls.train_df, size))
    return factory(dls, ARCHS[arch], weights=None, cbs=[BF16()] if bf16 else None, **kw)

def train(name, dls, arch, size, bf16, epochs, lr, seed, work):
    "Train row `name`, going on where it stopped; learner, log rows, seconds"
    set_seed(seed)
    learn, start = make(name, dls, arch, size, bf16), time.time()
    log = RunLog(work, name, seed); learn.add_cb(log)
    log.resume()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, start_epoch=log.first)
        if not learn.rank_gallery.results: learn.validate()                     # taken up after its last epoch
    return learn, log.rows, round(time.time()-start)

def obstacle_share(learn):
    "Share of the response that lies on the obstacle of occluded queries"
    df = learn.dls.test_df; rows = np.flatnonzero((df.role=='query')&(df.query_set=='occluded'))
    x = torch.cat([b[0].as_subclass(torch.Tensor).cpu() for b in learn.dls.valid])[rows]
    return response_share(feature_response(learn.model, x), read_masks(df.iloc[rows], 'obstacle', learn.dls.size)).nanmean().item()

def queries(dls):
    "Pictures (n,3,H,W) and rows of all queries"
    df = dls.test_df; keep = (df.role=='query').to_numpy()
    return torch.cat([b[0].as_subclass(torch.Tensor).cpu() for b in dls.valid])[keep], df[keep].reset_index(drop=True)

def paint_all(model, x):
    dev = next(model.parameters()).device
    return torch.cat([model.paint(o.to(dev)).cpu() for o in x.split(64)])

def texture_rows(learn, name, size):
    "Error of the painter, and of the mean training texture, by query set; on people who were not trained on"
    x, df = queries(learn.dls)
    truth, mean = Textures.from_table(df, size), Textures.from_table(learn.dls.train_df, size)
    truth, mean = truth.images[truth.row]/255, (mean.images[mean.row]/255).mean(0)
    error = {name: texture_error(paint_all(learn.model, x), truth), 'mean texture': texture_error(mean[None], truth)}
    return [dict(painter=p, query_set=q, error=e[(df.query_set==q).to_numpy()].mean().item(), n=int((df.query_set==q).sum())) for p,e in error.items() for q in df.query_set.unique()]

def picture(learn, size, path, n=4):
    "Write to `path`: for `n` test people a front, a back and an occluded view, each with painting and truth below"
    x, df = queries(learn.dls)
    turn, cond = (df.heading+180)%360-180, lambda q: df.query_set==q
    views = [cond('holistic')&(turn.abs()<60), cond('holistic')&(turn.abs()>120), cond('occluded')]
    people = [p for p in sorted(df.pid.unique()) if all((v&(df.pid==p)).any() for v in views)]
    people = people[::max(1, len(people)//n)][:n]                               # spread over the table, not chosen by looking
    if not people: return
    shown = [np.flatnonzero(v&(df.pid==p))[0] for p in people for v in views]
    truth = Textures.from_table(df, size); rows = [denorm(x[shown], learn.dls.stats), paint_all(learn.model, x[shown]), truth.images[truth.row[shown]]/255]
    fig, axs = plt.subplots(3, len(shown), figsize=(.85*len(shown),3.4), dpi=100, layout='constrained', height_ratios=(2,1,1), squeeze=False)
    for ims,line,name in zip(rows, axs, ('picture','painted','truth')):
        for im,ax in zip(ims, line): ax.imshow(im.permute(1,2,0)); ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    for i,ax in enumerate(axs[0]): ax.set_title(('front','back','occluded')[i%3], fontsize=8)
    tmp = path.with_name(f'.{path.name}.tmp.jpg'); fig.savefig(tmp, pil_kwargs=dict(quality=85)); plt.close(fig); tmp.replace(path)

def done(path, on):
    "Whether `path` holds a row equal to `on`"
    if not path.exists(): return False
    df = pd.read_csv(path)
    return all(c in df for c in on) and bool(np.logical_and.reduce([df[c].astype(str)==str(v) for c,v in on.items()]).any())

def one(name, dls, s, key, out, work):
    "Train and measure row `name`, write what was found"
    bf16 = fast_bf16(dls.device)
    learn, history, seconds = train(name, dls, s['arch'], s['size'], bf16, s['epochs'], s['lr'], key['seed'], work)
    facts = dict(**key, arch=s['arch'], weights='none', size='x'.join(map(str, dls.size)), texture=s['size'], batch=f"{s['bs']//4}x4", lambda_mcl=3. if 'pgflkd' in name else None,
                 train_seconds=seconds, precision='bf16' if bf16 else 'fp32', **run_facts(dls.device))
    if 'SAN' in name or name=='reconstruction':
        rows = pd.DataFrame(texture_rows(learn, name, s['size'])).assign(**facts)
        add_rows(out/'texture.csv', rows, [*key,'painter','query_set'])
        if key['seed']==s['seeds'][0]: picture(learn, s['size'], out/f'painted_{name}.jpg')
    add_rows(out/'history.csv', pd.DataFrame(history).assign(**key), [*key,'model','epoch'])
    if name!='SAN_PG':
        share = obstacle_share(learn)
        rows = [dict(model=name, feature='f_g', query_set=q, **r.row(), obstacle_share=share if q=='occluded' else None) for q,r in learn.rank_gallery.results.items()]
        add_rows(out/'ablation.csv', pd.DataFrame(rows).assign(**facts, protocol=PROTOCOL), [*key,'model','query_set'])
    work.unlink(missing_ok=True)
    return learn, seconds

def san_ablation(preset='small', seeds=(0,1,2), epochs=6, out='results/san', work='runs/san', rows=tuple(ROWS), lr=1e-3, arch='resnet18', size=64, stride=16, bs=64):
    "Train `rows` on the world `preset` with each of `seeds`, `epochs` each; textures of `size`, a cell of the last map every `stride` pixels; skips what stands in `out`"
    if preset not in PRESETS: raise InputError(f'--preset: {preset} is no world, take one of {", ".join(PRESETS)}')
    for r in rows:
        if r not in ROWS: raise InputError(f'--rows: {r} is unknown, take {", ".join(ROWS)}')
    out, work, s = Path(out), Path(work), dict(arch=arch, size=size, epochs=epochs, lr=lr, bs=bs, seeds=list(seeds))
    work.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        dls = None
        for name in rows:
            key = dict(dataset=f'synthetic_{preset} (world seed {seed})', seed=seed, epochs=epochs, lr=lr, stride=stride)
            mark = dict(key, painter=name) if name=='SAN_PG' else dict(key, model=name)
            if done(out/('texture.csv' if name=='SAN_PG' else 'ablation.csv'), mark): continue
            if dls is None:
                df = render_world(preset, seed=seed, progress=False)
                dls = reid_dls(df, world_joints(df), size=(128,64), bs=bs, per_id=4, stride=stride, seed=seed)
            learn, seconds = one(name, dls, s, key, out, work/f'{preset}-{seed}-{name}-{epochs}-{lr}-{stride}.pth')
            print(f'{preset}, seed {seed}, {name}: {seconds} s; mAP ' + ', '.join(f'{q} {r.mAP*100:.1f}' for q,r in learn.rank_gallery.results.items()), flush=True)

@call_parse
def main(
    preset:str='small',           # World: tiny, small or occluded
    seeds:str='0,1,2',            # With commas
    epochs:int=6,                 # Epochs of each row
    rows:str=','.join(ROWS),      # With commas
    lr:float=1e-3,                # Highest learning rate (one-cycle)
    arch:str='resnet18',          # Backbone, from random weights
    size:int=64,                  # Height and width of the textures
    stride:int=16,                # Pixels a cell of the last map, as the original's
    bs:int=64,                    # Pictures in a batch, 4 of each person
    out:str='results/san',        # Folder of the tables
    work:str='runs/san',          # Folder of the checkpoints
):
    "Ablation of SAN on a rendered world"
    guarded('san', lambda: san_ablation(preset, [int(o) for o in seeds.split(',')], epochs, out, work, rows.split(','), lr, arch, size, stride, bs))
