"""A dot painted under a joint stays under it, whatever is done to the picture; masks go where their pictures go;
targets go nowhere."""
import multiprocessing
import pickle
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
hypothesis = pytest.importorskip('hypothesis', reason='needs hypothesis (dev requirements)')
from hypothesis import HealthCheck, given, settings, strategies as st
from pgflkd.augment import ErasePerson, FlipPerson, RotatePerson, ShiftPerson
from pgflkd.data import DrawHint, ResizePerson, reid_dls
from pgflkd.pose import JOINT_MIRROR, MIRROR, PARTS, TensorPose, draw_hint, flip_joints

def shift(p, seed): return ShiftPerson((9,7), seed)
def rotate(p, seed): return RotatePerson(p, 30, seed)

TRANSFORMS = dict(flip=FlipPerson, shift=shift, erase=ErasePerson, rotate=rotate)
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
N = 4

def from_point(H, W, u, v):
    "The squared distance of every pixel from the point (`u`,`v`), in shares of the width and height"
    ys, xs = torch.arange(H)[:,None]+.5, torch.arange(W)+.5
    return (ys-v*H)**2+(xs-u*W)**2

@st.composite
def people(draw):
    """Pictures (N,1,H,W), each with a soft dot; masks (N,1,H,W) of a disc about it; poses (N,17,3) whose only joint is
    there"""
    H, W = draw(st.integers(48,160)), draw(st.integers(32,100))
    x, pose = torch.zeros(N,1,H,W), torch.zeros(N,17,3)
    mask = torch.zeros(N,1,H,W, dtype=torch.uint8)
    for i in range(N):
        j, u, v = draw(st.integers(0,16)), draw(st.floats(.08,.92)), draw(st.floats(.08,.92))
        d2 = from_point(H, W, u, v)
        x[i,0], mask[i,0] = torch.exp(-d2/8), (d2<16).byte()
        pose[i,j] = torch.tensor([u*W, v*H, 1.])
    return x, mask, pose

def apply(t, x, mask, pose):
    "All three through one draw of `t`"
    H, W = x.shape[-2:]
    dice = t.draw(len(x), H, W)
    return t.paint(x, dice), t.paint(mask, dice), t.move(pose, dice, H, W), dice

def dot_under_joint(x, mask, pose, least=.6):
    "Each picture's only joint with a confidence lies on its dot and in its mask"
    (H,W), seen = x.shape[-2:], pose[...,2]>0
    assert (seen.sum(1)<=1).all()
    for i,j in seen.nonzero().tolist():
        px, py = int(pose[i,j,0]), int(pose[i,j,1])
        assert 0<=px<W and 0<=py<H
        assert x[i,0,py,px] > least, (i, j, pose[i,j], x[i,0,py,px])
        assert mask[i,0,py,px]==1, (i, j, pose[i,j])
    return seen

def outside(point, x):
    "Whether `point` lies outside the pictures `x`"
    px, py = point
    return not (0<=px<x.shape[-1] and 0<=py<x.shape[-2])

def erased(point, x, mask):
    "Whether picture `x` and `mask` are empty at `point`"
    px, py = map(int, point)
    return x[0,py,px]==0 and mask[0,py,px]==0

@pytest.mark.parametrize('name', TRANSFORMS)
@quick
@given(people(), st.integers(0,10**6))
def test_dot_stays_under_its_joint(name, batch, seed):
    x, mask, pose = batch
    nx, nmask, npose, dice = apply(TRANSFORMS[name](.7, seed), x, mask, pose)
    assert nx.shape==x.shape and nmask.shape==mask.shape and nmask.dtype==mask.dtype
    assert set(nmask.unique().tolist())<={0,1}
    seen = dot_under_joint(nx, nmask, npose)
    for i in range(N):
        j = (pose[i,:,2]>0).nonzero().item()
        k = JOINT_MIRROR[j].item() if name=='flip' and dice[i] else j
        assert seen[i].nonzero().flatten().tolist() in ([], [k])    # left became right exactly if mirrored
        if seen[i].any(): continue
        point = npose[i,k,:2].tolist()                              # a lost joint is outside, or erased
        assert name!='flip' and (outside(point, x) or name=='erase' and erased(point, nx[i], nmask[i]))

@quick
@given(people(), st.lists(st.sampled_from(sorted(TRANSFORMS)), min_size=2, max_size=6), st.integers(0,10**6))
def test_any_chain(batch, names, seed):
    x, mask, pose = batch
    for k, name in enumerate(names):
        x, mask, pose, _ = apply(TRANSFORMS[name](.7, seed+k), x, mask, pose)
    seen = pose[...,2]>0
    for i,j in seen.nonzero().tolist():
        px, py = int(pose[i,j,0]), int(pose[i,j,1])
        assert x[i,0,py,px] > .35, (names, x[i,0,py,px])    # each resampling blurs a little
    assert (seen.sum(1)<=1).all()

