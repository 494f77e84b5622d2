"""MoveNet as an estimator of your own, and how good it is.

    pip install ai-edge-litert
    python results/pose/movenet.py estimate my_crops --weights movenet_lightning.tflite --out keypoints.npz
    python results/pose/movenet.py judge Market-1501-subset --weights movenet_lightning.tflite \\
        --reference market1501-subset-keypoints.npz

`judge` writes movenet_market.csv and movenet_tiny.csv beside this file. The share of good joints stands beside what a
body that never moves would get (`mean_pose`), because people in crops stand in the middle.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pgflkd.errors import InputError, extra, need
from pgflkd.estimate import estimate_poses
from pgflkd.files import list_pictures, open_picture
from pgflkd.keypoints import KeypointStore
from pgflkd.pose import COCO_JOINTS
from pgflkd.readers.poses import to_coco
from pgflkd.records import add_rows, run_facts

HERE = Path(__file__).parent

def fit_into(im, size):
    "(canvas, scale, offset): `im` as large as it can be in the middle of a black (h,w), neither stretched nor cut"
    (W, H), (h, w) = im.size, size
    share = min(w/W, h/H)
    small = max(1, round(W*share)), max(1, round(H*share))
    at = (w-small[0])//2, (h-small[1])//2
    canvas = Image.new('RGB', (w,h))
    canvas.paste(im.resize(small, Image.BILINEAR), at)
    return canvas, np.array([small[0]/W, small[1]/H]), np.array(at, float)

class MoveNet:
    "MoveNet single pose (Lightning or Thunder, .tflite) through LiteRT: one person a picture"
    def __init__(self, path, threads=1):
        path = Path(path)
        need(path.is_file(), f"{path}: no such file; give MoveNet's single-pose .tflite")
        runtime = extra('ai_edge_litert.interpreter', 'ai-edge-litert')
        try:
            self.net = runtime.Interpreter(str(path), num_threads=threads)
            self.net.allocate_tensors()
        except (ValueError, RuntimeError) as e:
            raise InputError(f'{path}: LiteRT cannot read it ({str(e).splitlines()[0][:80]}); give a .tflite') from None
        (self.input,), (self.output,) = self.net.get_input_details(), self.net.get_output_details()
        shapes = tuple(self.input['shape']), tuple(self.output['shape'])
        need(len(shapes[0])==4 and shapes[1][-2:]==(17,3),
             f'{path}: turns {shapes[0]} into {shapes[1]}; MoveNet gives (1,1,17,3)')
        self.size = tuple(int(n) for n in shapes[0][1:3])
        self.name = f'movenet-{path.stem}-{path.stat().st_size}'

    def __repr__(self): return self.name

    def __call__(self, ims): return np.stack([self.one(o) for o in ims])

    def one(self, im):
        "The joints (17,3) of one picture"
        canvas, scale, at = fit_into(im, self.size)
        self.net.set_tensor(self.input['index'], np.asarray(canvas, self.input['dtype'])[None])
        self.net.invoke()
        y, x, sure = self.net.get_tensor(self.output['index']).reshape(17,3).T         # 0 to 1, y first
        return np.c_[(np.c_[x,y]*self.size[::-1]-at)/scale, sure]

class Stretched(MoveNet):
    "The same network on pictures that were stretched into its square"
    def one(self, im):
        h, w = self.size
        return super().one(im.resize((w,h)))*[im.width/w, im.height/h, 1]

def compare_joints(joints, reference, within=8.):
    "A row a joint, and `all`: how often `joints` (n,17,3) lie within so many pixels of a `reference` that has them"
    away, ok = joints[...,:2]-reference[...,:2], reference[...,2]>0
    rows = [_distances('all', away[ok], within)]
    for j,name in enumerate(COCO_JOINTS): rows.append(_distances(name, away[:,j][ok[:,j]], within))
    return pd.DataFrame(rows)

def _distances(joint, away, within):
    "The row of one joint, `away` (n,2) pixels from its reference"
    row = dict(joint=joint, compared=len(away), within=np.nan, median=np.nan, mean_x=np.nan, mean_y=np.nan)
    if not len(away): return row
    far = np.linalg.norm(away, axis=-1)
    x, y = away.mean(0)
    return dict(row, within=(far<=within).mean(), median=np.median(far), mean_x=x, mean_y=y)

def judge_poses(store, reference, within=8.):
    "As `compare_joints`, of two stores by name, and `mean_pose`: the share within of the reference's own mean"
    at = {name: i for i,name in enumerate(store.names.tolist())}
    both = [(at[name], i) for i,name in enumerate(reference.names.tolist()) if name in at]
    need(both, f'{store.source} and {reference.source} have no picture in common')
    ours, theirs = np.array(both).T
    truth = reference.joints[theirs]
    seen = truth[...,2:]>0
    mean = (truth[...,:2]*seen).sum(0)/np.maximum(seen.sum(0), 1)
    still = np.broadcast_to(np.concatenate([mean, np.ones((17,1))], 1), truth.shape)
    mean_pose = compare_joints(still, truth, within).within
    return compare_joints(store.joints[ours], truth, within).assign(mean_pose=mean_pose)

def _record(file, judged, **about):
    "Add the rows `judged` to the table `file`"
    how = ('share of reference joints (OpenPose: those it found) whose estimate is within 8 px in the 128x64 crop, '
           'whatever its confidence; letterbox to 192x192')
    rows = judged.assign(**about, protocol=how, **run_facts('cpu'))
    add_rows(HERE/f'{file}.csv', rows, on=['dataset','estimator','reference','joint'])

def _given(reference):
    "The joints (n,17,3) that came with the photographs, in the file `reference`: {name: a store}"
    given = np.load(reference)
    openpose = given['openpose18'].astype(float)
    found = (openpose>=0).all(-1, keepdims=True)
    supplied = np.concatenate([given['coco17'][...,:2], np.ones((len(openpose),17,1))], -1)
    openpose = to_coco(np.concatenate([openpose+.5, found], -1)*found)
    stores = {}
    for name,joints in {'OpenPose-18': openpose, 'supplied coco17 (MoveNet)': supplied}.items():
        stores[name] = KeypointStore(given['names'], np.zeros_like(joints))
        stores[name].joints = joints.astype(np.float32)               # as given: also what lies outside of the frame
    return stores

MARKET = 'Market-1501 train-split subset'

def judge_market(folder, weights, reference, out='movenet.npz'):
    "MoveNet on photographs, against OpenPose and against the joints that came with them"
    if not Path(out).exists(): estimate_poses(folder, MoveNet(weights), out)
    store = KeypointStore.load(out)
    for name,truth in _given(reference).items():
        _record('movenet_market', judge_poses(store, truth), estimator='MoveNet Lightning', reference=name,
                dataset=f'{MARKET} (600 people, 10,652 crops)')
        if name=='OpenPose-18': _judge_stretched(folder, weights, truth, name)

def _judge_stretched(folder, weights, truth, name):
    "MoveNet on every tenth photograph, stretched into its square, against the joints `truth` called `name`"
    fns = list_pictures(folder)[::10]
    some = KeypointStore([Path(o).name for o in fns], Stretched(weights)([open_picture(o) for o in fns]))
    _record('movenet_market', judge_poses(some, truth), estimator='MoveNet Lightning, picture stretched',
            reference=name, dataset=f'{MARKET}, every tenth crop')

def judge_tiny(weights):
    "MoveNet on rendered people, against their true joints"
    from pgflkd.synthetic import render_world, world_joints
    df = render_world('tiny', seed=0, progress=False)
    df = df[(df.query_set!='partial') & ~df.occluded]
    joints = world_joints(df)
    truth = KeypointStore(df.fn, joints*[1,1,0] + (joints[...,2:]>.3)*[0,0,1.])
    ims = [open_picture(o) for o in df.fn]
    nets = {'MoveNet Lightning': MoveNet(weights), 'MoveNet Lightning, picture stretched': Stretched(weights)}
    people = f'synthetic_tiny (world seed 0), {len(df)} whole crops'
    for name,net in nets.items():
        judged = judge_poses(KeypointStore(df.fn, net(ims)), truth)
        _record('movenet_tiny', judged, estimator=name, dataset=people, reference='true joints, confidence above .3')

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['estimate','judge'])
    parser.add_argument('folder', help='of pictures')
    parser.add_argument('--weights', required=True, help="MoveNet's single-pose .tflite")
    parser.add_argument('--out', default='movenet.npz')
    parser.add_argument('--reference', help='joints of the same pictures: names, openpose18, coco17')
    a = parser.parse_args()
    if a.what=='estimate': print(estimate_poses(a.folder, MoveNet(a.weights), a.out)[0])
    else:
        judge_market(a.folder, a.weights, a.reference, a.out)
        judge_tiny(a.weights)
