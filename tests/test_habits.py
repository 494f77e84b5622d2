"What users of fastai do without thinking: each habit works, or one line says what to do instead."
import multiprocessing as mp
import sys
import warnings
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import load_learner, noop, set_seed
from fastai.callback.all import (CSVLogger, CutMix, EarlyStoppingCallback, GradientAccumulation, MixUp,
                                 ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback)
from fastai.callback.core import Callback, FetchPredsCallback
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fastai.vision.all import Brightness, PILImage, Transform, aug_transforms
from PIL import Image

from pgflkd.augment import RotatePerson
from pgflkd.baseline import Baseline, FeatureLoss, reid_body
from pgflkd.callbacks import CoveredCopy, query_sets, reid_metrics
from pgflkd.checkpoint import NoValidation, RunLog
from pgflkd.commands.ablate import gain_table
from pgflkd.commands.train import _rank_start
from pgflkd.data import (People, ReIDDataLoaders, WatchRanking, reid_dls, row_joints, show_results, tensorboard_log,
                         wandb_process)
from pgflkd.deploy import export, load_embedder, load_student
from pgflkd.diagnose import _looks
from pgflkd.errors import InputError
from pgflkd.foreground import Foreground
from pgflkd.interpret import RetrievalInterpretation, feature_response, show_ranking, spread_queries
from pgflkd.keypoints import KeypointStore
from pgflkd.learner import PAPER, QUICK, ReIDAdam, baseline_learner, pgflkd_learner, where_learner
from pgflkd.metrics import evaluate_features, pairwise_distance
from pgflkd.occlude import HidePerson, paste_obstacles
from pgflkd.pose import draw_hint
from pgflkd.precision import precision_of
from pgflkd.protocols import benchmark_table, mean_queries, single_shot
from pgflkd.readers.folders import validation_cut
from pgflkd.records import add_rows
from pgflkd.rerank import k_reciprocal, reciprocal_blocks
from pgflkd.synthetic import render_world, world_joints
from pgflkd.where import AttentionPool, OnPerson, Prior

@pytest.fixture(scope='module')
def df(): return render_world('tiny', progress=False)

def loaders(df, **kwargs):
    return reid_dls(df, **{**dict(joints=world_joints(df), size=(64, 32), bs=16, per_id=4, seed=0), **kwargs})

def learner(df, dls=None, cbs=(), **kwargs):
    "A small learner with the callback that every learner of this library has, silent"
    dls = dls or loaders(df)
    learn = baseline_learner(dls, 'shufflenet_v2_x0_5', weights=None, recipe=QUICK, cbs=cbs, **kwargs)
    if not hasattr(learn, 'watch_ranking'): learn.add_cb(WatchRanking())
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__=='ProgressCallback'])
    learn.logger = noop
    return learn

@pytest.fixture(scope='module')
def trained(df, tmp_path_factory):
    learn = learner(df, loaders(df, path=tmp_path_factory.mktemp('learner')))
    learn.fit(1, 1e-3)
    return learn

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

def test_show_batch(trained):
    trained.dls.show_batch(max_n=4)
    trained.dls.valid.show_batch(max_n=4)

def test_lr_find(trained, tmp_path):
    trained.path = tmp_path
    assert trained.lr_find(num_it=4, show_plot=False).valley>0

def test_fits(df):
    "One-cycle, flat-cosine, fine_tune, slices, freeze: the frozen body stays"
    learn = learner(df)
    conv = learn.model.body[0][0].weight
    start = conv.detach().clone()
    learn.freeze()
    learn.fit_one_cycle(1, 1e-3)
    assert torch.equal(conv, start)
    learn.unfreeze()
    learn.fit_flat_cos(1, slice(1e-4, 1e-3))
    assert not torch.equal(conv, start)

def test_show_results(df, trained):
    "Each row a query and those of the batch most like it; green the same person; nobody through the query's own camera"
    trained.show_results(max_n=3)
    axs = plt.gcf().axes
    assert len(axs)==3*6 and axs[0].get_title().startswith('person ')
    colours = {ax.title.get_color() for row in range(3) for ax in axs[6*row+1:6*row+6]}
    assert colours<={'green', 'red'}

def test_strips_by_hand():
    "The nearest of another camera comes first; a picture of the same person and camera is no answer"
    pid, camid = torch.tensor([[-1, 5], [-1, 5], [-1, 5], [-1, 6]]), torch.tensor([0, 0, 1, 1])
    f = F.normalize(torch.tensor([[1., 0], [1, 0], [.9, .4], [0, 1]]))
    x = People((torch.rand(4, 3, 8, 4), torch.zeros(4, 17, 3), pid, camid))
    axs = show_results(x, People((x[0], x[1], f)), None, None, max_n=1)
    assert [ax.get_title() for ax in axs[:3]]==['person 5', f'{f[0]@f[2]:.2f}', '0.00']
    assert [ax.title.get_color() for ax in axs[1:3]]==['green', 'red']

def test_predict(df, trained):
    "A path, a Path, a PIL picture and a row give the features of the picture, the same as those of the validation"
    i = 3
    fn = trained.dls.test_df.fn[i]
    whole, _ = trained.get_preds()
    for item in (fn, PILImage.create(fn), dict(fn=fn)):
        *_, f = trained.predict(item)
        torch.testing.assert_close(f, whole[i], atol=1e-4, rtol=1e-4)                    # float32, a batch of one

