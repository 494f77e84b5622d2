"Public problems of galleries, and their neighbours: repaired pictures, corrected names, people to forget, options."
import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pgflkd.errors import InputError
from pgflkd.gallery import Gallery, Qdrant


def noise(file, seed, size=(32, 16), **options):
    "A picture of nobody, the same for the same `seed`"
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return file


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A small student with random weights, as ONNX: it starts fast"
    from pgflkd.baseline import Baseline, reid_body
    from pgflkd.deploy import export
    torch.manual_seed(0)
    net = Baseline(reid_body('resnet18', None, stride=16), 5)
    with torch.no_grad(): net.train()(torch.randn(16, 3, 32, 16))
    return export(net.eval(), tmp_path_factory.mktemp('model')/'student.safetensors', onnx=True, size=(32, 16))


@pytest.fixture
def onnx(model): return str(model.with_suffix('.onnx'))


@pytest.fixture
def crops(tmp_path):
    "Three people before two cameras"
    for i in range(6): noise(tmp_path/f'crops/000{i//2+1}_c{i%2+1}s1_00000{i}_00.png', i)
    return tmp_path/'crops'


def said(command, *args, **options):
    "What a command prints and, if it refuses, says"
    import io
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try: command(*map(str, args), **options)
        except SystemExit: pass
    return out.getvalue()


def embed(*args, **options):
    from pgflkd.commands.embed import embed_command
    return said(embed_command, *args, **options)


def search(*args, **options):
    from pgflkd.commands.search import search_command
    return said(search_command, *args, **options)


def by_name(folder):
    "The table of the gallery, by the names of the files"
    table = Gallery.open(folder).table
    return table.assign(fn=[os.path.basename(fn) for fn in table.fn]).set_index('fn')


def features_by_name(folder):
    "The features of the gallery, by the names of the files"
    moment = Gallery.open(folder)._now()
    return {os.path.basename(fn): f for fn, f in zip(moment.table.fn, moment.features)}


# Names in a table (B02), with the gallery as it was

@pytest.mark.parametrize('row', ['1,0,noon', '"a\rb",0,'])
def test_a_table_is_refused_before_the_first_picture(row, crops, onnx, tmp_path):
    fn = sorted(os.listdir(crops))[0]
    (tmp_path/'t.csv').write_text(f'fn,pid,camid,time\n{fn},{row}\n', newline='')
    embed(crops, model=onnx, out=tmp_path/'g')
    before = Gallery.open(tmp_path/'g').facts
    told = embed(crops, out=tmp_path/'g', table=tmp_path/'t.csv')
    assert told.count('\n')==1 and Gallery.open(tmp_path/'g').facts==before, told
    assert Gallery.open(tmp_path/'g').check()==6


def test_a_table_as_windows_writes_it(crops, onnx, tmp_path):
    "A BOM, blanks after the commas, semicolons, a person called NA"
    fns = sorted(os.listdir(crops))
    text = ''.join(f'{fn}; {pid}; door\n' for fn, pid in zip(fns, ['ann', 'NA', '0007', '', 'None', 'bob']))
    (tmp_path/'t.csv').write_bytes(('\ufefffn; pid; camid\n'+text).encode())
    assert 'known: ' in embed(crops, model=onnx, out=tmp_path/'g', table=tmp_path/'t.csv')
    table = by_name(tmp_path/'g')
    assert [o.strip() for o in table.pid]==['ann', 'NA', '0007', '', 'None', 'bob']


def test_a_picture_that_stands_twice(crops, onnx, tmp_path):
    "Twice the same row is one; two people on one picture are refused"
    fn = sorted(os.listdir(crops))[0]
    (tmp_path/'t.csv').write_text(f'fn,pid\n{fn},1\n{fn},1\n')
    embed(crops, model=onnx, out=tmp_path/'g', table=tmp_path/'t.csv')
    assert len(Gallery.open(tmp_path/'g'))==1
    (tmp_path/'t.csv').write_text(f'fn,pid\n{fn},1\n{fn},2\n')
    assert f'{fn}' in embed(crops, out=tmp_path/'g', table=tmp_path/'t.csv') and len(Gallery.open(tmp_path/'g'))==1


