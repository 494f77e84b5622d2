"""The ablation of SAN, and how well its painter paints: `python results/san/run.py` (from the repository's root).

Rows times seeds; a row that stands in ablation.csv is not run again, one that was killed goes on at its last epoch.
Writes ablation.csv, history.csv, texture.csv and, for the first of the seeds, painted_NAME.jpg into `out`, and
checkpoints into `work`."""
import warnings

warnings.filterwarnings('ignore', message='.*torch.jit.script', category=FutureWarning)
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from fastai.basics import set_seed
from fastcore.script import call_parse

from pgflkd.baseline import ARCHS
from pgflkd.checkpoint import RunLog
from pgflkd.data import denorm, reid_dls
from pgflkd.errors import guarded, need
from pgflkd.files import write_whole
from pgflkd.interpret import feature_response, read_masks, response_share
from pgflkd.learner import baseline_learner, pgflkd_learner, san_learner
from pgflkd.precision import BF16, fast_bf16
from pgflkd.records import PROTOCOL, add_rows, run_facts
from pgflkd.san import paint
from pgflkd.synthetic import PRESETS, render_world, world_joints
from pgflkd.texture import OpenTexture

ROWS = dict(baseline=(baseline_learner, {}),
            reconstruction=(san_learner, dict(lambda_tr=0.)),
            SAN=(san_learner, {}),
            pgflkd=(pgflkd_learner, dict(lambda_mcl=3.)),                       # as results/first_run
            pgflkd_SAN=(san_learner, dict(pose=True, lambda_mcl=3.)),
            SAN_PG=(san_learner, dict(reid=False, lambda_tr=0.)))               # the painter alone: only in texture.csv


@dataclass(frozen=True)
class Setting:
    "What all rows share; the options of the command"
    preset: str
    seeds: list
    epochs: int
    out: Path
    work: Path
    rows: list
    lr: float
    arch: str
    size: int
    stride: int
    bs: int

    def key(self, seed):
        "What names a run of `seed` in the tables"
        return dict(dataset=f'synthetic_{self.preset} (world seed {seed})', seed=seed, epochs=self.epochs, lr=self.lr,
                    stride=self.stride)

    def checkpoint(self, seed, name):
        "The file of a run that is not over"
        return self.work/f'{self.preset}-{seed}-{name}-{self.epochs}-{self.lr}-{self.stride}.pth'

    def dls(self, seed):
        "The pictures of the world of `seed`, a texture beside each"
        df = render_world(self.preset, seed=seed, progress=False)
        return reid_dls(df, world_joints(df), size=(128, 64), bs=self.bs, per_id=4, stride=self.stride, seed=seed,
                        targets=[OpenTexture(self.size)])


def make(name, dls, setting):
    "The learner of row `name` on `dls`"
    factory, options = ROWS[name]
    if factory is san_learner: options = dict(options, size=setting.size)
    cbs = [BF16()] if fast_bf16(dls.device) else None
    return factory(dls, ARCHS[setting.arch], weights=None, cbs=cbs, **options)


def train(name, dls, setting, seed):
    "Train row `name`, going on where it stopped; learner, log rows, seconds"
    set_seed(seed)
    learn, start = make(name, dls, setting), time.time()
    log = RunLog(setting.checkpoint(seed, name), name, seed)
    learn.add_cb(log)
    log.resume()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(setting.epochs, setting.lr, start_epoch=log.first)
        if not learn.rank_gallery.results: learn.validate()                     # taken up after its last epoch
    return learn, log.rows, round(time.time()-start)


def valid_pictures(dls, keep):
    "Pictures (n,3,H,W) and rows of the test table, of those that the array `keep` names"
    x = torch.cat([b[0].as_subclass(torch.Tensor).cpu() for b in dls.valid])
    return x[keep], dls.test_df[keep].reset_index(drop=True)