def test_test_dl(df, trained):
    "Paths or a table, in their order; labels if the table has them; results of nobody known are refused"
    five = trained.dls.test_df[:5]
    whole, _ = trained.get_preds()
    for items in (five.fn.tolist(), five):
        f, _ = trained.get_preds(dl=trained.dls.test_dl(items))
        torch.testing.assert_close(f, whole[:5], atol=1e-4, rtol=1e-4)
    assert trained.dls.test_dl(five, with_labels=True).one_batch()[2][:, 1].tolist()==five.pid.tolist()
    with pytest.raises(InputError, match='nobody says who these are'):
        trained.show_results(dl=trained.dls.test_dl(five.fn.tolist()))
    with pytest.raises(InputError, match='a table with the column fn'): trained.dls.test_dl(five[['pid']])
    for items in (five.fn.tolist(), five[['fn', 'pid']]):
        with pytest.raises(InputError, match='give a table with pid'): trained.dls.test_dl(items, with_labels=True)

def test_poses_in_rows(trained):
    "Rows that bring their poses have them"
    poses = [dict(fn=fn, joints=np.full((17, 3), 9.)) for fn in trained.dls.test_df.fn[:5]]
    assert trained.dls.test_dl(poses).one_batch()[1][0].joints.max()>1
    with pytest.raises(InputError, match='the column joints holds poses, too'):
        row_joints(pd.DataFrame(poses), np.zeros((5, 17, 3)))

def test_export(df, trained):
    "`learn.export`, `load_learner`, and the loaded one predicts the same"
    trained.export('learner.pkl')
    again = load_learner(trained.path/'learner.pkl')
    fn = trained.dls.test_df.fn[7]
    torch.testing.assert_close(again.predict(fn)[-1], trained.predict(fn)[-1])
    with pytest.raises(InputError, match='give'): again.evaluate()                     # it knows no table

def test_export_of_a_loaded_learner(df, tmp_path):
    "`load_learner` knows size and stats of its pictures; the file had ImageNet's"
    learner(df, loaders(df, stats=([.5]*3, [.2]*3), path=tmp_path)).export('learner.pkl')
    again = load_learner(tmp_path/'learner.pkl')
    card = load_embedder(again.save_student(tmp_path/'again.safetensors')).card
    assert card['size']==[64, 32] and card['stats']==[[.5]*3, [.2]*3]

def test_transforms_that_no_file_holds(df, tmp_path):
    "A transform of test pictures, too, is lost in a file and in a table of it; one of training pictures is not missed"
    class Dark(Transform):
        def encodes(self, im:PILImage): return PILImage.create((np.asarray(im)*.3).astype(np.uint8))
    learn = learner(df, loaders(df, item_tfms=Dark()))
    for asked in (lambda: learn.save_student(tmp_path/'a.safetensors'), lambda: benchmark_table(learn, df)):
        with pytest.raises(InputError, match='Dark changes test pictures, too, and is in no file'): asked()
    Dark.split_idx = 0
    learn = learner(df, loaders(df, item_tfms=Dark(), batch_tfms=Brightness(.8)))
    f = load_embedder(learn.save_student(tmp_path/'a.safetensors'))(learn.dls.test_df.fn[:5].tolist())
    torch.testing.assert_close(f, F.normalize(learn.get_preds()[0][:5]), atol=1e-4, rtol=1e-4)

def test_student_of_ones_own(df):
    "A student with another feature than `Baseline` is not measured as one"
    class Largest(Baseline):
        def forward(self, x, hint=None):
            return super().forward(x, hint) if self.training else self.body(x).amax((2, 3))
    learn = learner(df, student=Largest)
    with pytest.raises(InputError, match='a Largest deploys another feature'): benchmark_table(learn, df)
    assert len(benchmark_table(learn.get_preds()[0], df))==3

@pytest.mark.skipif(not find_spec('timm'), reason='timm is not installed')
def test_stats_of_timm(df, monkeypatch):
    "Weights that want pictures in [-1,1] do not get those less ImageNet's mean"
    import timm
    built = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name, weights, **kwargs: built(name, False, **kwargs))
    kind = dict(arch='vit_tiny_patch16_224', weights='imagenet', recipe=QUICK)
    for stats, start in (([[.5]*3]*2, 'imagenet'), (([.485, .456, .406], [.229, .224, .225]), None)):
        baseline_learner(loaders(df, stride=16, stats=stats), **kind | dict(weights=start))
    vit = replace(QUICK, arch='vit_tiny_patch16_224', weights='imagenet')        # as the commands have it
    assert vit.data['stats']==((.5,)*3, (.5,)*3) and 'stats' not in replace(vit, weights=None).data
    assert 'stats' not in QUICK.data and 'stats' not in replace(QUICK, weights='imagenet').data
    with pytest.raises(InputError, match=r'vit_tiny_patch16_224 want pictures with stats=\(\(0.5, 0.5, 0.5'):
        baseline_learner(loaders(df, stride=16), **kind)

def test_modes_stay():
    "A body that is held in evaluation mode is found so after somebody has looked"
    model = Baseline(reid_body('shufflenet_v2_x0_5', stride=8), 3).train()
    model.body.eval()
    before = [m.training for m in model.modules()]
    feature_response(model, torch.rand(2, 3, 64, 32))
    assert [m.training for m in model.modules()]==before and True in before

