"""Train the small student that ships with the library: a MobileNetV2 on the people of several rendered worlds.

    python results/student/train.py --weights converted.safetensors   # trains, resumable; hours on one core
    python results/student/train.py --test-only                       # ranks worlds it never saw, into runs.csv

Nothing is chosen by a test picture: the recipe below was fixed before the run, and the last epoch counts.
"""
import random
from pathlib import Path

import pandas as pd
import torch
from fastai.basics import set_seed
from fastai.vision.core import imagenet_stats
from fastcore.script import call_parse

from pgflkd.callbacks import rank_sets
from pgflkd.checkpoint import NoValidation, RunLog
from pgflkd.data import reid_dls
from pgflkd.deploy import export, load_embedder
from pgflkd.learner import QUICK, baseline_learner
from pgflkd.occlude import HidePerson
from pgflkd.precision import precision_of
from pgflkd.records import PROTOCOL, add_rows, run_facts
from pgflkd.synthetic import render_world
from pgflkd.world.plan import World

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parents[1]/'pgflkd/weights/student.safetensors'
WORLDS = (900, 901, 902, 903, 904)     # 150 people to learn from in each
UNSEEN = (0, 1, 2)
EPOCHS, LR, HIDE, SEED = 12, 7e-4, .25, 900
RECIPE = ('mobilenet_v2, ImageNet start, 128x64, stride 8, 16x4, one-cycle 7e-4, 12 epochs, unit triplets, '
          'obstacles pasted on 1 of 4')

def many_worlds():
    "One table of the training people of all `WORLDS`, and of the test people of the first, by which nothing is chosen"
    tables = []
    for i, seed in enumerate(WORLDS):
        df = render_world(World(), seed=seed)
        keep = df if i==0 else df[df.role=='train']
        tables.append(keep.assign(pid=keep.pid.where(keep.pid<1, keep.pid+1000*i), camid=keep.camid+100*i))
    return pd.concat(tables, ignore_index=True)

def learner(weights):
    "The baseline on all worlds, from `weights`"
    random.seed(SEED)
    hide = HidePerson(HIDE, imagenet_stats, SEED+3)
    table = many_worlds().drop(columns='joints')
    dls = reid_dls(table, size=(128, 64), bs=64, per_id=4, stride=8, batch_tfms=[hide], seed=SEED)
    set_seed(SEED)
    return baseline_learner(dls, arch='mobilenet_v2', weights=weights, recipe=QUICK)

def train(weights, work):
    "Train and write the student and its log"
    learn = learner(weights).to_fast()
    log = RunLog(work/'student.pth', 'student', SEED)
    learn.add_cbs([log, NoValidation()])
    log.resume()
    learn.fit_one_cycle(EPOCHS, LR, start_epoch=log.first)
    pd.DataFrame(log.rows).to_csv(HERE/'history.csv', index=False)
    made = dict(recipe=f'{RECIPE}, {precision_of(learn)}', worlds=str(WORLDS))
    origin = 'ImageNet weights of MobileNetV2, Apache-2.0, trained further'
    export(learn, SHIPPED, half=True, licence='Apache-2.0', origin=origin, **made)

def test():
    "Rank the worlds that the student never saw"
    embed = load_embedder(SHIPPED)
    for seed in UNSEEN:
        df = render_world(World(), seed=seed)
        df = df[df.role!='train'].reset_index(drop=True)
        features = torch.as_tensor(embed(list(df.fn)))
        facts = dict(world=seed, recipe=RECIPE, protocol=PROTOCOL, **run_facts('cpu'))
        rows = [dict(query_set=k, **r.row(), **facts) for k, r in rank_sets(df, features).items()]
        add_rows(HERE/'runs.csv', pd.DataFrame(rows), on=['world', 'query_set'])
        print(pd.DataFrame(rows)[['world', 'query_set', 'mAP', 'rank1']].round(3).to_string(index=False))

@call_parse
def main(
    weights:str='',            # ImageNet weights in the plain torchvision layout (results/student/convert.py)
    work:str='runs/student',   # folder of the checkpoint
    test_only:bool=False,      # rank only
):
    "Train the student, then rank the worlds it never saw"
    torch.set_num_threads(1)
    Path(work).mkdir(parents=True, exist_ok=True)
    if not test_only: train(weights, Path(work))
    test()