def obstacle_share(learn):
    "Share of the response that lies on the obstacle of occluded queries"
    df = learn.dls.test_df
    x, occluded = valid_pictures(learn.dls, ((df.role=='query') & (df.query_set=='occluded')).to_numpy())
    masks = read_masks(occluded, 'obstacle', learn.dls.size)
    return response_share(feature_response(learn.model, x), masks).nanmean().item()


def queries(dls):
    "Pictures (n,3,H,W) and rows of all queries"
    return valid_pictures(dls, (dls.test_df.role=='query').to_numpy())


def paint_all(model, x):
    "What the painter of `model` makes of `x`, (n,3,S,S) in [0,1]"
    device = next(model.parameters()).device
    return torch.cat([paint(model, o.to(device)).cpu() for o in x.split(64)])


def textures(df, size):
    "The textures of `df` in [0,1], (n,3,S,S)"
    read = OpenTexture(size)
    return torch.stack([(read(row)+1)/2 for row in df.to_dict('records')])


def texture_error(painted, truth):
    "Mean absolute difference of each of `painted` from its `truth`"
    return (painted-truth).abs().mean((1, 2, 3))


def texture_rows(learn, name, size):
    "Error of the painter, and of the mean training texture, by query set; on people who were not trained on"
    x, df = queries(learn.dls)
    truth, mean = textures(df, size), textures(learn.dls.train_df, size).mean(0)
    errors = {name: texture_error(paint_all(learn.model, x), truth), 'mean texture': texture_error(mean[None], truth)}
    rows = []
    for painter, error in errors.items():
        for query_set in df.query_set.unique():
            of_set = error[(df.query_set==query_set).to_numpy()]
            rows.append(dict(painter=painter, query_set=query_set, error=of_set.mean().item(), n=len(of_set)))
    return rows