def test_metric_beside_rerank():
    with pytest.raises(InputError, match="metric 'euclidean': rerank has a distance of its own"):
        evaluate_features(torch.eye(3), torch.eye(3), [1, 2, 3], [1, 2, 3], [0]*3, [1]*3, metric='euclidean',
                          rerank=reciprocal_blocks)

def test_rerank_at_once():
    "All distances at once or in blocks: the same ranking"
    q, g = torch.randn(6, 8), torch.randn(40, 8)
    ids = [1, 2, 3]*2, [*range(1, 5)]*10, [0]*6, [1]*40
    ranked = [evaluate_features(q, g, *ids, rerank=how).ap for how in (reciprocal_blocks, k_reciprocal)]
    np.testing.assert_array_equal(*ranked)

def test_train_metrics(df):
    "fastai's `train_metrics` finds no ranking in training, and not that of the epoch before"
    learn = learner(df)
    learn.recorder.train_metrics = True
    learn.fit(2, 1e-3)
    names = learn.recorder.metric_names[1:]
    at = [i for i, name in enumerate(names) if name=='train_mAP']
    assert at and all(np.isnan(row[at[0]]) for row in learn.recorder.values)

def test_attend_of_ones_own(df):
    "What can learn where people are is taught it, with the weight that was said; a weight for what cannot is refused"
    how = dict(arch='shufflenet_v2_x0_5', weights=None, recipe=QUICK)
    body = reid_body('shufflenet_v2_x0_5')
    for weight, told in ((None, 1.), (2., 2.)):
        learn = where_learner(loaders(df), attend=AttentionPool(body.n_features), weight=weight, **how)
        assert [o.weight for o in learn.loss_func.list if o.name=='where']==[told]
    with pytest.raises(InputError, match='nothing to learn; leave weight out'):
        where_learner(loaders(df), attend=Prior(torch.ones(8, 4)), weight=2., **how)

def test_start_from_a_file(trained, tmp_path):
    "pgflkd_train ranks the student in a file with the neck that it has, as it does the shipped one"
    files, said = ['student', str(export(load_student('student'), tmp_path/'mine.safetensors'))], []
    clock = SimpleNamespace(watch=lambda *args: None, say=said.append)
    for file in files:
        _rank_start(trained.dls, SimpleNamespace(models=['baseline'], how=replace(QUICK, weights=file)), clock)
    first, second = (line.split(': ', 1)[1] for line in said)
    assert first==second

def test_tta_validate(trained):
    assert trained.tta(n=1)[0].shape[0]==len(trained.dls.test_df)
    loss, mAP, rank1 = trained.validate()
    assert loss!=loss and 0<mAP<=1 and 0<=rank1<=1                                     # nan: people are new
    assert trained.get_preds(ds_idx=0)[0].shape[0]==len(trained.dls.train_df)

def test_summary(trained): assert 'Total params' in str(trained.summary())

def test_default_monitors(df, tmp_path, capsys):
    "Trackers with their default monitor watch mAP and say so: the best epoch is kept, and not an old file"
    learn = learner(df, loaders(df, path=tmp_path))
    (tmp_path/'models').mkdir()
    torch.save({'an': 'old file'}, tmp_path/'models/model.pth')
    seen = []
    class Worse(type(learn.rank_gallery)):                          # mAP falls: the first epoch is the best
        order, values = 42, [.3, .2, .1]
    ranking = property(lambda self: SimpleNamespace(mAP=Worse.values[len(seen)-1], rank1=0.))
    Worse.ranking = ranking
    learn.rank_gallery.__class__ = Worse
    best = {}
    class Note(SaveModelCallback):
        def after_epoch(self):
            seen.append(self.epoch)
            super().after_epoch()
            if self.new_best: best.update({k: v.clone() for k, v in self.model.state_dict().items()})
    learn.fit(3, 1e-3, cbs=[Note(), EarlyStoppingCallback(patience=2), ReduceLROnPlateau(patience=5)])
    said = capsys.readouterr().out
    for name in ('Note', 'EarlyStoppingCallback', 'ReduceLROnPlateau'):
        assert f'{name}: people in validation have no' in said
    assert seen==[0, 1, 2] and best
    for name, value in learn.model.state_dict().items():
        assert torch.equal(value, best[name]), name

def test_best_epoch_of_a_cut(df, tmp_path):
    "SaveModelCallback chooses the epoch among training people; the test people are asked once, at the end"
    cut = validation_cut(df)
    how = dict(size=(64, 32), bs=16, per_id=4, path=tmp_path)
    dls = reid_dls(cut.drop(columns='joints'), world_joints(df)[cut.index], **how)
    assert set(dls.test_df.fn)<=set(df.fn[df.role=='train']) and not set(dls.test_df.pid) & set(dls.train_df.pid)
    learn = learner(df, dls)
    learn.fit(1, 1e-3, cbs=SaveModelCallback())
    assert (tmp_path/'models/model.pth').exists()
    assert benchmark_table(learn, df).query_set.nunique()==df.query_set[df.role=='query'].nunique()

