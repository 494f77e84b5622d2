"""What a cell of the map tells, for chapter 61: `python results/ablation/cells.py` (from the repository's root), after `pgflkd_ablate --keep`.

For every kept network of runs.csv: ranking by the map pooled in several ways, as it is and after each cell's mean over the gallery was taken out,
and the share of the map's variance that position, person and camera explain. Writes cells.csv, variance.csv and accent.csv (how far each cell's mean is from the mean of all cells, beside a typical picture's distance from its cell's mean) into `out`."""
import warnings
warnings.filterwarnings('ignore', message='.*torch.jit.script', category=FutureWarning)
import sys
from pathlib import Path
import numpy as np, pandas as pd, torch
import torch.nn.functional as F
from fastcore.script import call_parse
from pgflkd.commands.ablate import open_dataset, rank_features
from pgflkd.foreground import pool_parts
from pgflkd.interpret import read_masks
from pgflkd.errors import InputError; from pgflkd.pose import draw_attention, part_visibility, person_attention
from pgflkd.records import PROTOCOL, add_rows, guarded, run_facts
sys.path.insert(0, str(Path(__file__).parent))
from responses import kept, load

RUN = ['row','seed','stride','epochs']

@torch.no_grad()
def maps(model, df): return torch.cat([model.body(o).float() for o in load(df, model).split(64)])

def pooled(fmap, parts, body):
    "Features of `fmap` (n,C,h,w) pooled everywhere, where a joint was seen, under the silhouette `body` (n,1,h,w), and under the eight attentions `parts` (n,8,h,w)"
    f = dict(f_all=fmap.mean((2,3)), f_pose=(fmap*person_attention(parts)[:,None]).sum((2,3))) | ({} if body is None else dict(f_body=(fmap*body).sum((2,3))/body.sum((2,3)).clamp_min(1e-3)))
    return f, F.normalize(pool_parts(fmap, parts), dim=-1)

def explained(fmap, df):
    "Share of the variance of single cells of `fmap`, mean over channels, that the cell's position explains; then, of what is left at one position, person and camera"
    g = (df.role=='gallery').to_numpy() & (df.pid>0).to_numpy(); x = fmap[torch.from_numpy(g)].double(); total = x.var((0,2,3), unbiased=False)
    rest = x - x.mean(0); res = dict(position=(x.mean(0).var((1,2), unbiased=False)/total).mean().item())
    for k in ('pid','camid'):
        _, at = np.unique(df[k][g], return_inverse=True); at = torch.from_numpy(at); n = torch.bincount(at).double()[:,None,None,None]
        mean = torch.zeros(len(n), *rest.shape[1:], dtype=torch.double).index_add_(0, at, rest)/n
        res[k] = ((mean.pow(2)*n).sum((0,2,3))/rest.pow(2).sum((0,2,3)).clamp_min(1e-12)).mean().item()
    return res

def cells(out, work, folder=None, keypoints=None, rows=''):
    "Measure the kept networks of `out`/runs.csv, of `rows` only where it names some; `folder` and `keypoints` are those of its photographs"
    out, work = Path(out), Path(work)
    runs = pd.read_csv(out/'runs.csv', keep_default_na=False).drop_duplicates(RUN)
    if rows: runs = runs[runs.row.isin([o.strip() for o in rows.split(',')])]
    for run in runs[RUN].itertuples(index=False):
        if (out/'variance.csv').exists() and run in set(pd.read_csv(out/'variance.csv')[RUN].itertuples(index=False)): continue   # written last
        name, seed = dict(zip(RUN, run)), int(run.seed)
        try: key, model = kept(out, work, **name)
        except InputError as e: print(e); continue                                                  # this one was not kept
        df, joints, _ = open_dataset(key['data'].removesuffix(' valid'), seed, work, folder=folder, keypoints=keypoints, valid=key['data'].endswith(' valid'))
        test = (df.role.isin(['query','gallery']) & (df.query_set!='partial')).to_numpy(); df, joints = df[test].reset_index(drop=True), joints[test]
        fmap = maps(model, df); size = tuple(model.card['size']); grid = tuple(fmap.shape[-2:])
        parts = draw_attention(torch.from_numpy(joints), grid, size)
        body = F.adaptive_avg_pool2d(read_masks(df, 'body', size).float()[:,None], grid) if 'mask' in df and df['mask'].astype(bool).all() else None   # photographs have no silhouettes
        accent, facts = fmap[(df.role=='gallery').to_numpy()].mean(0), dict(protocol=PROTOCOL.replace('f_g after BNNeck', 'the map pooled, no neck'), **run_facts(torch.device('cpu')))
        for how,m in (('as it is', fmap), ('centred', fmap-accent)):
            f, p = pooled(m, parts, body); rows = rank_features(df, f | dict(parts=p, seen=part_visibility(parts)))
            add_rows(out/'cells.csv', pd.DataFrame(rows).assign(map=how, **name, **facts), [*RUN,'map','feature','query_set'])
        loud = (accent-accent.mean((1,2), keepdim=True)).norm(dim=0); typical = (fmap-accent).norm(dim=1).mean((0,1,2))
        add_rows(out/'accent.csv', pd.DataFrame([dict(name, y=i, x=j, accent=loud[i,j].item(), rest=typical.item()) for i in range(grid[0]) for j in range(grid[1])]), [*RUN,'y','x'])
        add_rows(out/'variance.csv', pd.DataFrame([dict(name, **explained(fmap, df), **facts)]), RUN)
        print(f'{name}: written', flush=True)

@call_parse
def main(
    out:str='results/ablation/small',  # Folder of runs.csv
    work:str='runs/work',              # Folder of the kept networks
    folder:str=None,                   # Crops, for runs on 'folder'
    keypoints:str=None,                # Their keypoint store (.npz)
    rows:str='',                       # Only these rows, with commas
):
    "What a cell of the map tells"
    guarded('cells', lambda: cells(out, work, folder, keypoints, rows))