def shown_queries(df, n=4):
    "Rows of `df` of `n` test people: a front, a back and an occluded view of each"
    turn = (df.heading+180)%360-180
    holistic = df.query_set=='holistic'
    views = [holistic & (turn.abs()<60), holistic & (turn.abs()>120), df.query_set=='occluded']
    people = [p for p in sorted(df.pid.unique()) if all((view & (df.pid==p)).any() for view in views)]
    people = people[::max(1, len(people)//n)][:n]                     # spread over the table, not chosen by looking
    return [np.flatnonzero(view & (df.pid==p))[0] for p in people for view in views]


def picture(learn, size, path, n=4):
    "Write to `path`: for `n` test people a front, a back and an occluded view, each with painting and truth below"
    x, df = queries(learn.dls)
    shown = shown_queries(df, n)
    if not shown: return
    rows = dict(picture=denorm(x[shown], learn.dls.stats), painted=paint_all(learn.model, x[shown]),
                truth=textures(df.iloc[shown], size))
    fig, axs = plt.subplots(3, len(shown), figsize=(.85*len(shown), 3.4), dpi=100, layout='constrained',
                            height_ratios=(2, 1, 1), squeeze=False)
    for (name, pictures), line in zip(rows.items(), axs):
        for im, ax in zip(pictures, line): ax.imshow(im.permute(1, 2, 0))
        line[0].set_ylabel(name)
    for ax in axs.flat: ax.set(xticks=[], yticks=[])
    for i, ax in enumerate(axs[0]): ax.set_title(('front', 'back', 'occluded')[i%3], fontsize=8)
    write_whole(path, lambda tmp: fig.savefig(tmp, format='jpg', pil_kwargs=dict(quality=85)))
    plt.close(fig)


def done(path, on):
    "Whether `path` holds a row equal to `on`"
    if not path.exists(): return False
    df = pd.read_csv(path)
    if not all(column in df for column in on): return False
    equal = [df[column].astype(str)==str(value) for column, value in on.items()]
    return bool(np.logical_and.reduce(equal).any())


def is_done(name, setting, seed):
    "Whether row `name` stands in the tables"
    key = setting.key(seed)
    if name=='SAN_PG': return done(setting.out/'texture.csv', dict(key, painter=name))
    return done(setting.out/'ablation.csv', dict(key, model=name))


def ranking_rows(learn, name):
    "The ranking of each query set, and the share of the response on the obstacles of occluded ones"
    share, rows = obstacle_share(learn), []
    for query_set, ranking in learn.rank_gallery.results.items():
        on_obstacle = share if query_set=='occluded' else None
        rows.append(dict(model=name, feature='f_g', query_set=query_set, **ranking.row(), obstacle_share=on_obstacle))
    return rows


def facts(name, dls, setting, seed, seconds):
    "What stands beside every figure of a run"
    return dict(**setting.key(seed), arch=setting.arch, weights='none', size='x'.join(map(str, dls.size)),
                texture=setting.size, batch=f'{setting.bs//4}x4', lambda_mcl=3. if 'pgflkd' in name else None,
                train_seconds=seconds, precision='bf16' if fast_bf16(dls.device) else 'fp32', **run_facts(dls.device))


def write_painted(learn, name, about, setting, seed):
    "Write how well the painter of row `name` paints, and for the first of the seeds a picture of it"
    rows = pd.DataFrame(texture_rows(learn, name, setting.size)).assign(**about)
    add_rows(setting.out/'texture.csv', rows, [*setting.key(seed), 'painter', 'query_set'])
    if seed==setting.seeds[0]: picture(learn, setting.size, setting.out/f'painted_{name}.jpg')


def run_row(name, dls, setting, seed):
    "Train and measure row `name`, write what was found"
    learn, history, seconds = train(name, dls, setting, seed)
    key, about = setting.key(seed), facts(name, dls, setting, seed, seconds)
    if 'SAN' in name or name=='reconstruction': write_painted(learn, name, about, setting, seed)
    add_rows(setting.out/'history.csv', pd.DataFrame(history).assign(**key), [*key, 'model', 'epoch'])
    if name!='SAN_PG':
        rows = pd.DataFrame(ranking_rows(learn, name)).assign(**about, protocol=PROTOCOL)
        add_rows(setting.out/'ablation.csv', rows, [*key, 'model', 'query_set'])
    setting.checkpoint(seed, name).unlink(missing_ok=True)
    ranked = ', '.join(f'{query_set} {r.mAP*100:.1f}' for query_set, r in learn.rank_gallery.results.items())
    print(f'{setting.preset}, seed {seed}, {name}: {seconds} s; mAP {ranked}', flush=True)


def san_ablation(setting):
    "Train the rows with each of the seeds; skips what stands in the tables"
    need(setting.preset in PRESETS, f'--preset: {setting.preset} is no world, take one of {", ".join(PRESETS)}')
    for name in setting.rows: need(name in ROWS, f'--rows: {name} is unknown, take {", ".join(ROWS)}')
    setting.work.mkdir(parents=True, exist_ok=True)
    for seed in setting.seeds:
        dls = None
        for name in setting.rows:
            if is_done(name, setting, seed): continue
            if dls is None: dls = setting.dls(seed)
            run_row(name, dls, setting, seed)


@call_parse
def main(
    preset: str = 'small',            # World: tiny, small or occluded
    seeds: str = '0,1,2',             # With commas
    epochs: int = 6,                  # Epochs of each row
    rows: str = ','.join(ROWS),       # With commas
    lr: float = 1e-3,                 # Highest learning rate (one-cycle)
    arch: str = 'resnet18',           # Backbone, from random weights
    size: int = 64,                   # Height and width of the textures
    stride: int = 16,                 # Pixels a cell of the last map, as the original's
    bs: int = 64,                     # Pictures in a batch, 4 of each person
    out: str = 'results/san',         # Folder of the tables
    work: str = 'runs/san',           # Folder of the checkpoints
):
    "Ablation of SAN on a rendered world"
    def job():
        san_ablation(Setting(preset, [int(o) for o in seeds.split(',')], epochs, Path(out), Path(work), rows.split(','),
                             lr, arch, size, stride, bs))
    guarded('san', job)
