"""A dot painted under a joint stays under it, whatever is done to the picture; masks go where their pictures go; textures go nowhere."""
import numpy as np, pytest, torch
from PIL import Image
hypothesis = pytest.importorskip('hypothesis', reason='needs hypothesis (dev requirements)')
from hypothesis import HealthCheck, given, settings, strategies as st
from pgflkd import warp
from pgflkd.data import DrawParts, ErasePerson, FlipPerson, NormalizePerson, ResizePerson, ShiftPerson
from pgflkd.pose import JOINT_MIRROR, MIRROR, TensorPose, draw_heatmaps, flip_joints, merge_parts, part_attention

WARPS = dict(rotate=lambda p,seed: warp.RotatePerson(p, 30, seed), perspective=lambda p,seed: warp.PerspectivePerson(p, .15, seed))
TRANSFORMS = dict(flip=lambda p,seed: FlipPerson(p, seed), shift=lambda p,seed: ShiftPerson((9,7), seed), erase=lambda p,seed: ErasePerson(p, seed), **WARPS)
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
N = 4

@st.composite
def people(draw):
    "Pictures (N,1,H,W), each with a soft dot; masks (N,1,H,W) of a disc about it; poses (N,17,3) whose only joint is there"
    H, W = draw(st.integers(48,160)), draw(st.integers(32,100))
    x, mask, pose = torch.zeros(N,1,H,W), torch.zeros(N,1,H,W, dtype=torch.uint8), torch.zeros(N,17,3)
    ys, xs = torch.arange(H)[:,None]+.5, torch.arange(W)+.5
    for i in range(N):
        j, u, v = draw(st.integers(0,16)), draw(st.floats(.08,.92)), draw(st.floats(.08,.92))
        d2 = (ys-v*H)**2+(xs-u*W)**2
        x[i,0], mask[i,0], pose[i,j] = torch.exp(-d2/8), (d2<16).byte(), torch.tensor([u*W, v*H, 1.])
    return x, mask, pose

def apply(t, x, mask, pose):
    "All three through one draw of `t`"
    H, W = x.shape[-2:]; dice = t.draw(len(x), H, W)
    return t.paint(x, dice), t.paint(mask, dice), t.move(pose, dice, H, W), dice

def dot_under_joint(x, mask, pose, least=.6):
    "Each picture's only joint with a confidence lies on its dot and in its mask; a joint that lost its confidence has no dot there, or is outside"
    (H,W), seen = x.shape[-2:], pose[...,2]>0
    assert (seen.sum(1)<=1).all()
    for i in range(len(x)):
        for j in seen[i].nonzero().flatten().tolist():
            px, py = int(pose[i,j,0]), int(pose[i,j,1]); assert 0<=px<W and 0<=py<H
            assert x[i,0,py,px] > least, (i, j, pose[i,j], x[i,0,py,px]); assert mask[i,0,py,px]==1, (i, j, pose[i,j])
    return seen

@pytest.mark.parametrize('name', TRANSFORMS)
@quick
@given(people(), st.integers(0,10**6))
def test_dot_stays_under_its_joint(name, batch, seed):
    x, mask, pose = batch; nx, nmask, npose, dice = apply(TRANSFORMS[name](.7, seed), x, mask, pose)
    assert nx.shape==x.shape and nmask.shape==mask.shape and nmask.dtype==mask.dtype and set(nmask.unique().tolist())<={0,1}
    seen = dot_under_joint(nx, nmask, npose)
    for i in range(N):
        j = (pose[i,:,2]>0).nonzero().item(); k = JOINT_MIRROR[j].item() if name=='flip' and dice[i] else j
        assert seen[i].nonzero().flatten().tolist() in ([], [k])                    # left became right exactly if mirrored
        if not seen[i].any():
            px, py = npose[i,k,:2].tolist(); inside = 0<=px<x.shape[-1] and 0<=py<x.shape[-2]
            assert name!='flip' and (not inside or (name=='erase' and nx[i,0,int(py),int(px)]==0 and nmask[i,0,int(py),int(px)]==0))

@quick
@given(people(), st.lists(st.sampled_from(sorted(TRANSFORMS)), min_size=2, max_size=6), st.integers(0,10**6))
def test_any_chain(batch, names, seed):
    x, mask, pose = batch
    for k,name in enumerate(names): x, mask, pose, _ = apply(TRANSFORMS[name](.7, seed+k), x, mask, pose)
    seen = (pose[...,2]>0)
    for i,j in seen.nonzero().tolist():
        px, py = int(pose[i,j,0]), int(pose[i,j,1]); assert x[i,0,py,px] > .35, (names, x[i,0,py,px])     # each resampling blurs a little
    assert (seen.sum(1)<=1).all()

@pytest.mark.parametrize('name', TRANSFORMS)
@quick
@given(people(), st.integers(0,10**6))
def test_mask_goes_where_its_picture_goes(name, batch, seed):
    _, mask, pose = batch; t = TRANSFORMS[name](.7, seed); H, W = mask.shape[-2:]; dice = t.draw(N, H, W)
    differ = (t.paint(mask.float(), dice) > .5) != (t.paint(mask, dice) > 0)
    assert differ.float().mean() < .01                                              # at most along the rim, where a float is between

@quick
@given(people(), st.tuples(st.integers(40,200), st.integers(30,120)))
def test_resize(batch, size):
    x, mask, pose = batch
    for i in range(N):
        im = Image.fromarray((x[i,0]*255).byte().numpy()).convert('RGB'); y, p = ResizePerson(size)((im, TensorPose(pose[i])))
        j = (pose[i,:,2]>0).nonzero().item(); px, py = int(p[j,0]), int(p[j,1])
        window = y[max(0,py-2):py+3, max(0,px-2):px+3, 0].float(); assert window.max() >= .85*y[...,0].max(), (size, i)   # the brightest spot, within two pixels