# Identity by content: what was repaired, corrected or taken away

def nothing_happens(job, folder):
    "The gallery is the same before and after `job`"
    before = Gallery.open(folder).facts
    job()
    assert Gallery.open(folder).facts==before


def test_the_gallery_follows_the_folder(crops, onnx, tmp_path):
    "Nothing changed: nothing is done. A repaired picture and a corrected name replace their rows, the rest is kept"
    fns, g = sorted(os.listdir(crops)), tmp_path/'g'
    pd.DataFrame(dict(fn=fns, pid=[f'p{i}' for i in range(6)])).to_csv(tmp_path/'t.csv', index=False)
    embed(crops, model=onnx, out=g, table=tmp_path/'t.csv')
    nothing_happens(lambda: embed(crops, out=g, table=tmp_path/'t.csv'), g)
    was, old = by_name(g), features_by_name(g)
    noise(crops/fns[2], 99)
    (tmp_path/'t.csv').write_text(f'fn,pid\n{fns[4]},ann\n{fns[2]},\n')
    embed(crops, out=g, table=tmp_path/'t.csv')
    now = by_name(g)
    assert now.pid[fns].tolist()==['p0', 'p1', 'p2', 'p3', 'ann', 'p5']
    assert [fn for fn in fns if now.id[fn]!=was.id[fn]]==[fns[2], fns[4]]
    assert moved(old, features_by_name(g))==[fns[2]]


def moved(old, new):
    "The names whose features are others than before"
    assert all(new[fn]@old[fn]>.99999 or new[fn]@old[fn]<.999 for fn in old)
    return [fn for fn in sorted(old) if new[fn]@old[fn]<.999]


def test_forgotten_for_good(crops, onnx, tmp_path):
    "Pictures that were deleted leave the gallery with --prune, other folders stay, and no file keeps the numbers"
    g, other = tmp_path/'g', tmp_path/'crops2'
    noise(other/'0009_c1_5.png', 9)
    embed(crops, model=onnx, out=g)
    embed(other, out=g)
    gone = sorted(crops.glob('0002*'))
    moment = Gallery.open(g)._now()
    numbers = [moment.features[i].tobytes() for i, fn in enumerate(moment.table.fn) if '/0002' in fn]
    (g/'.features-9.npy.77.tmp').write_bytes(numbers[0])          # what a killed process left
    for file in gone: file.unlink()
    embed(crops, out=g)
    assert len(Gallery.open(g))==7                                 # without --prune nothing is taken out
    embed(crops, out=g, prune=True)
    assert sorted(by_name(g).pid)==[1, 1, 3, 3, 9]
    kept = b''.join(file.read_bytes() for file in g.iterdir())
    assert not any(o in kept for o in numbers) and b'0002_c' not in kept
    for file in crops.iterdir(): file.unlink()
    embed(crops, out=g, prune=True)
    assert by_name(g).pid.tolist()==[9]


def test_killed_in_the_middle_goes_on(crops, onnx, tmp_path, monkeypatch):
    "What was added before the kill is there, is not done again, and a picture that changed meanwhile is"
    g = Gallery.create(tmp_path/'g', onnx)
    table = pd.DataFrame(dict(fn=[str(o) for o in sorted(crops.iterdir())]))
    def stop(parts):
        yield from list(parts)[:2]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): g.fill(table, every=2, progress=stop)
    assert len(g)==4
    ids = set(g.table.id)
    noise(crops/os.path.basename(table.fn[0]), 50)
    g.fill(table, every=2)
    assert len(g)==6 and len(ids & set(g.table.id))==3


# Who made these features?

