"""Where the networks of an ablation look, for chapter 60: `python results/ablation/responses.py` (from the repository's root), after `pgflkd_ablate --keep`.

Reads runs.csv in `out` and the kept networks in `work`; writes shares.csv (every occluded query) and, for a few of them, pictures and maps in responses.npz into `out`. With `--images images` also the two pictures of the front page."""
import warnings
warnings.filterwarnings('ignore', message='.*torch.jit.script', category=FutureWarning)
from pathlib import Path
import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt, numpy as np, pandas as pd, torch
from dataclasses import fields
from fastcore.script import call_parse
from PIL import Image
from pgflkd.commands.ablate import Recipe, open_dataset, _id
from pgflkd.interpret import RetrievalInterpretation, compare_responses, feature_response, ranking_picture, read_masks, response_share, similarity_cam, spread_queries
from pgflkd.learner import load_student
from pgflkd.metrics import pairwise_distance
from pgflkd.errors import InputError
from pgflkd.records import add_rows, guarded, run_facts

KEY = ['data','row','seed','switches',*(f.name for f in fields(Recipe))]

def kept(out, work, row, seed, **recipe):
    "Key and network of the run of `row` with `seed`, and with such fields of the `recipe`"
    runs = pd.read_csv(out/'runs.csv', keep_default_na=False); runs = runs[(runs.row==row)&(runs.seed==seed)]
    for k,v in recipe.items(): runs = runs[runs[k]==v]
    if not len(runs): raise InputError(f'{out}/runs.csv: no run of {row} with seed {seed}; give it to pgflkd_ablate first')
    kinds = dict(data=str, row=str, seed=int, switches=str, **{f.name: f.type for f in fields(Recipe)})
    key = {k: kinds[k](runs[k].iloc[0]) for k in KEY}; path = work/f'{_id(key)}.safetensors'
    if not path.exists(): raise InputError(f'{path}: no such file; run pgflkd_ablate with --keep and the same --work')
    return key, load_student(path)

def load(df, model):
    "Pictures (n,3,H,W) of `df`, normalised for `model`"
    mean, std = (torch.tensor(o).view(3,1,1) for o in model.card['stats'])
    return (torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2,0,1) for f in df.fn])/255-mean)/std

@torch.no_grad()
def maps(model, x): return model.body(x).float()

@torch.no_grad()
def embed(model, x): return torch.cat([model(o) for o in x.split(64)])

def measure(model, df, shown):
    "One row for every occluded query of `df`; for the rows `shown` the response, the part of the map that is the picture's own, and the similarity to the nearest right match"
    q, g = df[(df.role=='query')&(df.query_set=='occluded')], df[df.role=='gallery']
    x, resp = load(q, model), []
    f, fg = embed(model, x), embed(model, load(g, model))
    for o in x.split(64): resp.append(feature_response(model, o))
    resp, masks = torch.cat(resp), {k: read_masks(q, k) for k in ('obstacle','body')}
    accent = sum(maps(model, o).sum(0) for o in load(g, model).split(64))/len(g)     # each cell's mean over the gallery
    own = torch.cat([(maps(model, o)-accent).norm(dim=1) for o in x.split(64)])      # what is this picture's and not its place's
    d, rows, match = pairwise_distance(f, fg).numpy(), [], []
    pid, cam = g.pid.to_numpy(), g.camid.to_numpy()
    for i,(p,c) in enumerate(zip(q.pid, q.camid)):
        right, ours = (pid==p)&(cam!=c), ~((pid==p)&(cam==c))                      # same person and camera: not in the race
        best = np.flatnonzero(right)[d[i][right].argmin()] if right.any() else -1
        rows.append(dict(query=int(q.index[i]), pid=int(p), camid=int(c), rank=int((d[i][ours]<d[i][best]).sum())+1 if best>=0 else None)); match.append(best)
    at, match = q.index.get_indexer(shown), np.array(match)
    cams = torch.cat([similarity_cam(model, x[i], fg[match[i]]) for i in np.split(np.arange(len(x)), range(64, len(x), 64))])
    looks = dict(response=resp, own=own, similarity=cams)
    res = pd.DataFrame(rows).assign(**{f'{n}_on_{k}': response_share(r, m).numpy() for n,r in looks.items() for k,m in masks.items()}, area=masks['obstacle'].float().mean((1,2)).numpy(), covered=q.covered.to_numpy())
    return res, {n: r[at] for n,r in looks.items()}, q.loc[shown], g.iloc[match[at]]