@quick
@given(people())
def test_mirror_of_parts(batch):
    "Flip joints and draw, or draw and flip: the same maps, left and right exchanged"
    _, _, pose = batch; pose[...,:2] += torch.rand(N,17,2); pose[...,2] = .5; H, W = batch[0].shape[-2:]
    draw = lambda p: part_attention(merge_parts(draw_heatmaps(p, (16,8), (H,W))))
    assert torch.allclose(draw(flip_joints(pose, W)), draw(pose)[:,MIRROR].flip(-1), atol=1e-5)

@quick
@given(people(), st.integers(0,10**6))
def test_parts_follow_the_picture(batch, seed):
    "The brightest cell of the part that owns the joint is the cell in which the dot is now"
    x, mask, pose = batch; H, W = x.shape[-2:]; x, mask, pose, _ = apply(FlipPerson(.5, seed), x, mask, pose); x, mask, pose, _ = apply(ShiftPerson((9,7), seed), x, mask, pose)
    _, parts = DrawParts((16,8), (H,W), .75, 10., ([0.]*3, [1.]*3))((x.expand(-1,3,-1,-1), pose))
    for i,j in (pose[...,2]>0).nonzero().tolist():
        k = next(k for k,o in enumerate(data_parts()) if j in o); cell = parts[i,k].argmax().item()
        assert abs(cell//8 - pose[i,j,1]*16/H + .5) <= .51 and abs(cell%8 - pose[i,j,0]*8/W + .5) <= .51

def data_parts():
    from pgflkd.pose import PARTS
    return PARTS.values()

@quick
@given(st.integers(0,10**6))
def test_same_seed_same_draw_other_seed_other_draw(seed):
    for name,make in TRANSFORMS.items():
        a, b, c = (make(.5, s).draw(64, 128, 64).float() for s in (seed, seed, seed+1))
        assert torch.equal(a, b) and not torch.equal(a, c), name

def test_validation_is_left_alone():
    for make in TRANSFORMS.values():
        x, pose = torch.rand(3,3,40,30), torch.rand(3,17,3); nx, npose = make(1., 0)((x, pose), split_idx=1)
        assert torch.equal(nx, x) and torch.equal(npose, pose)

def test_textures_are_never_flipped(tmp_path):
    "With every picture mirrored, the painter's target is the file itself"
    from types import SimpleNamespace
    from pgflkd.data import reid_dls
    from pgflkd.synthetic import render_world, world_joints
    from pgflkd.texture import PaintTarget, Textures, open_texture
    df = render_world('tiny', out=tmp_path/'w', seed=0, progress=False); off = dict(pad=0, erase=0, bs=16, per_id=4, seed=0)
    dls, plain = (reid_dls(df, world_joints(df), flip=f, **off) for f in (1., 0.))
    paint = PaintTarget(Textures.from_table(dls.train_df, 32)); learn = paint.learn = SimpleNamespace(dls=dls, training=True, loss_func=SimpleNamespace(), iter=0)
    paint.before_fit(); a, b = next(iter(dls.train)), next(iter(plain.train)); learn.yb = a[2:]; paint.before_batch()
    assert torch.allclose(a[0].flip(-1), b[0], atol=1e-5) and torch.equal(a[2], b[2])                 # the same people, mirrored
    files = dls.train_df.drop_duplicates('pid').set_index('pid').texture
    for pid,target in zip(a[2][:,1].tolist(), learn.loss_func.target):
        truth = open_texture(files[pid], 32).float()/127.5-1
        assert torch.equal(target, truth) and not torch.equal(target.flip(-1), truth)  # the second: a mirrored target would be noticed

@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0,10**6))
def test_pasted_obstacle_hides_exactly_the_joints_under_it(tmp_path_factory, seed):
    import pandas as pd
    from pgflkd.datasets import paste_obstacles
    d, rng = tmp_path_factory.mktemp('paste'), np.random.default_rng(seed); n, (H,W) = 6, (96,48)
    joints = np.concatenate([rng.uniform(2, [W-2,H-2], (n,17,2)), np.ones((n,17,1))], -1).astype(np.float32); fns = []
    for i in range(n): fns.append(str(d/f'{i}.png')); Image.fromarray(np.full((H,W,3), [255,0,255], np.uint8)).save(fns[-1])
    df = pd.DataFrame(dict(fn=fns, pid=range(n), camid=[0,1]*3, role='query', joints=range(n), occluded=False, query_set='', mask='', texture=''))
    out, new = paste_obstacles(df, seed, d/'o', joints)
    for k in range(n):
        im, hid = np.asarray(Image.open(out.fn.iloc[n+k]).convert('RGB')).astype(int), np.asarray(Image.open(out['mask'].iloc[n+k]))==255
        under = np.array([hid[int(y),int(x)] for x,y in joints[k,:,:2]])
        assert np.array_equal(new[n+k,:,:2], joints[k,:,:2]) and np.array_equal(new[n+k,:,2]<=.05, under) and (new[n+k,~under,2]==1).all()
        change = np.abs(im-[255,0,255]).sum(-1)
        assert change[hid].mean() > 3*change[~hid].mean()                # the picture changed where the mask says so
        new_joints_only = np.array_equal(new[k], joints[k]); assert new_joints_only    # the original keeps its pose