def test_a_gallery_knows_its_network(crops, model, tmp_path):
    "It holds its network as ONNX, so the file may go; another network is refused, and pictures where none is known"
    from pgflkd.baseline import Baseline, reid_body
    from pgflkd.deploy import export
    torch.manual_seed(1)
    mine = tmp_path/'mine.safetensors'
    mine.write_bytes(model.read_bytes())
    embed(crops, model=str(mine), out=tmp_path/'g')
    query = sorted(crops.iterdir())[3]
    mine.unlink()
    assert query.name in search(tmp_path/'g', query, top=1)
    (tmp_path/'g/network.onnx').unlink()
    assert 'mine.safetensors is gone; give the file as' in search(tmp_path/'g', query)
    other = export(Baseline(reid_body('resnet18', None, stride=16), 5).eval(), mine, size=(32, 16))
    assert 'holds features of another network' in search(tmp_path/'g', query)
    assert 'holds features of another network' in search(tmp_path/'g', query, model=str(other))
    assert query.name in search(tmp_path/'g', query, top=1, model=str(model))
    Gallery.create(tmp_path/'numbers', dim=512).add(np.ones((1, 512)))
    with pytest.raises(InputError, match='nobody knows the network'): Gallery.open(tmp_path/'numbers', model)


def test_numbers_that_are_none(crops, onnx, tmp_path):
    "A network with a NaN in it, and features with one, are named before they are kept"
    from pgflkd.deploy import Embedder, load_embedder
    good = load_embedder(onnx)
    bad  = Embedder(lambda x: np.full((len(x), 512), np.nan, np.float32), good.card)
    g = Gallery.create(tmp_path/'g', bad)
    table = pd.DataFrame(dict(fn=[str(o) for o in sorted(crops.iterdir())]))
    with pytest.raises(InputError, match='student.onnx: features of shape'): g.fill(table)
    with pytest.raises(InputError, match='finite numbers'): g.add(np.full((1, 512), np.inf))
    assert len(g)==0


# Pictures (B05, B06, B12, B14)

def test_one_meaning_of_a_picture(onnx, tmp_path):
    "Turned by EXIF, 16-bit grey, transparent: the same person"
    for i in range(6): noise(tmp_path/f'crops/{i}.png', i)
    embed(tmp_path/'crops', model=onnx, out=tmp_path/'h')
    upright, exif = Image.open(tmp_path/'crops/3.png'), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.ROTATE_90).save(tmp_path/'turned.png', exif=exif)
    clear = upright.convert('RGBA')
    clear.putalpha(255)
    clear.save(tmp_path/'clear.png')
    opened = Gallery.open(tmp_path/'h')
    for answer in opened.search([tmp_path/'turned.png', tmp_path/'clear.png'], 1):
        assert answer.fn[0].endswith('3.png') and answer.score[0]>.9999


def test_16_bit_grey_is_grey(onnx, tmp_path):
    from pgflkd.deploy import load_embedder
    grey = Image.open(noise(tmp_path/'a.png', 3)).convert('L')
    grey.save(tmp_path/'grey.png')
    Image.fromarray(np.asarray(grey).astype(np.uint16)*256).save(tmp_path/'grey16.png')
    a, b = load_embedder(onnx).features([tmp_path/'grey.png', tmp_path/'grey16.png'])
    assert a@b>.9999


@pytest.mark.skipif(sys.platform!='linux', reason='other systems have no such names')
def test_a_name_that_is_no_text(crops, onnx, tmp_path):
    os.rename(os.fsencode(sorted(crops.iterdir())[0]), os.fsencode(crops)+b'/\xb9\xfb_1.png')
    told = embed(crops, model=onnx, out=tmp_path/'g')
    assert told.count('\n')==1 and 'the name is no UTF-8; rename the file' in told
    assert not (tmp_path/'g').exists()


def test_a_folder_of_all_sorts(crops, onnx, tmp_path):
    "Hidden files and thumbnails are no pictures, links are followed, .tif counts"
    noise(crops/'.thumbs/x.png', 1)
    (crops/'._0001.png').write_bytes(b'\0\5')
    noise(crops/'deep/9.tif', 9)
    noise(tmp_path/'far/8.png', 8)
    (crops/'link').symlink_to(tmp_path/'far')
    embed(crops, model=onnx, out=tmp_path/'g')
    assert len(by_name(tmp_path/'g'))==8 and {'9.tif', '8.png'}<=set(by_name(tmp_path/'g').index)


# Options are obeyed or refused