def test_loggers_leave_the_ranking(df):
    "TensorBoard and W&B look at predictions between validation and metrics: mAP is there all the same"
    learn = learner(df)
    for dl in (None, learn.dls.test_dl(learn.dls.test_df[:9], with_labels=True)):
        look = FetchPredsCallback(dl=dl)
        learn.fit(1, 1e-3, cbs=look)
        assert 0<learn.recorder.values[-1][2]<=1 and len(look.preds[0])==(9 if dl else len(learn.dls.test_df))

def test_other_callbacks(df, tmp_path):
    learn = learner(df, loaders(df, path=tmp_path), cbs=[CSVLogger(), GradientAccumulation(8)])
    learn.fit(1, 1e-3)
    assert 'mAP' in pd.read_csv(tmp_path/'history.csv')

def test_terminate_on_nan(df):
    "The loss of validation is nan, always: it ends no training; that of a training batch does"
    learn = learner(df)
    learn.fit(2, 1e-3, cbs=TerminateOnNaNCallback())
    assert len(learn.recorder.values)==2 and 0<learn.recorder.values[-1][2]<=1
    learn.model.neck_g.fc.weight.data[:] = torch.nan
    learn.fit(2, 1e-3, cbs=TerminateOnNaNCallback())
    assert not learn.recorder.values

def test_lr_find_leaves_no_trace(df, tmp_path):
    "`lr_find` over several epochs: no row in the log of the terms, no checkpoint, no epoch that counts as trained"
    learn = learner(df, loaders(df, path=tmp_path), cbs=RunLog(tmp_path/'run.pth', 'tiny', 0))
    learn.lr_find(num_it=20, show_plot=False, stop_div=False)
    assert len(learn.dls.train)<10 and not learn.log_terms.history
    assert not (tmp_path/'run.pth').exists() and learn.run_log.first==0
    learn.fit(1, 1e-3)
    assert len(learn.log_terms.history)==learn.run_log.first==1 and (tmp_path/'run.pth').exists()

class Steps(Callback):
    "Write down after which batches the weights moved, and how many pictures fastai counted"
    order = 30
    def before_fit(self): self.at, self.pictures = [], []
    def before_step(self): self.pictures.append(len(self.yb[0]))
    def after_step(self): self.at.append(self.train_iter)

@pytest.mark.parametrize('cbs', [[], [CoveredCopy(HidePerson(1.))]], ids=['plain', 'covered copies'])
def test_accumulated_pictures(df, cbs):
    "16 pictures a step are two batches of 8, also where each picture has a covered copy"
    learn = learner(df, loaders(df, bs=8, per_id=2), cbs=[*cbs, GradientAccumulation(16), Steps()])
    learn.fit(1, 1e-3)
    assert learn.steps.at[:3]==[1, 3, 5] and set(learn.steps.pictures)=={8}

def test_accumulated_and_resumed(df, tmp_path):
    "Nine batches a epoch, two a step: half a step is left at the end of an epoch, and a resumed run has it not"
    def run(name, epochs):
        set_seed(1)
        cbs = [RunLog(tmp_path/name, 'tiny', 0), GradientAccumulation(32)]
        learn = learner(df, cbs=cbs)
        learn.fit(epochs, 1e-3, start_epoch=learn.run_log.resume())
        return learn.model.state_dict()
    whole = run('a', 2)
    run('b', 1)
    assert all(torch.equal(v, whole[k]) for k, v in run('b', 2).items())

def test_precision_that_was_said_last(df):
    "fastai's `to_fp32` takes back what `to_fast` turned on"
    learn = learner(df).to_fast(bf16=True)
    assert precision_of(learn)=='bf16' and precision_of(learn.to_fp32())=='fp32'

def test_misspelt_metric(df):
    with pytest.raises(AttributeError, match="no attribute 'map'"): learner(df, metrics=reid_metrics('map')).validate()

def test_joints_in_other_units(df):
    "Shares of the picture and percents are refused; a joint without a place is not seen; COCO's 2 is certain"
    poses = world_joints(df)
    plain = loaders(df).valid.one_batch()[1].seen
    for wrong, why in ((poses/[64, 128, 1], 'multiply them by width and height'), (poses*[1, 1, 100], 'divide them')):
        with pytest.raises(InputError, match=why): reid_dls(df, wrong, size=(64, 32), bs=16, per_id=4)
    odd = poses.copy()
    odd[:, 5:, 0] = float('nan')
    odd[:, :5, 2] = 2
    seen = reid_dls(df, odd, size=(64, 32), bs=16, per_id=4).valid.one_batch()[1].seen
    assert not seen[:, 1:].any() and seen[:, 0].max()==1 and plain[:, 1:].any()

def test_joints_of_pictures_of_another_size(df):
    "An array of joints is held against its pictures as a store is: twice as large, half as large"
    poses = world_joints(df)
    for factor, why in ((2, 'lie outside of their pictures'), (.4, 'upper left quarter')):
        with pytest.raises(InputError, match=why): loaders(df, joints=poses*[factor, factor, 1])

