"""Public problems of similar software, tried here as cases: each with its right value, and a neighbour of its kind.

The numbers are those of the log of cases; galleries have a file of their own, `test_service.py`.
"""
import io
import json
import multiprocessing
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).parent))
import reid_fixtures as fx
from pgflkd.commands.doctor import doctor, doctor_command
from pgflkd.commands.pose import pose_command
from pgflkd.commands.train import add_queries, read_crops
from pgflkd.data import check_table, reid_dls
from pgflkd.datasets import from_df, from_folders, from_names, read_data, read_market, read_msmt17
from pgflkd.errors import InputError
from pgflkd.files import check_pictures, list_pictures, open_picture
from pgflkd.keypoints import KeypointStore
from pgflkd.occlude import make_partial, paste_obstacles
from pgflkd.pose import COCO_JOINTS
from pgflkd.protocols import benchmark_table, mean_queries, paper_says
from pgflkd.readers.folders import join_tables, split_people, validation_cut
from pgflkd.readers.poses import read_keypoints, to_coco

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('PGFLKD_CACHE', str(tmp_path/'cache'))

def picture(pid, k=0, size=(64,32)):
    "A made-up crop: coloured blocks by `pid`, noise by `k`"
    blocks = np.random.default_rng([pid+5, 7]).integers(0, 255, (4,2,3))
    noise = np.random.default_rng([pid+5, k]).normal(0, 12, (*size,3))
    large = np.kron(blocks, np.ones((-(-size[0]//4), -(-size[1]//2), 1)))[:size[0],:size[1]]
    return Image.fromarray((large+noise).clip(0, 255).astype(np.uint8))

def put(path, pid, k=0, size=(64,32), **how):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture(pid, k, size).save(path, **how)

def market(root, train=(2,3,4,5), test=(6,7), cams=(1,2), name='{:04d}_c{}s1_{:06d}_00.jpg'):
    "Market-1501's folders: two shots of everybody by each camera, and a query"
    for pid in train:
        for c in cams:
            for s in (1, 2): put(root/'bounding_box_train'/name.format(pid, c, s), pid, s)
    for pid in test:
        for c in cams:
            put(root/'query'/name.format(pid, c, 50), pid, 50)
            for s in (101, 102): put(root/'bounding_box_test'/name.format(pid, c, s), pid, s)
    return root

def crops(root, name, people=range(1, 9), cams=(1,2), shots=3):
    "Crops of one's own, named by `name` with person, camera and shot"
    for pid in people:
        for c in cams:
            for s in range(shots): put(root/name.format(pid, c, s), pid, s)
    return root

def said(f, *args, **kwargs):
    "What `f` returns, and what it prints"
    with redirect_stdout(io.StringIO()) as out: found = f(*args, **kwargs)
    return found, out.getvalue()

# --- what the doctor approves can be trained ------------------------------------------------------

@pytest.fixture(scope='module')
def some_pictures(tmp_path_factory):
    files = [tmp_path_factory.mktemp('pictures')/f'{i}.jpg' for i in range(4)]
    for i,file in enumerate(files): put(file, i)
    return files

OWN = {'folders': ('{:03d}/c{}_{}.jpg', {}), 'folders, camera': ('{:03d}/{}-{}.jpg', dict(camera='{camera}-*')),
       'names': ('p{:03d}_c{}_{}.jpg', {}),
       'names, pattern': ('{1}+{0:03d}+{2}.jpg', dict(pattern='{camera}+{person}+*'))}

def options_of(command):
    "The options in a command that the doctor gives"
    words = shlex.split(command)
    return {o.removeprefix('--'): v for o,v in zip(words, words[1:]) if o.startswith('--')}

def check_advice(report, made):
    "The command in `report` reads, occludes into `made` and batches; or tests"
    from pgflkd.commands.transfer import _read_targets
    given = options_of(report.advice.splitlines()[-1])
    if 'targets' in given: return _read_targets(given['targets'])
    names = set(given) & {'pattern', 'camera', 'test', 'lists'}
    (df, joints), _ = said(read_crops, given['data'], given['format'], None, **{k: given[k] for k in names})
    check_pictures(df.fn)
    df, joints = add_queries(df, joints, made, 0)
    dls = reid_dls(df, joints, size=(64,32), bs=int(given.get('bs', 64)), per_id=4, seed=0)
    assert dls.one_batch()[0].shape[1:]==(3,64,32)

@pytest.mark.parametrize('format,variant', fx.VARIANTS, ids=[f'{f}-{v}' for f,v in fx.VARIANTS])
def test_b01_what_the_doctor_approves_trains(format, variant, some_pictures, tmp_path):
    fx.write(format, variant, tmp_path, some_pictures)
    report = doctor(tmp_path, format=format)
    assert report.ill==0, str(report)
    check_advice(report, tmp_path/'made')

@pytest.mark.parametrize('kind', OWN)
def test_b01_own_crops_too(kind, tmp_path):
    name, options = OWN[kind]
    report = doctor(crops(tmp_path/'crops', name), **options)
    assert report.ill==0, str(report)
    assert report.table.groupby('role').pid.nunique().train==6 and report.table.camid.nunique()==2
    check_advice(report, tmp_path/'made')

def test_b01_a_table_too(tmp_path):
    crops(tmp_path/'crops', '{}_{}_{}.jpg')
    files = sorted(os.listdir(tmp_path/'crops'))
    people, doors = [f'person {o[0]}' for o in files], [f'door-{o[2]}' for o in files]
    table = pd.DataFrame(dict(fn=files, pid=people, camid=doors))
    table.to_csv(tmp_path/'crops/t.csv', index=False)
    report = doctor(tmp_path/'crops/t.csv')
    assert report.ill==0 and '--format csv' in report.advice
    check_advice(report, tmp_path/'made')

@pytest.mark.slow
def test_b01_occluded_sets_train_from_the_command(some_pictures, tmp_path):
    "The doctor's own command, run: a training step, ranked on queries that are occluded already"
    for format, variant in (('occluded_duke', 'own folders'), ('p_duke', 'author')):
        fx.write(format, variant, tmp_path/format, some_pictures)
        given = shlex.split(doctor(tmp_path/format, format=format).advice.splitlines()[-1])[1:]
        small = ['--epochs', '1', '--size', '64x32', '--arch', 'resnet18', '--weights', 'none']
        code = 'from pgflkd.commands.train import train_command; train_command()'
        run = [sys.executable, '-c', code, *given, *small, '--out', str(tmp_path/f'{format}_run')]
        done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode==0, done.stderr[-2000:]
        assert pd.read_csv(tmp_path/f'{format}_run/results.csv').query_set.tolist()==['occluded']

# --- keypoints ------------------------------------------------------------------------------------

@pytest.mark.parametrize('known', [0, 6])
def test_b03_keypoints_of_the_test_pictures_only(known, tmp_path):
    df = read_market(market(tmp_path/'m', test=(6,7,8,9,10)))
    train = df.role=='train'
    fns = [*df.fn[~train], *df.fn[train][:known]]
    store = KeypointStore([os.path.basename(o) for o in fns], np.tile([16.,32,1], (len(fns),17,1)), (64,32))
    store.save(tmp_path/'k.npz')
    with pytest.raises(InputError, match=f'has a pose for {known} of 16 training'): store.align(df)
    assert f'has a pose for {known} of 16 training' in ' '.join(str(doctor(tmp_path/'m', tmp_path/'k.npz')).split())

def test_b03_one_pose_for_two_people(tmp_path):
    "Keypoints of one person's folder are not those of the same file names in another's"
    crops(tmp_path/'crops', '{0:03d}/{2}.jpg', cams=(1,))
    df, _ = said(from_folders, tmp_path/'crops')
    store = KeypointStore(['0.jpg','1.jpg','2.jpg'], np.tile([16.,32,1], (3,17,1)), (64,32))
    with pytest.raises(InputError, match='0.jpg fits pictures of several people'): store.align(df)

def coco(path, order):
    "A COCO file of one picture whose joints stand at y 10, 14, 18, ..."
    person = dict(image_id=1, num_keypoints=17, keypoints=flat_places(17))
    image = dict(id=1, file_name='a.jpg', height=128, width=64)
    path.write_text(json.dumps(dict(images=[image], annotations=[person], categories=[dict(keypoints=order)])))
    return path

def flat_places(n, seen=2):
    "n joints below each other, as a flat list"
    places = []
    for i in range(n): places += [30, 10+4*i, seen]
    return places

def test_b08_names_in_the_file_are_obeyed(tmp_path):
    put(tmp_path/'kp/a.jpg', 0, size=(128,64))
    store = read_keypoints(coco(tmp_path/'o.json', COCO_JOINTS[::-1]), images=tmp_path/'kp')
    assert store.joints[0,:,1].tolist()==[10+4*i for i in range(17)][::-1]

@pytest.mark.parametrize('third, counted, want', [
    ([.8]*17, True, [.8]*17), ([1]*17, True, [1]*17),
    ([2]*16+[1], True, [1]*16+[.5]), ([2]*16+[1], False, [1]*16+[.5])])
def test_b08_scores_are_scores_and_labels_are_labels(third, counted, want, tmp_path):
    "COCO annotations: a tool that writes scores beside num_keypoints, one that leaves it out, one that knows only 1"
    path = coco(tmp_path/'a.json', COCO_JOINTS)
    doc = json.loads(path.read_text())
    doc['annotations'][0]['keypoints'][2::3] = third
    if not counted: del doc['annotations'][0]['num_keypoints']
    path.write_text(json.dumps(doc))
    assert np.allclose(read_keypoints(path).joints[0,:,2], want)

def test_joints_of_smaller_pictures(tmp_path):
    "AlphaPose ran on crops of 64 x 32, training has them at 128 x 64: before, each joint meant another place"
    people = []
    for i in range(30):
        put(tmp_path/f'large/{i}.jpg', i, size=(128,64))
        place = np.c_[np.linspace(6, 26, 17), np.linspace(4, 60, 17), np.full(17, .9)].ravel().tolist()
        people.append(dict(image_id=f'{i}.jpg', keypoints=place, score=2.))
    (tmp_path/'a.json').write_text(json.dumps(people))
    with pytest.raises(InputError, match='lie in the upper left quarter'):
        read_keypoints(tmp_path/'a.json', tmp_path/'large')
    assert len(read_keypoints(tmp_path/'a.json', size=(64,32)))==30

def test_b32_numbers_are_no_names(tmp_path):
    "Results that count pictures from 1, for crops that count from 0: before, each had the pose of the next"
    for i in range(3): put(tmp_path/f'crops/{i}.jpg', i, size=(128,64))
    place = np.c_[np.full(17, 30), np.linspace(8, 120, 17), np.full(17, .9)].ravel().tolist()
    for first in (1, '1'):
        people = [dict(image_id=type(first)(int(first)+i), keypoints=place) for i in range(3)]
        (tmp_path/'r.json').write_text(json.dumps(people))
        if first=='1': assert len(read_keypoints(tmp_path/'r.json', tmp_path/'crops'))==3
        else:
            with pytest.raises(InputError, match='image_id 1 is a number'): read_keypoints(tmp_path/'r.json')

def test_names_of_two_systems(tmp_path):
    "Poses that macOS named are found by the names of Linux"
    store = KeypointStore([f'Ren{chr(0x65)}{chr(0x301)}.jpg'], np.full((1,17,3), 30.)*[1,1,1/60])
    assert store.align(pd.DataFrame(dict(fn=['/x/Ren\u00e9.jpg'], pid=1)))[0,0,2]>0

def test_an_order_for_a_store(tmp_path):
    "A store is in COCO's order; an order that is said is obeyed"
    joints = np.random.default_rng(0).uniform(2, 60, (9, 17, 3)) * [1, 2, 0] + [0, 0, .9]
    KeypointStore([f'{i}.jpg' for i in range(9)], joints[:, ::-1], (128, 64)).save(tmp_path/'k.npz')
    assert np.allclose(read_keypoints(tmp_path/'k.npz', order=COCO_JOINTS[::-1]).joints, joints)
    with pytest.raises(InputError, match='left_sholder is no joint of COCO; write left_shoulder'):
        to_coco(joints, ['left_sholder' if o=='left_shoulder' else o for o in COCO_JOINTS])

def test_b08_a_number_is_no_order(tmp_path, capsys):
    put(tmp_path/'kp/a.jpg', 0, size=(128,64))
    (tmp_path/'c.json').write_text(json.dumps([dict(image_id='a.jpg', keypoints=flat_places(14, .9), score=1)]))
    with pytest.raises(InputError, match='14 joints, whose order'): read_keypoints(tmp_path/'c.json')
    names = 'left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip right_hip'.split()
    names += 'left_knee right_knee left_ankle right_ankle head neck'.split()
    pose_command(str(tmp_path/'kp'), convert=str(tmp_path/'c.json'), out=str(tmp_path/'k.npz'), order=', '.join(names))
    assert KeypointStore.load(tmp_path/'k.npz').joints[0,5:7,1].tolist()==[10,14]

def test_b08_another_25(tmp_path):
    "OpenPose's BODY_25B, taken for BODY_25, has its eyes at the ankles"
    joints = flat_places(25, .9)
    (tmp_path/'a_keypoints.json').write_text(json.dumps(dict(people=[dict(pose_keypoints_2d=joints)])))
    with pytest.raises(InputError, match='feet lie above the head'): read_keypoints(tmp_path/'a_keypoints.json')

@pytest.mark.parametrize('name', [r'D:\crops\a.jpg', '/data/x/crops/a.jpg', 'a', './a.jpg', r'..\kp\a.jpg', 'kp/a.jpg'])
def test_b32_names_from_another_machine(name, tmp_path):
    put(tmp_path/'kp/a.jpg', 0, size=(128,64))
    (tmp_path/'w.json').write_text(json.dumps([dict(image_id=name, keypoints=flat_places(17, .9), score=1)]))
    store = read_keypoints(tmp_path/'w.json', images=tmp_path/'kp')
    assert store.names.tolist()==['a.jpg'] and store.joints[0,0].tolist()==pytest.approx([30,10,.9])

def test_b32_names_of_other_pictures(tmp_path):
    put(tmp_path/'kp/a.jpg', 0, size=(128,64))
    (tmp_path/'w.json').write_text(json.dumps([dict(image_id='b.jpg', keypoints=flat_places(17, .9), score=1)]))
    with pytest.raises(InputError, match='none of them is in'): read_keypoints(tmp_path/'w.json', images=tmp_path/'kp')

# --- pictures -------------------------------------------------------------------------------------

@pytest.mark.parametrize('turn,how', [(3, Image.ROTATE_180), (6, Image.ROTATE_90), (8, Image.ROTATE_270)])
def test_b05_turned_photographs(turn, how, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    picture(3, 0, (128,64)).transpose(how).save(tmp_path/'phone.png', exif=exif)
    seen = open_picture(tmp_path/'phone.png')
    assert seen.size==(64,128) and np.array_equal(np.asarray(seen), np.asarray(picture(3, 0, (128,64))))

def test_b06_grey_of_any_width(tmp_path):
    "16 bits, 8 bits in wider words, floating point: the same picture"
    grey = np.asarray(picture(3).convert('L'))
    wide = dict(wide=grey.astype(np.uint16)*256, low=grey.astype(np.uint16), long=grey.astype(np.int32),
                real=grey.astype(np.float32)/255, real255=grey.astype(np.float32))
    for name, values in wide.items():
        file = tmp_path/f'{name}.{"png" if values.dtype==np.uint16 else "tif"}'
        Image.fromarray(values).save(file)
        assert np.array_equal(np.asarray(open_picture(file).convert('L')), grey), name

@pytest.mark.parametrize('value', [np.nan, -1, 1e6])
def test_b06_values_that_are_no_grey(value, tmp_path):
    Image.fromarray(np.full((8,4), value, np.float32)).save(tmp_path/'odd.tif')
    with pytest.raises(InputError, match='odd.tif: cannot be read as a picture .grey'): open_picture(tmp_path/'odd.tif')

@pytest.mark.skipif(sys.platform!='linux', reason='needs a file system that takes any bytes as a name')
@pytest.mark.parametrize('at', [b'a\xb9.jpg', b'f\xb9/a.jpg'])
def test_b12_names_that_are_no_utf8(at, tmp_path):
    put(tmp_path/'crops/b.jpg', 1)
    file = os.path.join(os.fsencode(tmp_path), b'crops', at)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    os.rename(tmp_path/'crops/b.jpg', file)
    with pytest.raises(InputError, match='the name is no UTF-8; rename'): list_pictures(tmp_path/'crops')
    assert 'rename the file' in str(doctor(tmp_path/'crops'))

def test_b14_one_walker(tmp_path):
    for name in ('a.tif', 'b.jpg', '.thumbs/b.jpg', 'c.jfif', 'd.gif', '__MACOSX/e.jpg'):
        put(tmp_path/'w'/name, 1, format='JPEG' if name.endswith('jfif') else None)
    (tmp_path/'w/._b.jpg').write_bytes(b'\0\5\26\7')
    put(tmp_path/'far/f.jpg', 1)
    if os.name=='posix': os.symlink(tmp_path/'far', tmp_path/'w/link')
    found = [Path(o).name for o in list_pictures(tmp_path/'w')]
    assert found==['a.tif', 'b.jpg', 'c.jfif', 'd.gif'] + ['f.jpg']*(os.name=='posix')

def test_pictures_are_looked_at_once(tmp_path, monkeypatch):
    import pgflkd.files as files
    put(tmp_path/'a.jpg', 1)
    opened = []
    monkeypatch.setattr(files, 'open_picture', lambda path: opened.append(path) or open_picture(path))
    for _ in range(3): check_pictures([tmp_path/'a.jpg'])
    assert len(opened)==1
    put(tmp_path/'a.jpg', 2, size=(66,32))
    check_pictures([tmp_path/'a.jpg'])
    assert len(opened)==2
    (tmp_path/'a.jpg').write_bytes(b'cut')
    for _ in range(2):
        with pytest.raises(InputError, match='1 of 1 pictures are broken'): check_pictures([tmp_path/'a.jpg'])

def test_copies_are_of_these_pictures(tmp_path):
    "Another camera, or a picture that changed under its name, makes new copies"
    put(tmp_path/'q.jpg', 1, size=(66,30))
    put(tmp_path/'g.jpg', 1, 1)
    files = [str(tmp_path/'q.jpg'), str(tmp_path/'g.jpg')]
    df = pd.DataFrame(dict(fn=files, pid=1, camid=[0,1], role=['query','gallery']))
    def copy(df): return paste_obstacles(df)[0].fn.iloc[-1]
    first = copy(df)
    assert copy(df)==first
    assert copy(df.assign(camid=[2,1]))!=first
    put(tmp_path/'q.jpg', 3, size=(66,30))
    assert copy(df)!=first

def small_duke(folder, **columns):
    "Four people, a query and a gallery picture each, as `read_duke` leaves them"
    rows = [dict(fn=str(folder/f'{role}{pid}.jpg'), pid=pid, camid=cam, role=role)
            for pid in range(1, 5) for cam, role in enumerate(('query', 'gallery'))]
    for o in rows: put(Path(o['fn']), o['pid'], o['camid'], size=(66, 30))
    df = pd.DataFrame(rows).assign(**columns)
    df.attrs['dataset'] = 'duke'
    return df

def test_occluded_queries_are_not_holistic(tmp_path):
    "A table of one's own says `occluded` and names no query sets: those queries are the set occluded"
    df = small_duke(tmp_path, occluded=[True, False]*2 + [False]*4)
    for made in (paste_obstacles(df)[0], make_partial(df, role='query')[0], make_partial(df)[0]):
        asked = made[(made.role=='query') & (made.query_set!='partial')]
        assert (asked.occluded==(asked.query_set=='occluded')).all() and set(made.query_set[made.role=='gallery'])=={''}

def test_the_papers_row_stands_beside_its_own_benchmark(tmp_path):
    "Copies, a cut of the training people and a split of one's own are other tests; half of Duke cut is Partial-Duke"
    df = small_duke(tmp_path)
    def says(df): return set(benchmark_table(np.eye(len(df)), df)['paper, baseline'])
    assert says(df)=={paper_says('duke', 'baseline')}
    assert says(make_partial(df)[0])=={paper_says('partial_duke', 'baseline')}
    for other in (paste_obstacles(df)[0], make_partial(df, role='query')[0]): assert says(other)=={'-'}
    assert not validation_cut(df.assign(role='train'), .5).attrs and not split_people(df).attrs
    assert df.attrs==dict(dataset='duke')

# --- tables, names, folders -----------------------------------------------------------------------

def test_b10_text_gaps_and_missing_columns(tmp_path):
    df = read_market(market(tmp_path/'m'))
    named = from_df(df.assign(pid=df.pid.map('{:04d}'.format), camid=df.camid.map('c{}'.format)))
    assert named.pid.tolist()==df.pid.tolist() and named.camid.tolist()==df.camid.tolist()
    check_table(named, 8, 2)
    gap = df.index==3
    for column, value in dict(pid=np.nan, camid=None, fn=np.nan, role='Train').items():
        worse = df.astype(object).assign(**{column: df[column].astype(object).where(~gap, value)})
        with pytest.raises(InputError, match=f'row 3: {column} is'): from_df(worse)
        if column!='role':
            with pytest.raises(InputError): reid_dls(worse, bs=8, per_id=2)
    blind, text = said(from_df, df.drop(columns='camid'))
    assert blind.camid.tolist()==(df.role=='gallery').astype(int).tolist() and 'no two cameras are known' in text

def test_b16_person_0_is_somebody(tmp_path):
    df, text = said(read_market, market(tmp_path/'m', train=(0,1,2,3), test=(0,1)))
    assert len(df)==28 and sorted(set(df.pid))==[1,2,3,4] and 'counted from 0' in text
    assert '2 people in training and in the test' in str(doctor(tmp_path/'m'))
    msmt, _ = said(read_msmt17, tmp_path/'m')                 # the same folders, named as what they are
    assert set(msmt.pid[msmt.role=='query'])=={10001,10002} and not set(msmt.pid[msmt.role=='train']) & {10001,10002}

def test_b23_one_camera(tmp_path):
    text = ' '.join(str(doctor(market(tmp_path/'m', train=range(8, 24), cams=(1,)))).split())
    assert 'no query has a picture of the same person from another camera' in text

def test_b30_train_and_val(tmp_path):
    "Other people in val are tested; the same people are held out of both, and that is said"
    for half, people in (('train', (1,2,3,4)), ('val', (5,6))):
        crops(tmp_path/'other'/half, '{0:03d}/c{1}_{2}.jpg', people)
    df, _ = said(from_folders, tmp_path/'other', camera='c{camera}_*')
    assert df.groupby('role').person.nunique().to_dict()==dict(train=4, query=2, gallery=2)
    for half in ('train', 'test'): crops(tmp_path/'same'/half, f'{{0:03d}}/{half}_c{{1}}_{{2}}.jpg', (1,2,3,4))
    df, text = said(from_folders, tmp_path/'same', camera='*_c{camera}_*', test='1/2')
    assert '4 people are in train and in test' in text and len(df)==48
    assert df.groupby('role').pid.nunique().to_dict()==dict(train=2, query=2, gallery=2)

LAYOUTS = {   # how crops lie: the pattern that reads them right
    'cam{1}/{0:03d}/{2}.jpg': '{camera}/{person}/*',
    'door{1}/{0:03d}/{2}.jpg': '{camera}/{person}/*',
    '{0:03d}/c{1}/{2}.jpg': '{person}/{camera}/*',
    'c{1}/{0:03d}_{2}.jpg': '{camera}/{person}_*',
    'Cam-{1}/{0:03d}_{2}.jpg': '{camera}/{person}_*'}

@pytest.mark.parametrize('halves', ['', 'train/'])
@pytest.mark.parametrize('name', LAYOUTS)
def test_b30_folders_that_may_be_cameras(name, halves, tmp_path):
    "Cameras are never taken for people: it is asked which folder is which, and each pattern that is offered reads"
    right = '{role}/'*bool(halves)+LAYOUTS[name]
    root = crops(tmp_path/'crops', halves+name, range(1, 7))
    crops(root, halves.replace('train', 'val')+name, (7, 8))
    with pytest.raises(InputError, match=re.escape(f"'{right}'")): from_folders(root)
    report = ' '.join(str(doctor(root, format='folders')).split())
    assert f"'{right}'" in report and '1 to mend (✗). Then: ask again' in report
    df, _ = said(read_data, root, pattern=right)
    assert (len(df), df.pid.nunique(), df.camid.nunique())==(48, 8, 2)
    assert df.groupby('role').pid.nunique().to_dict()==dict(train=6, query=2, gallery=2)
    assert all(f'{int(pid):03d}' in fn for fn,pid in zip(df.fn, df.pid))

def test_b30_people_called_like_cameras(tmp_path):
    "c1 to c8 may be people: the other pattern says so. A folder below a person's own pictures is theirs"
    root = crops(tmp_path/'crops', 'c{0}/{1}_{2}.jpg')
    with pytest.raises(InputError, match="'{person}/.'"): from_folders(root)
    assert said(read_data, root, pattern='{person}/*')[0].pid.nunique()==8
    root = crops(tmp_path/'more', '{0:03d}/{1}_{2}.jpg')
    put(root/'001/later/1.jpg', 1, 9)
    df, _ = said(from_folders, root)
    assert df.pid.nunique()==8 and df.pid[df.fn.str.contains('later')].tolist()==[1]

def posed(fns, height):
    "A store in which everybody stands at `height`"
    return KeypointStore([os.path.basename(o) for o in fns], np.tile([16.,height,1], (len(fns),17,1)), (64,32))

def two_markets(root):
    "Two sets with the same numbers of people, and their paths"
    first, second = market(root/'A', cams=(1,2,3)), market(root/'B', name='{:04d}_c{}_f{:07d}.jpg')
    return read_market(first), read_data(second, 'duke'), f'{first}, {second}'

def test_several_training_sets(tmp_path):
    "Person 2 of one set is not person 2 of the other; the test is that of the first"
    a, b, both = two_markets(tmp_path)
    df, _ = read_crops(both, 'market1501,duke', None)
    test, new = df.role!='train', df.fn.isin(b.fn)
    assert df[~new].reset_index(drop=True)[a.columns].equals(a) and not (test & new).any()
    assert sorted(set(df.pid[new]))==[9,10,11,12] and sorted(set(df.camid[new]))==[3,4]
    assert reid_dls(df, None, size=(64,32), bs=16, per_id=2, seed=0).n_classes==8
    assert read_crops(both, 'market1501', None)[0].pid.tolist()==df.pid.tolist()          # one word for both

def test_poses_of_several_sets(tmp_path):
    "They stay with their pictures"
    a, b, both = two_markets(tmp_path)
    posed(a.fn, 10).save(tmp_path/'a.npz')
    posed(b.fn, 50).save(tmp_path/'b.npz')
    df, joints = read_crops(both, 'market1501,duke', f'{tmp_path}/a.npz,{tmp_path}/b.npz')
    new = df.fn.isin(b.fn)
    assert set(joints[new,0,1])=={50} and set(joints[~new,0,1])=={10}

def test_sets_that_cannot_be_joined(tmp_path):
    first = market(tmp_path/'A')
    wrong = {f'{first},{first}': (None, 'is in two of the sets'), f'{first},{tmp_path}/C': (None, 'no such folder'),
             f'{first},{tmp_path}': ('duke,duke,duke', '3 words for 2 folders')}
    for folders, (format, why) in wrong.items():
        with pytest.raises(InputError, match=why): read_crops(folders, format, None)
    market(tmp_path/'with, comma')                                          # a folder's name is asked first
    assert len(read_crops(str(tmp_path/'with, comma'), None, None)[0])==28

def test_distractors_stay_when_sets_are_joined():
    rows = dict(fn=['a','b','c'], pid=[3,0,-1], camid=[0,1,1], role=['train','gallery','gallery'])
    both = join_tables(pd.DataFrame(rows), pd.DataFrame(rows).assign(fn=['d','e','f']))
    assert both.pid.tolist()==[3,0,-1,6] and both.index.tolist()==[0,1,2,3] and both.camid.tolist()==[0,1,1,2]

def test_multi_query_is_one_camera():
    "The other pictures of the query's camera ask with it; those of another camera, the answers, do not"
    g = np.eye(4)
    f = mean_queries(np.array([[1.,0,0,0]]), g, [7], [7,7,7,8], [0], [0,0,1,0])
    assert torch.allclose(f, torch.tensor([[1/2,1/2,0,0]]))       # the first is the query, and counts once
    assert torch.equal(mean_queries(g[:1], g, [7], [8,8,8,8], [0], [0,0,1,0]), torch.tensor([[1.,0,0,0]]))

def test_b31_as_windows_writes_them(tmp_path):
    rows = '\n'.join(f'sub\\{i//4+1}_{i%4}.jpg, {i//4+1}, {i%2}' for i in range(16))
    for sep, code in ((',', 'utf-8-sig'), (';', 'utf-8'), ('\t', 'utf-8')):
        (tmp_path/'t.csv').write_text(f'fn, pid, camid\n{rows}'.replace(',', sep), encoding=code)
        df, text = said(from_df, tmp_path/'t.csv')
        assert sorted(set(df.pid))==[1,2,3,4] and df.fn[0]==os.path.join(tmp_path, 'sub/1_0.jpg') and 'no roles' in text
    (tmp_path/'t.csv').write_text(f'fn,pid,camid\n{rows}\na.jpg,1,0\nb.jpg,001,1')
    with pytest.raises(InputError, match="row 19: pid is '001'; another row spells"): from_df(tmp_path/'t.csv')
    (tmp_path/'t.zip').write_bytes(b'PK\3\4\xff\xfe')
    with pytest.raises(InputError, match='cannot be read as a CSV'): from_df(tmp_path/'t.zip')

@pytest.mark.parametrize('read', [lambda p: read_data(p), lambda p: from_folders(p), lambda p: from_df(p+'.csv'),
                                  lambda p: from_names(p, '{person}_*'), lambda p: KeypointStore.load(p+'.npz'),
                                  lambda p: read_keypoints(p+'.json')])
def test_b31_home(read):
    "~ is somebody's home, whatever hands the path on"
    with pytest.raises(InputError, match=re.escape(str(Path.home()))): read('~/no such thing')

def test_patterns_and_options_that_mean_nothing(tmp_path):
    crops(tmp_path/'flat', 'cam{1}_{0:04d}_{2}.jpg')
    by_hand, text = said(read_data, tmp_path/'flat', pattern='{camera}_{person}_*')
    assert by_hand.camera.nunique()==2 and by_hand.pid.nunique()==8 and 'held out (test 0.3, seed 0)' in text
    assert "--pattern 'cam{camera}_{person}_*'" in doctor(tmp_path/'flat').advice
    with pytest.raises(InputError, match='--camera: market1501 has no such option'):
        read_data(tmp_path/'flat', 'market1501', camera='*')
    with pytest.raises(InputError, match='--pattern: is missing'): read_data(tmp_path/'flat', 'names')
    with redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit):
        pose_command(str(tmp_path/'flat'), order='nose')
    assert '--order: is of no use without --convert' in err.getvalue()

def test_split_people_is_repeatable_and_folds_are_whole():
    rows = [(pid, c) for pid in range(1, 11) for c in (0,0,1)]
    df = pd.DataFrame(rows, columns=['pid','camid']).assign(fn=[f'{i:02d}.jpg' for i in range(30)])
    folds = [split_people(df, f'{i}/5') for i in range(1, 6)]
    assert sorted(pid for o in folds for pid in set(o.pid[o.role=='query']))==list(range(1, 11))
    mixed = split_people(df.sample(frac=1, random_state=1), .3)
    assert mixed.sort_values('fn').role.tolist()==split_people(df, .3).role.tolist()

# --- the eight kinds ------------------------------------------------------------------------------

def test_each_kind_has_a_guard():
    "Every function that CONTRIBUTING names for a kind of mistake exists, and no kind is without one"
    page = (Path(__file__).parent.parent/'CONTRIBUTING.md').read_text(encoding='utf-8')
    kinds = [line.split('|')[1:-1] for line in page.splitlines() if re.match(r'\| [a-h] \|', line)]
    assert [kind[0].strip() for kind in kinds]==list('abcdefgh')
    for *_, guards in kinds:
        names = re.findall('`([^`]+)`', guards)
        assert names
        for name in names: assert pkgutil.resolve_name(f'pgflkd.{name}'), name

# --- other systems --------------------------------------------------------------------------------

WINDOWS = '''
import sys, multiprocessing
sys.modules["fcntl"] = None
multiprocessing.set_start_method("spawn")
'''

def test_b20_without_posix(tmp_path):
    "No fcntl, and processes that start anew: every command is imported, the light ones run"
    market(tmp_path/'m', train=range(8, 24))
    code = WINDOWS + f'''
if __name__=='__main__':
    import pgflkd.all
    from pgflkd.commands import ablate, doctor, embed, export, pose, search, train, transfer
    from pgflkd.data import reid_dls
    from pgflkd.datasets import read_market
    from pgflkd.files import locked
    with locked({str(tmp_path/'lock')!r}): doctor.doctor_command({str(tmp_path/'m')!r})
    df = read_market({str(tmp_path/'m')!r})
    print(len(df), multiprocessing.get_start_method())
'''
    (tmp_path/'run.py').write_text(code)
    done = subprocess.run([sys.executable, 'run.py'], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode==0 and done.stdout.strip().endswith('spawn'), done.stdout[-1000:]+done.stderr[-2000:]
    assert 'Nothing stands in the way' in done.stdout

def test_the_doctor_as_a_command(tmp_path, capsys):
    crops(tmp_path/'flat', '{1}+{0:04d}+{2}.jpg')
    with pytest.raises(SystemExit): doctor_command(str(tmp_path/'flat'))
    assert 'say how, for example' in ' '.join(capsys.readouterr().out.split())
    doctor_command(str(tmp_path/'flat'), pattern='{camera}+{person}+*', test='1/4')
    assert "--test 1/4" in capsys.readouterr().out and multiprocessing.current_process().name=='MainProcess'

def test_one_picture_a_camera(tmp_path):
    "Where people have a picture a camera, one stays in the gallery, so that the others can be asked"
    own = crops(tmp_path/'own', '{}/p_c{}_{}.jpg', cams=(0, 1), shots=1)
    df, text = said(from_folders, own, camera='*_c{camera}_*', test=.5)
    assert df.role.value_counts().to_dict()==dict(train=8, query=4, gallery=4) and '4 queries and 4 gallery' in text

def test_an_order_for_the_market_csv(tmp_path):
    "The names of the columns are obeyed for this format, too, and looked at"
    order = [*COCO_JOINTS[::-1], 'neck']
    y, x = np.arange(1, 19)*6, np.arange(1, 19)*3
    (tmp_path/'m.csv').write_text(f'name:y:x\na.jpg:{y.tolist()}:{x.tolist()}\n')
    store = read_keypoints(tmp_path/'m.csv', order=order)
    assert np.allclose(store.joints[0, COCO_JOINTS.index('nose'), :2], (17*3+.5, 17*6+.5))
    with pytest.raises(InputError, match='line 2: 18 joints and 2 names'):
        read_keypoints(tmp_path/'m.csv', order=['a', 'b'])