def pictures(df): return np.stack([np.array(Image.open(f)) for f in df.fn])

def front_page(df, looks, models, images):
    "Write ranking.jpg, four queries of `df` as the first and the last of `models` rank them, and response.jpg, `looks` over theirs, into `images`"
    ends = {r: models[r] for r in (list(models)[0], list(models)[-1])}
    ranking_picture({r: RetrievalInterpretation(df, embed(m, load(df, m))) for r,m in ends.items()}, spread_queries(df, 4), images/'ranking.jpg')
    shown = spread_queries(df, len(next(iter(looks.values())))); mask = read_masks(df.loc[shown], 'obstacle')
    fig = compare_responses(list(pictures(df.loc[shown])), {r: (o-o.amin((1,2), keepdim=True))/(o.amax((1,2), keepdim=True)-o.amin((1,2), keepdim=True)) for r,o in looks.items()},
                            {r: response_share(o, mask) for r,o in looks.items()}, title='How loud the last map is: dark is quiet, bright is loud')
    fig.savefig(images/'response.jpg', pil_kwargs=dict(quality=80)); plt.close(fig)

def responses(rows, seed, out, work, n, images):
    "Measure the kept networks of `rows` with `seed`, and keep the maps of `n` queries; with a folder `images`, draw the front page's pictures there"
    out, work, arrays, shown, models, resp = Path(out), Path(work), {}, None, {}, {}
    for row in rows:
        key, model = kept(out, work, row, seed)
        if shown is None:
            df, _, _ = open_dataset(key['data'].removesuffix(' valid'), seed, work, valid=key['data'].endswith(' valid')); df = df[df.role.isin(['query','gallery'])].reset_index(drop=True)
            shown = spread_queries(df, n)                                          # spread over the table, not chosen by looking
        table, looks, q, match = measure(model, df, shown); models[row], resp[row] = model, looks['response']
        add_rows(out/'shares.csv', table.assign(row=row, seed=seed, **run_facts(torch.device('cpu'))), ['row','seed','query'])
        arrays |= {f'{row}/{n}': r.numpy().astype(np.float16) for n,r in looks.items() if n!='similarity'} | {f'{row}/similarity': (looks['similarity']*255).byte().numpy(), f'{row}/match': pictures(match)}
    arrays |= dict(query=np.array(shown), picture=pictures(q), obstacle=read_masks(q, 'obstacle').numpy(), body=read_masks(q, 'body').numpy(), seed=seed)
    tmp = out/'.responses.npz'; np.savez_compressed(tmp, **arrays); tmp.replace(out/'responses.npz')
    if images: front_page(df, resp, models, Path(images))
    print(f'{out}: shares.csv, responses.npz ({(out/"responses.npz").stat().st_size/1e3:.0f} kB)')

@call_parse
def main(
    rows:str='baseline,PGFL-KD',       # Rows of runs.csv, with commas
    seed:int=0,                        # Their seed
    out:str='results/ablation/small',  # Folder of runs.csv
    work:str='runs/work',              # Folder of the kept networks
    n:int=8,                           # Queries of which the maps are kept
    images:str='',                     # Folder for the two pictures of the front page; empty: none
):
    "Where the networks of an ablation look"
    guarded('responses', lambda: responses(rows.split(','), seed, out, work, n, images))
