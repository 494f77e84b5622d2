"""Twelve backbones: each trains a step at 128x64 and is exported; sizes and times go into backbones.csv.

    python results/backbones.py              # some minutes on one core
    python results/backbones.py --only vit   # those with 'vit' in their name; nothing is written
"""
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from fastcore.script import call_parse
from torch import nn

from pgflkd.data import reid_dls
from pgflkd.deploy import export, load_embedder
from pgflkd.errors import InputError
from pgflkd.learner import QUICK, baseline_learner
from pgflkd.records import run_facts
from pgflkd.synthetic import render_world

HERE = Path(__file__).resolve().parent
SIZE = 128, 64
ARCHS = dict(resnet18=8, mobilenet_v2=8, shufflenet_v2_x1_0=8, mobilenet_v3_small=8, efficientnet_b0=8, densenet121=8,
             regnet_y_400mf=8, convnext_atto=8, fastvit_t8=8, vit_tiny_patch16_224=16, swin_tiny_patch4_window7_224=32,
             own=16)                      # name -> pixels a cell: the finest that its architecture allows, at least 8

def own():
    "A module of one's own, with a map of 16 pixels a cell"
    layers = []
    for n_in, n_out in ((3, 24), (24, 48), (48, 96), (96, 192)):
        layers += [nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers)

def step(learn):
    "Train `learn` on one batch; the loss before and after"
    opt = torch.optim.SGD([p for p in learn.model.parameters() if p.requires_grad], 1e-2)
    x, hint, *y = learn.dls.one_batch()
    learn.model.train()
    losses = []
    for _ in range(2):
        loss = learn.loss_func(learn.model(x, hint), *y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses

@torch.inference_mode()
def milliseconds(model):
    "Time of a picture in a batch of 16, the least of 3"
    x, times = torch.rand(16, 3, *SIZE), []
    model.eval()
    for _ in range(3):
        start = time.perf_counter()
        model(x)
        times.append(time.perf_counter()-start)
    return 1e3*min(times)/16

def exported(learn, suffix, folder):
    "'yes' if `learn` is written as a `suffix` file that gives the same features, else why not"
    try:
        file = export(learn, folder/f'student{suffix}')
        load_embedder(file)
    except (InputError, RuntimeError) as e: return ' '.join(str(e).split()).split(': ', 1)[-1]
    return 'yes'

def row(name, stride, df):
    "One row of the table"
    torch.manual_seed(0)
    dls = reid_dls(df, size=SIZE, bs=16, per_id=4, stride=stride, seed=0)
    learn = baseline_learner(dls, own() if name=='own' else name, weights=None, recipe=QUICK)
    before, after = step(learn)
    body = learn.model.body
    facts = dict(name=name, stride=stride, channels=body.n_features,
                 parameters=sum(p.numel() for p in body.parameters()),
                 ms_a_picture=round(milliseconds(learn.model), 2),
                 loss_before=round(before, 3), loss_after=round(after, 3))
    with tempfile.TemporaryDirectory() as d:
        return facts | {kind: exported(learn, f'.{kind}', Path(d)) for kind in ('safetensors', 'onnx')}

@call_parse
def main(
    only:str='', # part of the names to try; all if left out
):
    "Fill backbones.csv"
    warnings.simplefilter('ignore')
    df = render_world('tiny', progress=False)
    rows = []
    for name, stride in ARCHS.items():
        if only not in name: continue
        rows.append(row(name, stride, df))
        print(rows[-1], flush=True)
    if not only: pd.DataFrame(rows).assign(**run_facts('cpu')).to_csv(HERE/'backbones.csv', index=False)