def test_labels_of_coco(df):
    "COCO's 1 is a covered joint: half as sure as 2, in an array as in a store, and under a pasted obstacle less"
    poses = world_joints(df)
    poses[..., 2] = np.select([poses[..., 2]>.6, poses[..., 2]>.01], [2, 1])
    store = KeypointStore([Path(fn).name for fn in df.fn], poses, [Image.open(fn).size[::-1] for fn in df.fn])
    assert set(store.joints[..., 2].flat)=={0, .5, 1}
    assert np.array_equal(row_joints(df, poses)[..., 2], store.joints[..., 2])
    table, both = paste_obstacles(df, joints=poses)
    assert np.array_equal(row_joints(table, both)[:len(df), :, 2], store.joints[..., 2])
    assert set(np.unique(both[len(df):, :, 2]))<=set(np.float32([0, .05, .5, 1]))

def test_a_column_that_points_into_another_file(df, tmp_path):
    "The column `joints` counts rows of the world's own file; a file of the same pictures in another order is refused"
    names = [Path(fn).name for fn in df.fn]
    sizes = [Image.open(fn).size[::-1] for fn in df.fn]
    KeypointStore(names[::-1], world_joints(df)[::-1], sizes[::-1]).save(tmp_path/'k.npz')
    with pytest.raises(InputError, match='KeypointStore.load'): row_joints(df, tmp_path/'k.npz')
    with pytest.raises(InputError, match='KeypointStore.load'): row_joints(df.drop(columns='joints'), tmp_path/'k.npz')
    assert np.array_equal(row_joints(df, KeypointStore.load(tmp_path/'k.npz')), world_joints(df))
    np.savez(tmp_path/'torn.npz', joints=world_joints(df), names=names[:2])
    with pytest.raises(InputError, match='names of another shape'): row_joints(df, tmp_path/'torn.npz')

def test_optimiser_that_was_said(df):
    "`partial(ReIDAdam, lr=, wd=)` is obeyed, in `fit_recipe`, too"
    learn = learner(df, opt_func=partial(ReIDAdam, lr=1e-2, wd=.5))
    learn.fit_recipe(epochs=1)
    assert learn.opt.hypers[0]['wd']==.5 and max(learn.recorder.lrs)>5e-3

@pytest.mark.parametrize('kwargs,why', [(dict(flip=True), 'p=True: give a probability'),
                                        (dict(erase=50), 'p=50: give a probability'),
                                        (dict(bs=8, per_id=1), 'two pictures of a person in a batch')])
def test_numbers_that_mean_something_else(df, kwargs, why):
    "`flip=True` mirrored every picture; one picture a person leaves the triplet no friend"
    with pytest.raises(InputError, match=why): loaders(df, **kwargs)

def test_unknown_role(df):
    some = df.assign(role=df.role.mask(df.role.eq('gallery') & df.camid.eq(0), 'Gallery'))
    with pytest.raises(InputError, match='role Gallery: the roles are train, query and gallery'): loaders(some)

def test_results_of_one_camera(trained):
    "Where nobody of the batch counts as an answer, no answer is drawn"
    rows = trained.dls.test_df.sort_values(['pid', 'camid'])[:2]
    assert rows.camid.nunique()==1 and rows.pid.nunique()==1
    trained.show_results(dl=trained.dls.test_dl(rows, with_labels=True))
    assert [ax.get_title() for ax in plt.gcf().axes][1:3]==['', '']

def test_grey_strip(trained, tmp_path):
    "A grey photograph is grey in a strip, and one that was turned stands upright, as the network saw it"
    still = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8)[:, None], (1, 20)))
    still.save(tmp_path/'a.png')
    exif = Image.Exif()
    exif[274] = 6
    still.save(tmp_path/'b.jpg', exif=exif)
    row = pd.Series(dict(fn=tmp_path/'a.png', pid=1))
    axs = show_ranking(row, pd.DataFrame(dict(fn=[tmp_path/'b.jpg'], pid=1))).axes
    assert [ax.images[0].get_array().shape for ax in axs]==[(60, 20, 3), (20, 60, 3)]

@pytest.mark.parametrize('cb', [MixUp, CutMix])
def test_mixtures(df, cb):
    with pytest.raises(InputError, match='half of one person and half of another'): learner(df).fit(1, cbs=cb())

def test_metrics(df):
    with pytest.raises(InputError, match="metrics .'accuracy'.: compare classes"): learner(df, metrics=accuracy).fit(1)