@pytest.mark.parametrize('name', TRANSFORMS)
@quick
@given(people(), st.integers(0,10**6))
def test_mask_goes_where_its_picture_goes(name, batch, seed):
    _, mask, pose = batch
    t = TRANSFORMS[name](.7, seed)
    dice = t.draw(N, *mask.shape[-2:])
    differ = (t.paint(mask.float(), dice) > .5) != (t.paint(mask, dice) > 0)
    assert differ.float().mean() < .01    # at most along the rim, where a float is between

@quick
@given(people(), st.tuples(st.integers(40,200), st.integers(30,120)))
def test_resize(batch, size):
    x, mask, pose = batch
    for i in range(N):
        im = Image.fromarray((x[i,0]*255).byte().numpy()).convert('RGB')
        y, p = ResizePerson(size)((im, TensorPose(pose[i])))
        j = (pose[i,:,2]>0).nonzero().item()
        px, py = int(p[j,0]), int(p[j,1])
        window = y[max(0,py-2):py+3, max(0,px-2):px+3, 0].float()
        assert window.max() >= .85*y[...,0].max(), (size, i)    # the brightest spot, within two pixels

@quick
@given(people(), st.sampled_from([1., 3., 10.]))
def test_mirror_of_the_hint(batch, scale):
    """Flip joints and draw, or draw and flip: the same maps, left and right exchanged; nothing of `seen` and `person`
    hangs on the scale"""
    x, _, pose = batch
    H, W = x.shape[-2:]
    pose[...,:2] += torch.rand(N,17,2)
    pose[...,2] = torch.rand(N,17)
    one, other = (draw_hint(p, (16,8), (H,W), scale=scale) for p in (pose, flip_joints(pose, W)))
    assert torch.allclose(other.parts, one.parts[:,MIRROR].flip(-1), atol=1e-5)
    assert torch.allclose(other.seen, one.seen[:,MIRROR], atol=1e-5)
    assert torch.allclose(other.person, one.person.flip(-1), atol=1e-6)
    ten = draw_hint(pose, (16,8), (H,W))
    assert torch.equal(one.seen, ten.seen) and torch.equal(one.person, ten.person)
    assert ((0<=one.seen) & (one.seen<=1)).all() and torch.allclose(one.person.sum((1,2)), torch.ones(N), atol=1e-5)

def part_of(joint):
    "The part that owns `joint`"
    return next(k for k,joints in enumerate(PARTS.values()) if joint in joints)

def flip_and_shift(batch, seed):
    "The batch, mirrored by chance and shifted"
    for t in (FlipPerson(.5, seed), ShiftPerson((9,7), seed)):
        *batch, _ = apply(t, *batch)
    return batch

@quick
@given(people(), st.integers(0,10**6))
def test_parts_follow_the_picture(batch, seed):
    "The brightest cell of the part that owns the joint is the cell in which the dot is now; only that part was seen"
    x, _, pose = flip_and_shift(batch, seed)
    H, W = x.shape[-2:]
    _, hint = DrawHint((16,8), (H,W), .75, 10., ([0.]*3, [1.]*3))((x.expand(-1,3,-1,-1), pose))
    for i,j in (pose[...,2]>0).nonzero().tolist():
        k = part_of(j)
        row, col = divmod(hint.parts[i,k].argmax().item(), 8)
        assert abs(row - pose[i,j,1]*16/H + .5) <= .51 and abs(col - pose[i,j,0]*8/W + .5) <= .51
        assert hint.seen[i].argmax()==k and hint.person[i,row,col]==hint.person[i].max()

@quick
@given(st.integers(0,10**6))
def test_same_seed_same_draw_other_seed_other_draw(seed):
    for name,make in TRANSFORMS.items():
        a, b, c = (make(.5, s).draw(64, 128, 64).float() for s in (seed, seed, seed+1))
        assert torch.equal(a, b) and not torch.equal(a, c), name

def test_validation_is_left_alone():
    for make in TRANSFORMS.values():
        x, pose = torch.rand(3,3,40,30), torch.rand(3,17,3)
        nx, npose = make(1., 0)((x, pose), split_idx=1)
        assert torch.equal(nx, x) and torch.equal(npose, pose)