def test_pattern(onnx, tmp_path):
    "People by folder, cameras and people by name; as text, for a name may begin with zeros"
    noise(tmp_path/'a/ann/1.png', 1)
    noise(tmp_path/'b/door_0007_x.png', 2)
    embed(tmp_path/'a', model=onnx, out=tmp_path/'ga', pattern='{person}/*')
    embed(tmp_path/'b', model=onnx, out=tmp_path/'gb', pattern='{camera}_{person}_*')
    assert by_name(tmp_path/'ga').pid.tolist()==['ann']
    assert by_name(tmp_path/'gb')[['pid', 'camid']].values.tolist()==[['0007', 'door']]


def test_flip_belongs_to_the_gallery(crops, onnx, tmp_path):
    "A picture and its mirror image are the same there, for queries too"
    embed(crops, model=onnx, out=tmp_path/'g', flip=True)
    query = sorted(crops.iterdir())[3]
    Image.open(query).transpose(Image.FLIP_LEFT_RIGHT).save(tmp_path/'mirrored.png')
    answer = Gallery.open(tmp_path/'g').search(tmp_path/'mirrored.png', 1)
    assert os.path.samefile(answer.fn[0], query) and answer.score[0]>.9999
    embed(crops, model=onnx, out=tmp_path/'plain')
    assert Gallery.open(tmp_path/'plain').search(tmp_path/'mirrored.png', 1).score[0]<.999
    assert 'was made without --flip' in embed(crops, out=tmp_path/'plain', flip=True)
    assert '0 skipped' in embed(crops, out=tmp_path/'g')           # goes on as it is


def crowd(folder):
    "A gallery of 300 random features, and these"
    g, rows = Gallery.create(folder, dim=16), np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    g.add(rows)
    return g, rows


def test_several_together(tmp_path):
    "The mean of the features is asked, by one answer"
    g, rows = crowd(tmp_path/'g')
    kept = g._now().features
    slow = np.argsort(-(kept@kept[:3].mean(0)), kind='stable')[:5]
    assert g.search(rows[:3], 5, together=True).id.tolist()==slow.tolist()


def test_rerank(tmp_path):
    "Re-ranking puts the same rows in another order, and depends on no other query"
    from pgflkd.rerank import k_reciprocal
    g, rows = crowd(tmp_path/'g')
    kept = g._now().features
    plain, ordered = g.search(rows[7], 200), g.search(rows[7], 200, rerank=k_reciprocal)
    assert set(plain.id)==set(ordered.id) and plain.id.tolist()!=ordered.id.tolist()
    slow = k_reciprocal(torch.tensor(kept[7:8]), torch.tensor(kept[plain.id.to_numpy()]))[0].argsort(stable=True)
    assert ordered.id.tolist()==plain.id[slow.numpy()].tolist()
    assert np.allclose(ordered.score, kept[ordered.id.to_numpy()]@kept[7], atol=1e-6)
    many = g.search(rows[5:9], 10, rerank=k_reciprocal)
    assert many[2].id.tolist()==ordered.id[:10].tolist()


def two_cameras(folder):
    "Thirty people before two cameras of different exposure"
    for pid in range(30):
        for camera in (1, 2):
            file = noise(folder/f'{pid+1:04d}_c{camera}_{camera}.png', pid)
            Image.open(file).point(lambda v, k=camera: max(v-9*k, 0)).save(file)


def test_calibrated_from_the_shell(onnx, tmp_path):
    "A stranger is nobody, a person is found; the promise says when it is old, and is none for several together"
    two_cameras(tmp_path/'crops')
    told = embed(tmp_path/'crops', model=onnx, out=tmp_path/'g', calibrate=.05)
    assert 'of 30 people' in told and 'are found' in told
    stranger, known = noise(tmp_path/'q/stranger.png', 1000), noise(tmp_path/'q/known.png', 4)
    told = search(tmp_path/'g', tmp_path/'q', top=3, picture=str(tmp_path/'answer.png'))
    assert told.count('nobody')==1 and told.index('stranger.png:')<told.index('nobody'), told
    assert 'false-accept rate 5.0%, calibrated among 60 pictures)' in told
    assert Image.open(tmp_path/'answer.png').size==(4*120, 2*250)
    assert 'nobody' not in search(tmp_path/'g', stranger, known, together=True)
    Gallery.open(tmp_path/'g').add(np.eye(512)[:60])
    assert 'there are 120 now, calibrate again' in search(tmp_path/'g', known)
    assert 'some pictures have no pid' in embed(tmp_path/'crops', out=tmp_path/'g', calibrate=.05)