@pytest.mark.parametrize('stride', [8, 16])
def test_aligned(df, stride):
    "`aligned` draws joints (stride-1)/2 pixels further down and right, after the mirror; confidence and joints stay"
    plain, moved = (loaders(df, stride=stride, flip=1., aligned=o).one_batch()[1] for o in (False, True))
    joints = moved[0].joints.as_subclass(torch.Tensor)
    assert torch.equal(joints, plain[0].joints.as_subclass(torch.Tensor))
    further = joints + (stride-1)/2*torch.tensor([1., 1., 0.])
    for found, wanted, before in zip(moved, draw_hint(further, (64//stride, 32//stride), (64, 32)), plain):
        assert torch.equal(found.as_subclass(torch.Tensor), wanted.as_subclass(torch.Tensor))
        assert not torch.equal(found.as_subclass(torch.Tensor), before.as_subclass(torch.Tensor))

def test_one_loss(df):
    with pytest.raises(InputError, match='loss_func: the loss is a sum of terms'): learner(df, loss_func=F.mse_loss)

def test_collapse(df, trained):
    "A network that gives everybody the same features is noticed at the first validation; a healthy one is not blamed"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        trained.validate()
    assert not [w for w in said if 'collapsed' in str(w.message)]
    learn = learner(df)
    learn.model.neck_g.bn.weight.data.zero_()
    learn.model.neck_g.bn.bias.data.fill_(1.)
    with pytest.warns(UserWarning, match='the network has collapsed'): learn.validate()

def test_item_tfms(df):
    "A transform of one's own acts on each picture"
    class Black(Transform):
        def encodes(self, im:PILImage): return PILImage.create(torch.zeros(im.size[1], im.size[0], 3).byte().numpy())
    x = loaders(df, item_tfms=Black(), erase=0, pad=0).one_batch()[0]
    assert x.flatten(2).std(2).max()<1e-5

@pytest.mark.parametrize('tfm', [Brightness(.8, p=1., draw=.9), RotatePerson(1., 20, 0),
                                 *aug_transforms(do_flip=False, max_rotate=0, max_zoom=1, max_warp=0, p_lighting=1.)])
def test_batch_tfms(df, tfm):
    "fastai's colours act, and so do our turns; validation is left alone"
    plain, other = loaders(df), loaders(df, batch_tfms=[tfm])
    assert not torch.equal(plain.one_batch()[0], other.one_batch()[0])
    assert torch.equal(plain.valid.one_batch()[0], other.valid.one_batch()[0])

def test_added_transform(df):
    dls = loaders(df, flip=0, pad=0, erase=0)
    before = dls.one_batch()[0]
    dls = loaders(df, flip=0, pad=0, erase=0)
    dls.train.after_batch.add(Brightness(.8, p=1., draw=.9))
    assert not torch.equal(dls.one_batch()[0], before)

@pytest.mark.parametrize('kwargs,why', [
    (dict(batch_tfms=aug_transforms()), r'aug_transforms\(do_flip=False, max_rotate=0, max_zoom=1, max_warp=0\)'),
    (dict(item_tfms=torch.nn.Identity()), 'is no fastai Transform'),
    (dict(size=128), 'give .height, width.'), (dict(size=(100, 50)), r'take size=\(104, 56\)')])
def test_refused(df, kwargs, why):
    with pytest.raises(InputError, match=why): loaders(df, **kwargs)

@pytest.mark.slow
@pytest.mark.parametrize('start', ['spawn', 'forkserver'])
def test_workers(df, start):
    "The same batches from workers that cannot inherit anything"
    alone = [b[0] for _, b in zip(range(2), loaders(df, bs=8, per_id=2).train)]
    before = mp.get_start_method()
    mp.set_start_method(start, force=True)
    try:
        dls = loaders(df, bs=8, per_id=2, num_workers=1)
        both = [b[0] for _, b in zip(range(2), dls.train)]
    finally: mp.set_start_method(before, force=True)
    for a, b in zip(alone, both): assert torch.equal(a, b)

def test_own_tables(df, tmp_path):
    "A CSV with names in it, and one folder a person"
    table = df.assign(pid=[f'Ann{p}' for p in df.pid], camid=[f'door{c}' for c in df.camid])
    table[['fn', 'pid', 'camid', 'role']].to_csv(tmp_path/'t.csv', index=False)
    dls = ReIDDataLoaders.from_df(tmp_path/'t.csv', size=(64, 32), bs=8, per_id=2)
    assert dls.n_classes==12 and isinstance(dls, ReIDDataLoaders)
    for i, (fn, pid) in enumerate(zip(df.fn, df.pid)):
        if pid<1 or i%3: continue
        (tmp_path/f'people/{pid}').mkdir(parents=True, exist_ok=True)
        (tmp_path/f'people/{pid}/{i}.jpg').symlink_to(fn)
    dls = ReIDDataLoaders.from_folders(tmp_path/'people', size=(64, 32), bs=8, per_id=2)
    assert dls.n_classes>5 and len(dls.test_df)

def batch_all(f, y):
    "A loss like those of pytorch-metric-learning: every pair counts"
    same = y[:, None]==y
    cosine = F.normalize(f)@F.normalize(f).T
    return F.relu(1-cosine)[same].mean() + F.relu(cosine-.5)[~same].mean()

class Proxyless(torch.nn.Module):
    "Another: cross-entropy over the other pictures of the batch"
    def forward(self, embeddings, labels):
        cosine = (F.normalize(embeddings)@F.normalize(embeddings).T/.1).fill_diagonal_(-1e4)
        same = (labels[:, None]==labels).fill_diagonal_(False)
        return -(cosine.log_softmax(1)[same]).mean()

LOSSES = [batch_all, Proxyless()]
if find_spec('pytorch_metric_learning'):
    from pytorch_metric_learning import losses
    LOSSES += [losses.MultiSimilarityLoss(), losses.CircleLoss()]

@pytest.mark.parametrize('loss', LOSSES, ids=lambda o: getattr(o, '__name__', type(o).__name__))
def test_metric_learning(df, loss):
    "A loss of features and classes in one line; it is logged and it pulls at the network"
    learn = learner(df, terms=[FeatureLoss(loss)])
    learn.fit(1, 1e-3)
    name = getattr(loss, '__name__', type(loss).__name__)
    assert learn.log_terms.history[-1][name]>0
    batch = learn.dls.one_batch()
    learn.opt.zero_grad()
    FeatureLoss(loss).term(learn.model.train()(*batch[:2]), batch[2:]).backward()
    assert learn.model.body[0][0].weight.grad.abs().sum()>0

def test_own_loop(df):
    "A plain PyTorch loop: the loaders give batches, the network a dict, a loss of one's own a number that falls"
    dls = loaders(df)
    model = Baseline(reid_body('shufflenet_v2_x0_5', stride=8), dls.n_classes)
    opt = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for x, hint, pid, camid in [dls.one_batch()]*6:
        out = model(x.as_subclass(torch.Tensor))
        loss = F.cross_entropy(out['logits_g'], pid[:, 0])
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1]<losses[0]

def people():
    pid = torch.tensor([[-1, 5], [-1, 5], [-1, 6]])
    x = People((torch.rand(3, 3, 8, 4), torch.zeros(3, 17, 3), pid, torch.tensor([0, 1, 1])))
    return x, People((x[0], x[1], torch.randn(3, 2)))

def test_tensorboard_figure():
    "What TensorBoardCallback asks for to log predictions: a figure of ranked strips"
    figures = []
    writer = SimpleNamespace(add_figure=lambda name, fig, step: figures.append((name, fig, step)))
    tensorboard_log(*people(), None, None, writer, 7)
    assert [(name, step) for name, _, step in figures]==[('Ranked', 7)] and len(figures[0][1].axes)>=6

def test_tensorboard_settings(df):
    "torch's optimisers have settings that TensorBoard cannot write: one line; fastai's have not"
    class TensorBoardCallback: trace_model = True
    watch, board = WatchRanking(), TensorBoardCallback()
    watch.learn = SimpleNamespace(cbs=[board], metrics=[], opt=SimpleNamespace(hypers=[dict(lr=1., foreach=None)]))
    with pytest.raises(InputError, match="opt_func=Adam"): watch.before_fit()
    watch.learn.opt.hypers = [dict(lr=1.)]
    watch.before_fit()
    assert board.trace_model is False

@pytest.mark.skipif(not find_spec('tensorboard'), reason='tensorboard is not installed')
def test_tensorboard(df, tmp_path):
    from fastai.callback.tensorboard import TensorBoardCallback
    learner(df, opt_func=Adam).fit(1, cbs=TensorBoardCallback(tmp_path))
    assert list(tmp_path.glob('events*'))

def test_wandb_figure(monkeypatch):
    "What WandbCallback asks for to log predictions, with a stand-in for the package"
    module = ModuleType('wandb')
    module.Image = lambda fig: ('image', fig)
    monkeypatch.setitem(sys.modules, 'wandb', module)
    kind, fig = wandb_process(*people(), None, None, None)['Ranked']
    assert kind=='image' and len(fig.axes)>=6

def test_wandb_settings(monkeypatch):
    "fastai 2.8.12 asks each setting for its attributes, and a number has none: one line says what to do"
    module = ModuleType('of_wandb')
    module._format_config_value = vars
    WandbCallback = type('WandbCallback', (), dict(__module__='of_wandb'))
    monkeypatch.setitem(sys.modules, 'of_wandb', module)
    watch = WatchRanking()
    watch.learn = SimpleNamespace(cbs=[WandbCallback()], metrics=[], opt=SimpleNamespace(hypers=[]))
    with pytest.raises(InputError, match='w._format_config_value = str'): watch.before_fit()
    module._format_config_value = str
    watch.before_fit()

@pytest.mark.skipif(not find_spec('wandb'), reason='wandb is not installed')
def test_wandb_offline(df, tmp_path, monkeypatch):
    "Offline, with the line of the refusal: a run on the disk, and mAP is a number beside logged predictions"
    monkeypatch.setenv('WANDB_SILENT', 'true')
    monkeypatch.chdir(tmp_path)
    import fastai.callback.wandb as of_fastai
    import wandb
    monkeypatch.setattr(of_fastai, '_format_config_value', str)
    run, learn = wandb.init(mode='offline', dir=str(tmp_path)), learner(df)
    learn.fit(1, 1e-3, cbs=of_fastai.WandbCallback())
    assert 0<run.summary['mAP']<=1
    wandb.finish()
    assert list(tmp_path.glob('wandb/offline-run*'))

def test_export_of_the_network_alone(df, tmp_path):
    "A learner's network remembers the size and the stats of its pictures"
    stats = (.5,)*3, (.5,)*3
    learn = learner(df, loaders(df, stats=stats))
    card = load_student(export(learn.model, tmp_path/'alone.safetensors')).card
    assert card['size']==[64, 32] and np.allclose(card['stats'], stats)

def test_evaluate_keeps_what_is_kept(df, tmp_path):
    "`evaluate` is no epoch: no callback writes a file for it, and it ranks what a training need not rank"
    learn = learner(df, loaders(df, path=tmp_path), cbs=[SaveModelCallback(fname='best'), NoValidation()])
    assert len(learn.evaluate()) and not list(tmp_path.rglob('best*'))
    with pytest.raises(InputError, match='SaveModelCallback: validation has no loss; give monitor='):
        learner(df, metrics=reid_metrics('mINP'), cbs=[SaveModelCallback()]).fit(1, 1e-4)

def test_a_log_is_of_one_training(df, tmp_path):
    "A second training into one checkpoint is refused, and what would keep a best epoch without knowing the first ones"
    log = RunLog(tmp_path/'run.pth', 'baseline', 0)
    learn = learner(df, cbs=[log])
    learn.fit(1, 1e-4)
    with pytest.raises(InputError, match='has 1 epochs of a training, and this is epoch 0'): learn.fit(1, 1e-4)
    with pytest.raises(InputError, match='SaveModelCallback: knows nothing of the epochs before start_epoch'):
        learn.fit(2, 1e-4, start_epoch=1, cbs=SaveModelCallback())

def test_weights_that_were_said(df):
    "A weight of a term is obeyed beside a term of your own, and refused where its teacher is missing"
    how = dict(arch='shufflenet_v2_x0_5', weights=None, recipe=QUICK)
    learn = where_learner(loaders(df), weight=5., terms=[OnPerson()], **how)
    assert [o.weight for o in learn.loss_func.list if o.name=='where']==[5.]
    learn = pgflkd_learner(loaders(df), teachers=[Foreground], lambda_mcl=5., **how)
    learn.logger = noop
    with learn.no_bar(), pytest.raises(InputError, match='mcl finds nothing to look at'): learn.fit(1, 1e-4)
    with learn.no_bar(), pytest.raises(InputError, match="where: looks for 'attention' in f_g"):
        learner(df, terms=[OnPerson()]).fit(1, 1e-4)
    with pytest.raises(InputError, match='the schedule of the paper has one rate'):
        learner(df).fit_recipe(PAPER, lr=slice(1e-5, 1e-3))

def test_strangers_are_no_person():
    "A distractor is no right answer to another one"
    rows = pd.DataFrame(dict(fn=[Image.new('RGB', (8, 16))]*3, pid=[0, 0, 5]))
    fig = show_ranking(rows.iloc[0], rows.iloc[1:])
    assert [ax.get_title() for ax in fig.axes]==['stranger', '✗', '✗']

def test_precision_on_a_cpu(df):
    "fastai's half precision does nothing on a CPU, and is not said to"
    for change in ('to_fp16', 'to_bf16'): assert precision_of(getattr(learner(df), change)())=='fp32'
    assert precision_of(learner(df).to_fast(bf16=True))=='bf16'

def test_masks_where_there_are_some(df):
    "Occluded queries without a mask are left out of the share on the obstacle"
    table = df[df.role!='train'].reset_index(drop=True)
    occluded = query_sets(table)['occluded']
    found = dict(response=torch.rand(len(table), 8, 4))
    others = table.loc[occluded[1:]].reset_index(drop=True)
    want = _looks(others, dict(response=found['response'][occluded[1:]]), (64, 32))
    table.loc[occluded[0], 'mask'] = ''
    assert want and _looks(table, found, (64, 32))==want

def test_query_sets_by_name(df):
    table = df[df.role!='train'].reset_index(drop=True)
    found = RetrievalInterpretation(table, torch.rand(len(table), 4))
    for ask in (partial(spread_queries, table), found.worst_queries):
        with pytest.raises(InputError, match="query_set 'ocluded': the queries here are"): ask(3, query_set='ocluded')
    with pytest.raises(InputError, match='Embedder: give a Learner, a network or its file'):
        benchmark_table(load_embedder('student'), table)

def test_single_shot_by_names():
    "Names in the place of numbers, as `evaluate_ranking` takes them"
    q, g = torch.eye(3), torch.rand(6, 3)
    numbers = [1, 2, 3], [1, 2, 3]*2, [0]*3, [1]*6
    names = [[f'n{o}' for o in ids] for ids in numbers]
    dist = pairwise_distance(q, g)
    assert single_shot(dist, *names)==single_shot(dist, *numbers)
    assert torch.equal(mean_queries(q, g, *names), mean_queries(q, g, *numbers))

def test_rows_of_several_sources(tmp_path):
    "Runs on other crops are lines of their own; two runs of one row and seed are refused"
    (tmp_path/'ap').mkdir()
    def record(runs):
        ap = {'occluded': np.ones(4), 'pid occluded': np.arange(4)}
        for run in runs.run: np.savez(tmp_path/f'ap/{run}_f_g.npz', **ap)
        runs.to_csv(tmp_path/'runs.csv', index=False)
        return gain_table(tmp_path)
    runs = pd.DataFrame(dict(run=[*'abcd'], row=['baseline', 'PGFL-KD']*2, seed=[0, 0, 1, 1], data='folder',
                             source=['shop', 'shop', 'station', 'station']))
    assert record(runs).groupby('source').row.count().to_dict()==dict(shop=2, station=2)
    with pytest.raises(InputError, match='two runs of baseline, seed 0'): record(runs.assign(source='shop', seed=0))

def test_added_columns_stay_text(tmp_path):
    "What a table has and new rows have not is left as it was written"
    add_rows(tmp_path/'t.csv', pd.DataFrame(dict(run=['a'], camera=['01'], n=[3])))
    add_rows(tmp_path/'t.csv', pd.DataFrame(dict(run=['b'], mAP=[.5])))
    assert (tmp_path/'t.csv').read_text().splitlines()==['run,camera,n,mAP', 'a,01,3,', 'b,,,0.5']