def test_generators_go_into_a_packet_and_go_on_there():
    for name,make in TRANSFORMS.items():
        one = make(.5, 3)
        one.draw(5, 128, 64)
        other = pickle.loads(pickle.dumps(one))
        assert torch.equal(one.draw(9, 128, 64).float(), other.draw(9, 128, 64).float()), name

@pytest.fixture(scope='module')
def crowd(tmp_path_factory):
    "Four training people, two test people, four pictures each by two cameras, with poses"
    folder, rng, rows = tmp_path_factory.mktemp('crowd'), np.random.default_rng(0), []
    for pid in range(1,7):
        for shot in range(4):
            fn = folder/f'{pid:04d}_c{shot%2}_{shot}.png'
            Image.fromarray(rng.integers(0, 256, (64,32,3), dtype=np.uint8)).save(fn)
            test_role = 'gallery' if shot else 'query'
            role = 'train' if pid<5 else test_role
            rows.append(dict(fn=str(fn), pid=pid, camid=shot%2, role=role, texture=f'{pid}-{shot}'))
    joints = np.concatenate([rng.uniform(2, [30,62], (24,17,2)), np.ones((24,17,1))], -1).astype(np.float32)
    return pd.DataFrame(rows), joints

def number(row): return torch.tensor([int(o) for o in row['texture'].split('-')])

def test_targets_are_never_flipped_and_follow_their_pictures(crowd):
    "With every picture mirrored, the target is still the row's own: the same people and the same numbers"
    df, joints = crowd
    off = dict(pad=0, erase=0, bs=8, per_id=4, size=(64,32), seed=0, targets=[number])
    flipped, plain = (next(iter(reid_dls(df, joints, flip=f, **off).train)) for f in (1., 0.))
    assert torch.allclose(flipped[0].flip(-1), plain[0], atol=1e-5) and torch.equal(flipped[2], plain[2])
    assert torch.equal(flipped[4], plain[4]) and torch.equal(flipped[4][:,0], flipped[2][:,1])
    assert len({tuple(o) for o in flipped[4].tolist()})==8    # eight different pictures

@pytest.mark.parametrize('method', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_same_batches_with_workers(crowd, method):
    "Also where processes start afresh: generators and transforms must reach them"
    df, joints = crowd
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        multiprocessing.set_start_method(method, force=True)
        kw = dict(bs=8, per_id=4, size=(64,32), seed=0, targets=[number])
        one, two = (reid_dls(df, joints, num_workers=n, **kw) for n in (0,1))
        for a,b in zip(one.train, two.train, strict=True):
            for u,v in zip((a[0], *a[1], *a[2:]), (b[0], *b[1], *b[2:]), strict=True):
                assert torch.equal(u, v)
    finally:
        multiprocessing.set_start_method(before, force=True)

def plain_pictures(folder, n, size):
    "A table of `n` queries whose pictures are nothing but magenta"
    files = [str(folder/f'{i}.png') for i in range(n)]
    for file in files:
        Image.fromarray(np.full((*size,3), [255,0,255], np.uint8)).save(file)
    return pd.DataFrame(dict(fn=files, pid=range(n), camid=[0,1]*(n//2), role='query', joints=range(n),
                             occluded=False, query_set='', mask='', texture=''))

def pasted_over_these_joints(im, hid, joints, pose):
    "The joints under `hid` lost their confidence, the others kept it, and the picture changed"
    under = np.array([hid[int(y),int(x)] for x,y in joints[:,:2]])
    assert np.array_equal(pose[:,:2], joints[:,:2])
    assert np.array_equal(pose[:,2]<=.05, under) and (pose[~under,2]==1).all()
    change = np.abs(im-[255,0,255]).sum(-1)
    assert change[hid].mean() > 3*change[~hid].mean()    # the picture changed where the mask says so

@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0,10**6))
def test_pasted_obstacle_hides_exactly_the_joints_under_it(tmp_path_factory, seed):
    from pgflkd.datasets import paste_obstacles
    folder, rng = tmp_path_factory.mktemp('paste'), np.random.default_rng(seed)
    n, (H,W) = 6, (96,48)
    joints = np.concatenate([rng.uniform(2, [W-2,H-2], (n,17,2)), np.ones((n,17,1))], -1).astype(np.float32)
    out, new = paste_obstacles(plain_pictures(folder, n, (H,W)), seed, folder/'o', joints)
    for k in range(n):
        im = np.asarray(Image.open(out.fn.iloc[n+k]).convert('RGB')).astype(int)
        hid = np.asarray(Image.open(out['mask'].iloc[n+k]))==255
        pasted_over_these_joints(im, hid, joints[k], new[n+k])
        assert np.array_equal(new[k], joints[k])         # the original keeps its pose
