"""Benchmarks in miniature, made of rendered people: the folders and names of the originals.

Written out by hand, so that the readers' own table is not asked what is right. `write(format, variant, root, pics)`
writes one and returns what a reader must find: {(role, query_set): [(pid, camid), ...]}.
"""
import shutil
from pathlib import Path

from PIL import Image

def _put(src, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.suffix=='.jpg': shutil.copy(src, to)
    else: Image.open(src).save(to)

class Book:
    "Writes pictures, remembers what was written"
    def __init__(self, root, pics):
        self.root, self.pics = Path(root), pics
        self.n, self.found = 0, {}
    def add(self, path, role, pid, camid, query_set=''):
        _put(self.pics[self.n%len(self.pics)], self.root/path)
        self.n += 1
        if role: self.found.setdefault((role, query_set), []).append((pid, camid))

PEOPLE = dict(train=(2,7), query=(1,3), gallery=(1,3))

def _three(book, name, fold, cams=(1,2,3)):
    for role,pids in PEOPLE.items():
        for p in pids:
            for c in cams:
                for s in range(1 if role=='query' else 2):
                    book.add(fold(role, p)/name(p, c, s+10*(role=='gallery')), role, p, c-1)

BOXES = dict(train='bounding_box_train', query='query', gallery='bounding_box_test')
def _box(under=''): return lambda role, p: Path(under)/BOXES[role]
def _market(p, c, s): return f'{p:04d}_c{c}s1_{451+s:06d}_{s+1:02d}.jpg'
def _duke(p, c, s): return f'{p:04d}_c{c}_f{46182+120*s:07d}.jpg'

def market(book, under, fold=None):
    fold = fold or _box(under)
    _three(book, _market, fold)
    book.add(fold('gallery', -1)/'-1_c2s1_003201_04.jpg', 'gallery', -1, 1)
    book.add(fold('gallery', 0)/'0000_c3s1_080451_01.jpg', 'gallery', 0, 2)
    (book.root/fold('gallery', 0)/'Thumbs.db').touch()
    (book.root/fold('train', 2)/'._0002_c1s1_000451_01.jpg').touch()

def layumi(book, under):
    at = dict(train='train_all', query='query', gallery='gallery')
    market(book, '', lambda role, p: Path(under)/at[role]/('-1' if p==-1 else f'{p:04d}'))
    for p in (2,7): book.add(Path(under)/f'val/{p:04d}/{_market(p,1,0)}', None, 0, 0)      # copies, as layumi has them
    book.add(Path(under)/f'multi-query/0001/{_market(1,2,9)}', None, 0, 0)

def duke(book, under):
    _three(book, _duke, _box(under))
    book.add(_box(under)('gallery', 5)/_duke(5, 8, 3), 'gallery', 5, 7)    # seen by one camera only: a distractor

def occluded_duke(book, under):
    _three(book, _duke, _box(under))
    for p in (1,3): book.add(_box(under)('gallery', p)/_duke(p, 2, 0), 'gallery', p, 1)    # the query's own file

def _small(book, folders, name, people, shots, query_set, gallery=True):
    query, whole = map(Path, folders)
    for p in people:
        for s in range(shots): book.add(query/name(p, s), 'query', p, 0, query_set)
        for s in range(shots if gallery else 0): book.add(whole/name(p, s), 'gallery', p, 1)

def _halves(under, kind='occluded'): return Path(under)/f'{kind}_body_images', Path(under)/'whole_body_images'

def occluded_reid(book, under, ext, person):
    def name(p, s): return Path(f'{p:03d}' if person else '')/f'{p:03d}_{s+1:02d}{ext}'
    _small(book, _halves(under), name, (1,2,17,200), 5, 'occluded')

def occluded_reid_flat(book, under):
    def name(p, s): return f'{p:03d}_{s+1:02d}.jpg'
    _small(book, (f'{under}/query', f'{under}/gallery'), name, (1,2,200), 5, 'occluded')

def occluded_reid_renamed(book, under):
    for camera,folder in zip((1,3), _halves(under)):
        role, camid, query_set = ('query', 0, 'occluded') if camera==1 else ('gallery', 1, '')
        for p in (1,44,200):
            for s in range(5): book.add(Path(folder)/f'{p:04d}_c{camera}_{s+1:02d}.jpg', role, p, camid, query_set)

def partial_reid(book, under, sets=('occluded','partial')):
    def name(p, s): return f'{p:03d}_{s+1:03d}.jpg'
    for i,q in enumerate(sets): _small(book, _halves(under, q), name, (1,9,60), 5, q, gallery=not i)

def partial_ilids(book, folders, name, shots): _small(book, folders, name, (1,50,119), shots, 'partial')

def _stamp(p, s, c): return f'{p:04d}/{p:04d}_{s:03d}_{c:02d}_0303morning_{8+s:04d}_{s%3}.jpg'

def msmt17(book, under, train, test):
    tested = (0,1,3059)
    plan = [('train', train, (0,1,1040), 0), ('val', train, (0,), 5), ('query', test, tested, 0)]
    plan.append(('gallery', test, tested, 7))
    for role,fold,people,first in plan:
        lines = []
        for p in people:
            for s,c in enumerate((1,8,15), first):
                lines.append(f'{_stamp(p, s, c)} {p}')
                pid = p+(1 if fold==train else 10001)
                book.add(Path(under)/fold/_stamp(p, s, c), 'train' if role=='val' else role, pid, c-1)   # both lists
        (book.root/under/f'list_{role}.txt').write_text('\n'.join(lines)+'\n')

def cuhk03(book, under, boxes):
    where = _box(f'{under}/{boxes}' if under or boxes else '')
    _three(book, lambda p, c, s: f'{p:04d}_c{c}_{s+1}.png', where, cams=(1,2))

def p_duke(book, under):
    "Occluded pictures are camera 0 and, in the test half, the queries"
    for split,people in (('train', (2,7)), ('test', (1,3))):
        for cam,kind in enumerate(('occluded', 'whole')):
            role = 'train' if split=='train' else ('query', 'gallery')[cam]
            for p in people:
                for s in range(3):
                    name = f'{p:04d}/{p:04d}_c{s+1}_f{46182+120*s+cam:07d}.jpg'
                    query_set = 'occluded' if role=='query' else ''
                    book.add(Path(under)/split/f'{kind}_body_images'/name, role, p, cam, query_set)

def _shot(p, s): return f'{p:04d}{s+1:03d}.jpg'
def _one(p, s): return f'{p}.jpg'
def _one3(p, s): return f'{p:03d}.jpg'
def _two3(p, s): return f'{p:03d}_{s+1:02d}.jpg'

def both_boxes(book):
    cuhk03(book, 'cuhk03-np', 'detected')
    cuhk03(Book(book.root, book.pics), 'cuhk03-np', 'labeled')

DSR = ('Partial_iLIDS/Probe', 'Partial_iLIDS/Gallery')
PVPM = 'ICME2018_Occluded-Person-Reidentification_datasets'
VARIANTS = {   # (format, variant): how to write it
    ('market1501','original'): lambda b: market(b, ''),
    ('market1501','torchreid'): lambda b: market(b, 'market1501/Market-1501-v15.09.15'),
    ('market1501','fast-reid'): lambda b: market(b, 'Market-1501-v15.09.15'),
    ('market1501','strong-baseline'): lambda b: market(b, 'market1501'),
    ('market1501','layumi'): lambda b: layumi(b, 'Market/pytorch'),
    ('duke','original'): lambda b: duke(b, ''),
    ('duke','toolboxes'): lambda b: duke(b, 'dukemtmc-reid/DukeMTMC-reID'),
    ('occluded_duke','own folders'): lambda b: occluded_duke(b, 'Occluded_Duke'),
    ('occluded_duke','here'): lambda b: occluded_duke(b, ''),
    ('occluded_reid','author, tif a person'): lambda b: occluded_reid(b, '', '.tif', True),
    ('occluded_reid','PVPM, jpg a person'): lambda b: occluded_reid(b, f'{PVPM}/Occluded_REID', '.jpg', True),
    ('occluded_reid','HPNet, flat'): lambda b: occluded_reid(b, 'Occluded_REID', '.jpg', False),
    ('occluded_reid','fast-reid, query and gallery'): lambda b: occluded_reid_flat(b, 'OccludedREID'),
    ('occluded_reid','DPM, renamed'): lambda b: occluded_reid_renamed(b, 'Occluded_REID'),
    ('partial_reid','both query sets'): lambda b: partial_reid(b, 'Partial-REID_Dataset'),
    ('partial_reid','fast-reid, partial only'): lambda b: partial_reid(b, 'Partial_REID', ('partial',)),
    ('partial_reid','KPR, occluded only'): lambda b: partial_reid(b, '', ('occluded',)),
    ('partial_ilids','DSR'): lambda b: partial_ilids(b, DSR, _one, 1),
    ('partial_ilids','DSR, three digits'): lambda b: partial_ilids(b, DSR, _one3, 1),
    ('partial_ilids','BPBReID'): lambda b: partial_ilids(b, _halves('Partial_iLIDS', 'partial'), _one3, 1),
    ('partial_ilids','FPR'): lambda b: partial_ilids(b, ('PartialILIDS/Probe', 'PartialILIDS/Gallery'), _shot, 2),
    ('partial_ilids','fast-reid'): lambda b: partial_ilids(b, ('PartialiLIDS/query', 'PartialiLIDS/gallery'), _two3, 2),
    ('msmt17','V1'): lambda b: msmt17(b, 'MSMT17_V1', 'train', 'test'),
    ('msmt17','V2'): lambda b: msmt17(b, 'MSMT17_V2', 'mask_train_v2', 'mask_test_v2'),
    ('cuhk03','labelled'): lambda b: cuhk03(b, 'cuhk03-np', 'labeled'),
    ('cuhk03','other spelling'): lambda b: cuhk03(b, 'CUHK03-NP', 'labelled'),
    ('cuhk03','one half'): lambda b: cuhk03(b, '', ''),
    ('cuhk03_detected','detected'): both_boxes,
    ('p_duke','author'): lambda b: p_duke(b, 'P-DukeMTMC-reid'),
    ('p_duke','PVPM'): lambda b: p_duke(b, f'{PVPM}/P-DukeMTMC-reid'),
}

def write(format, variant, root, pics):
    book = Book(root, pics)
    VARIANTS[format, variant](book)
    return book.found