@pytest.mark.parametrize('table, why', [
    (dict(pid=[1]*40, camid=[0, 1]*20), '1 people cannot tell'),
    (dict(pid=np.arange(40)//2, camid=[0]*40), 'nobody is in it by two cameras'),
    (dict(pid=[-1]*40), '0 people cannot tell'),
    (dict(pid=[*range(39), None]), 'some pictures have no pid')])
def test_degenerate_calibration(table, why, tmp_path):
    "One person, one camera, junk only, a person unknown: said, and the gallery stays as it was"
    g = Gallery.create(tmp_path/'g', dim=8)
    g.add(np.random.default_rng(0).normal(size=(40, 8)), pd.DataFrame(table))
    before = g.facts
    with pytest.raises(InputError, match=why): g.calibrate(.5)
    assert g.facts==before
    for far in (0, 1, -1, 2):
        with pytest.raises(InputError, match='between 0 and 1'): g.calibrate(far)


def test_calibration_without_cameras_leaves_out_the_picture_itself(tmp_path):
    "Nobody's second picture is near: found is 0, and not the 100 % of pictures that find themselves"
    g = Gallery.create(tmp_path/'g', dim=64)
    g.add(np.random.default_rng(0).normal(size=(200, 64)), pd.DataFrame(dict(pid=np.arange(200)//2)))
    assert g.calibrate(.05)['found']<.1


def test_a_copy_of_a_picture_is_not_found_again(onnx, tmp_path):
    "The same bytes in two folders, without cameras: found stays what it was"
    shares = []
    for folders in ('a', 'ab'):
        for folder in folders:
            for pid in range(30): noise(tmp_path/f'{folder}/{pid}_x{folder}.png', pid)
            for pid in range(30): noise(tmp_path/f'{folder}/{pid}_y{folder}.png', 100+pid)
        g = Gallery.create(tmp_path/f'g{folders}', onnx)
        fns = [str(o) for folder in folders for o in sorted((tmp_path/folder).iterdir())]
        g.fill(pd.DataFrame(dict(fn=fns, pid=[os.path.basename(fn).split('_')[0] for fn in fns])))
        shares.append(g.calibrate(.1)['found_without'])
    assert shares[0]==shares[1]<1


def test_a_renamed_folder_keeps_what_is_known(crops, onnx, tmp_path):
    "Each picture once, with the person of the table and the number it had; an answer shows a file that is there"
    fns, g = sorted(os.listdir(crops)), tmp_path/'g'
    pd.DataFrame(dict(fn=fns, pid=[f'p{i}' for i in range(6)])).to_csv(tmp_path/'t.csv', index=False)
    embed(crops, model=onnx, out=g, table=tmp_path/'t.csv')
    was = by_name(g)
    crops.rename(tmp_path/'renamed')
    embed(tmp_path/'renamed', out=g)
    now = by_name(g)
    assert len(Gallery.open(g))==6 and now.id.equals(was.id) and now.pid.equals(was.pid)
    assert 'renamed' in search(g, tmp_path/'renamed'/fns[0], top=1)
    shutil.copytree(tmp_path/'renamed', tmp_path/'copied')                    # the old ones are there: other pictures
    embed(tmp_path/'copied', out=g)
    assert len(Gallery.open(g))==12


def test_what_has_no_file_did_not_move(onnx, tmp_path):
    "A feature without a picture, beside one whose folder was renamed"
    g = Gallery.create(tmp_path/'g', onnx)
    g.add(np.ones((1, 512)), pd.DataFrame(dict(pid=['eve'])))
    for folder in ('a', 'b'):
        if folder=='b': os.rename(tmp_path/'a', tmp_path/'b')
        g.fill(pd.DataFrame(dict(fn=[noise(tmp_path/f'{folder}/x.png', 1)], pid=['ann'])))
    assert g.table[['fn', 'pid']].values.tolist()==[['', 'eve'], [str(tmp_path/'b/x.png'), 'ann']]


def test_a_threshold_follows_the_gallery(onnx, tmp_path):
    "Each call that changes a calibrated gallery calibrates it at its rate; if it cannot be, it says so"
    two_cameras(tmp_path/'crops')
    embed(tmp_path/'crops', model=onnx, out=tmp_path/'g', calibrate=.1)
    first = Gallery.open(tmp_path/'g').facts['threshold']
    nothing_happens(lambda: embed(tmp_path/'crops', out=tmp_path/'g'), tmp_path/'g')
    for file in sorted((tmp_path/'crops').iterdir())[:20]: file.unlink()
    told = embed(tmp_path/'crops', out=tmp_path/'g', prune=True)
    now = Gallery.open(tmp_path/'g').facts['threshold']
    assert 'of 20 people' in told and (first['size'], now['size'], now['far'])==(60, 40, .1)
    for file in sorted((tmp_path/'crops').iterdir())[:30]: file.unlink()
    told = embed(tmp_path/'crops', out=tmp_path/'g', prune=True)
    assert 'as before: it cannot be calibrated again' in told and '5 people cannot tell a rate of 0.1' in told
    asked = search(tmp_path/'g', sorted((tmp_path/'crops').iterdir())[0])
    assert 'calibrated among 40 pictures; there are 10 now, calibrate again' in asked


def test_dates_are_no_people(onnx, tmp_path):
    "20240301_c1_093000.png was taken in March and shows nobody known"
    noise(tmp_path/'crops/20240301_c1_093000.png', 1)
    embed(tmp_path/'crops', model=onnx, out=tmp_path/'g')
    assert Gallery.open(tmp_path/'g').table.pid.isna().all()


def test_files_of_a_gallery_can_be_shared(crops, model, tmp_path):
    "Modes follow the umask: other users of a service read what its owner lets them read"
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        old = os.umask(mask)
        try: embed(crops, model=str(model.with_suffix('.onnx')), out=tmp_path/f'g{mode}')
        finally: os.umask(old)
        modes = {o.name: stat.S_IMODE(o.stat().st_mode) for o in (tmp_path/f'g{mode}').iterdir() if o.name!='.lock'}
        assert set(modes.values())=={mode}, modes


# Qdrant (B04)

def test_a_server_gets_features_and_nothing_else(tmp_path):
    "No names, no cameras; a change of the width is a new collection; filters agree with numpy"
    client = pytest.importorskip('qdrant_client').QdrantClient(':memory:')
    rng = np.random.default_rng(0)
    for width in (16, 8):
        g = Gallery.create(tmp_path/f'{width}/gallery', dim=width)
        g.add(rng.normal(size=(60, width)), pd.DataFrame(dict(pid='ann', camid=['door', 'hall', '']*20)))
        served = Gallery.open(g.folder, search=Qdrant(client, exact=False))
        query = rng.normal(size=width)
        for rule in (dict(), dict(camera='door'), dict(not_camera='hall'), dict(time=(0, 9))):
            assert served.search(query, 7, **rule).id.tolist()==g.search(query, 7, **rule).id.tolist()
        points = client.scroll(f'pgflkd-{g.facts["id"]}', limit=99)[0]
        assert len(points)==60 and not any(p.payload for p in points)


def test_search_needs_no_torch(crops, onnx, tmp_path):
    "With the network as ONNX, a search, a picture of it and a second embedding run where torch is not installed"
    embed(crops, model=onnx, out=tmp_path/'g')
    code = f'''
import sys
sys.modules['torch'] = None
from pgflkd.commands.search import search_command
search_command({str(tmp_path/'g')!r}, {str(crops)!r}, top=2, picture={str(tmp_path/'a.png')!r})'''
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.stdout.count('.png:')==6 and (tmp_path/'a.png').exists(), done.stderr
