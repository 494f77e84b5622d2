"""Benchmarks in miniature, made of rendered people: the folders and names of the originals, written out by hand so that the readers' own table is not asked what is right.
`write(format, variant, root, pics)` writes one and returns what a reader must find: {(role, query_set): [(pid, camid), ...]}."""
import shutil
from pathlib import Path
from PIL import Image

def _put(src, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.suffix in ('.jpg',): shutil.copy(src, to)
    else: Image.open(src).save(to)

class Book:
    "Writes pictures, remembers what was written"
    def __init__(self, root, pics): self.root, self.pics, self.n, self.found = Path(root), pics, 0, {}
    def add(self, path, role, pid, camid, query_set=''):
        _put(self.pics[self.n%len(self.pics)], self.root/path); self.n += 1
        if role: self.found.setdefault((role, query_set), []).append((pid, camid))

def _three(book, name, fold, people=dict(train=(2,7), query=(1,3), gallery=(1,3)), cams=(1,2,3), shots=2):
    for role,pids in people.items():
        for p in pids:
            for c in cams:
                for s in range(1 if role=='query' else shots): book.add(fold(role, p)/name(p, c, s+10*(role=='gallery')), role, p, c-1)

def _box(under=''): return lambda role, p: Path(under)/dict(train='bounding_box_train', query='query', gallery='bounding_box_test')[role]
def _market(p, c, s): return f'{p:04d}_c{c}s1_{451+s:06d}_{s+1:02d}.jpg'
def _duke(p, c, s): return f'{p:04d}_c{c}_f{46182+120*s:07d}.jpg'

def market(book, under, fold=None):
    fold = fold or _box(under); _three(book, _market, fold)
    book.add(fold('gallery', -1)/'-1_c2s1_003201_04.jpg', 'gallery', -1, 1); book.add(fold('gallery', 0)/'0000_c3s1_080451_01.jpg', 'gallery', 0, 2)
    (book.root/fold('gallery', 0)/'Thumbs.db').touch(); (book.root/fold('train', 2)/'._0002_c1s1_000451_01.jpg').touch()

def layumi(book, under):
    at = dict(train='train_all', query='query', gallery='gallery')
    market(book, '', lambda role, p: Path(under)/at[role]/('-1' if p==-1 else f'{p:04d}'))
    for p in (2,7): book.add(Path(under)/f'val/{p:04d}/{_market(p,1,0)}', None, 0, 0)      # layumi's validation pictures are copies
    book.add(Path(under)/f'multi-query/0001/{_market(1,2,9)}', None, 0, 0)

def duke(book, under):
    _three(book, _duke, _box(under)); book.add(_box(under)('gallery', 5)/_duke(5, 8, 3), 'gallery', 5, 7)    # who passes one camera only distracts, under a number of his own

def occluded_duke(book, under):
    _three(book, _duke, _box(under))
    for p in (1,3): book.add(_box(under)('gallery', p)/_duke(p, 2, 0), 'gallery', p, 1)    # the query's own file, once more

def _small(book, query, gallery, name, people, nq, ng, set_, role='query'):
    for p in people:
        for s in range(nq): book.add(query/name(p, s), role, p, 0, set_)
        for s in range(ng if gallery else 0): book.add(gallery/name(p, s), 'gallery', p, 1)

def occluded_reid(book, under, ext, person):
    name = lambda p, s: Path(f'{p:03d}' if person else '')/f'{p:03d}_{s+1:02d}{ext}'
    _small(book, Path(under)/'occluded_body_images', Path(under)/'whole_body_images', name, (1,2,17,200), 5, 5, 'occluded')

def occluded_reid_flat(book, under): _small(book, Path(under)/'query', Path(under)/'gallery', lambda p, s: f'{p:03d}_{s+1:02d}.jpg', (1,2,200), 5, 5, 'occluded')
def occluded_reid_renamed(book, under):
    for q,f in ((1,'occluded_body_images'), (3,'whole_body_images')):
        for p in (1,44,200):
            for s in range(5): book.add(Path(under)/f/f'{p:04d}_c{q}_{s+1:02d}.jpg', 'query' if q==1 else 'gallery', p, int(q==3), 'occluded' if q==1 else '')

def partial_reid(book, under, sets=('occluded','partial')):
    name = lambda p, s: f'{p:03d}_{s+1:03d}.jpg'
    for i,q in enumerate(sets): _small(book, Path(under)/f'{q}_body_images', None if i else Path(under)/'whole_body_images', name, (1,9,60), 5, 5, q)

def partial_ilids(book, query, gallery, name, shots): _small(book, Path(query), Path(gallery), name, (1,50,119), shots, shots, 'partial')

def msmt17(book, under, train, test):
    lists = dict(train=[], val=[], query=[], gallery=[]); stamp = lambda p, s, c: f'{p:04d}/{p:04d}_{s:03d}_{c:02d}_0303morning_{8+s:04d}_{s%3}.jpg'
    for role,fold,people in (('train',train,(0,1,1040)), ('val',train,(0,)), ('query',test,(0,1,3059)), ('gallery',test,(0,1,3059))):
        for p in people:
            for s,c in enumerate((1,8,15)):
                n = stamp(p, s+dict(train=0, val=5, query=0, gallery=7)[role], c); lists[role].append(f'{n} {p}')
                book.add(Path(under)/fold/n, None if role=='val' else role, p+(1 if role=='train' else 10001), c-1)
    for r,o in lists.items(): (book.root/under/f'list_{r}.txt').write_text('\n'.join(o)+'\n')

def cuhk03(book, under, boxes): _three(book, lambda p, c, s: f'{p:04d}_c{c}_{s+1}.png', _box(f'{under}/{boxes}' if under or boxes else ''), cams=(1,2))

def p_duke(book, under):
    for split,people in (('train',(2,7)), ('test',(1,3))):
        for cam,kind in enumerate(('occluded','whole')):
            for p in people:
                for s in range(3): book.add(Path(under)/split/f'{kind}_body_images/{p:04d}/{p:04d}_c{s+1}_f{46182+120*s+cam:07d}.jpg', 'train' if split=='train' else ('query','gallery')[cam], p, cam, 'occluded' if (split,cam)==('test',0) else '')

_shot = lambda p, s: f'{p:04d}{s+1:03d}.jpg'
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
    ('occluded_reid','PVPM, jpg a person'): lambda b: occluded_reid(b, 'ICME2018_Occluded-Person-Reidentification_datasets/Occluded_REID', '.jpg', True),
    ('occluded_reid','HPNet, flat'): lambda b: occluded_reid(b, 'Occluded_REID', '.jpg', False),
    ('occluded_reid','fast-reid, query and gallery'): lambda b: occluded_reid_flat(b, 'OccludedREID'),
    ('occluded_reid','DPM, renamed'): lambda b: occluded_reid_renamed(b, 'Occluded_REID'),
    ('partial_reid','both query sets'): lambda b: partial_reid(b, 'Partial-REID_Dataset'),
    ('partial_reid','fast-reid, partial only'): lambda b: partial_reid(b, 'Partial_REID', ('partial',)),
    ('partial_reid','KPR, occluded only'): lambda b: partial_reid(b, '', ('occluded',)),
    ('partial_ilids','DSR'): lambda b: partial_ilids(b, 'Partial_iLIDS/Probe', 'Partial_iLIDS/Gallery', lambda p, s: f'{p}.jpg', 1),
    ('partial_ilids','DSR, three digits'): lambda b: partial_ilids(b, 'Partial_iLIDS/Probe', 'Partial_iLIDS/Gallery', lambda p, s: f'{p:03d}.jpg', 1),
    ('partial_ilids','BPBReID'): lambda b: partial_ilids(b, 'Partial_iLIDS/partial_body_images', 'Partial_iLIDS/whole_body_images', lambda p, s: f'{p:03d}.jpg', 1),
    ('partial_ilids','FPR'): lambda b: partial_ilids(b, 'PartialILIDS/Probe', 'PartialILIDS/Gallery', _shot, 2),
    ('partial_ilids','fast-reid'): lambda b: partial_ilids(b, 'PartialiLIDS/query', 'PartialiLIDS/gallery', lambda p, s: f'{p:03d}_{s+1:02d}.jpg', 2),
    ('msmt17','V1'): lambda b: msmt17(b, 'MSMT17_V1', 'train', 'test'),
    ('msmt17','V2'): lambda b: msmt17(b, 'MSMT17_V2', 'mask_train_v2', 'mask_test_v2'),
    ('cuhk03','labelled'): lambda b: cuhk03(b, 'cuhk03-np', 'labeled'),
    ('cuhk03','other spelling'): lambda b: cuhk03(b, 'CUHK03-NP', 'labelled'),
    ('cuhk03','one half'): lambda b: cuhk03(b, '', ''),
    ('cuhk03_detected','detected'): lambda b: (cuhk03(b, 'cuhk03-np', 'detected'), cuhk03(Book(b.root, b.pics), 'cuhk03-np', 'labeled')),
    ('p_duke','author'): lambda b: p_duke(b, 'P-DukeMTMC-reid'),
    ('p_duke','PVPM'): lambda b: p_duke(b, 'ICME2018_Occluded-Person-Reidentification_datasets/P-DukeMTMC-reid'),
}

def write(format, variant, root, pics):
    book = Book(root, pics); VARIANTS[format, variant](book)
    return book.found
