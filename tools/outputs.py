"""The outputs that are saved in the notebooks, and the code and tables they were made from.

    python tools/outputs.py course/05_losses ...            run, keep outputs, shrink figures, note the code
    python tools/outputs.py --record course/05_losses ...   the same without running: another tool has just run it
    python tools/outputs.py --check                         which have code, or tables, newer than their outputs?
"""
import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTED = ROOT/'tools/outputs.json'

def notebooks():
    "Name -> path, for example 'course/05_losses'"
    paths = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
    return {p.relative_to(ROOT/'nbs').with_suffix('').as_posix(): p for p in paths}

def cells(path):
    "The cells of the notebook `path`"
    return json.loads(path.read_text(encoding='utf-8'))['cells']

def made_of(path):
    "Hash of the code cells of the notebook `path` and of the tables in the folders of results/ that they name"
    code = '\0'.join(''.join(c['source']) for c in cells(path) if c['cell_type']=='code')
    named = set(re.findall(r"""(?<=['"/])\w+(?=['"/])""", code)) if '../results/' in code else set()
    named -= {'results'}
    every = sorted((ROOT/'results').rglob('*.csv'))
    tables = [p.read_bytes() for p in every if p.parent.name in named or f'results/{p.name}' in code]
    return hashlib.sha256(b'\0'.join([code.encode(), *tables])).hexdigest()[:16]

def stale():
    "What is wrong, a line a notebook"
    was = json.loads(NOTED.read_text())
    now = {k: made_of(p) for k, p in notebooks().items()}
    changed = [k for k in now if was.get(k)!=now[k]]
    old = [f'{k}: its code or a table is newer than its outputs; run python tools/outputs.py {k}' for k in changed]
    return old + [f'{k}: no such notebook; take it out of {NOTED.name}' for k in was if k not in now]

def fewest(im):
    "The picture `im` with 32 or 64 colours if its values change by less than half a step on the average, else with 256"
    from PIL import Image, ImageChops, ImageStat
    for n in (32, 64):
        few = im.quantize(n, dither=Image.Dither.NONE)
        if max(ImageStat.Stat(ImageChops.difference(im, few.convert('RGB'))).mean)<.5: return few
    return im.quantize(256, dither=Image.Dither.NONE)

def small_png(data):
    "The PNG in the base64 text `data` with few colours, if that is smaller"
    from PIL import Image
    im = Image.open(io.BytesIO(base64.b64decode(data)))
    if im.mode=='P': return data
    buffer = io.BytesIO()
    fewest(im.convert('RGB')).save(buffer, 'PNG', optimize=True)
    small = base64.b64encode(buffer.getvalue()).decode() + '\n'*data.endswith('\n')
    return min(small, data, key=len)

def lightest(data):
    "Keep one picture in an output's `data`: its JPEG, a PNG of few colours, or a JPEG in the place of a large one"
    from PIL import Image
    if 'image/jpeg' in data: data.pop('image/png', None)
    if 'image/png' not in data: return
    data['image/png'] = small = small_png(''.join(data['image/png']))
    if len(small)<50_000: return
    buffer = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(small))).convert('RGB').save(buffer, 'JPEG', quality=60, optimize=True)
    photo = base64.b64encode(buffer.getvalue()).decode() + '\n'
    if len(photo)<.8*len(small):
        data['image/jpeg'] = photo
        del data['image/png']

def shrink(path):
    "Save PNGs in the outputs of `path` with few colours or as JPEG, and tables as HTML alone; bytes gained"
    old = path.read_text(encoding='utf-8')
    nb = json.loads(old)
    for data in [o['data'] for c in nb['cells'] for o in c.get('outputs', []) if 'data' in o]:
        if 'text/html' in data: data.pop('text/plain', None)
        lightest(data)
    text = json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n'      # as nbdev-clean writes it
    if text!=old: path.write_text(text, encoding='utf-8')
    return len(old)-len(text)

def run(name):
    "Run the notebook `name` and keep its outputs"
    import nbformat
    sys.path.insert(0, str(ROOT/'tests'))
    from test_notebooks import execute
    path = notebooks()[name]
    nbformat.write(execute(path), path)
    subprocess.run(['nbdev-clean', '--fname', str(path)], cwd=ROOT, check=True)

def record(names):
    "Shrink the figures of the notebooks `names` and note what they were made of"
    known = json.loads(NOTED.read_text()) if NOTED.exists() else {}
    for name in names:
        path = notebooks()[name]
        gained = shrink(path)
        known[name] = made_of(path)
        print(f'{name}: {path.stat().st_size//1000} kB' + f', {gained//1000} kB less'*(gained>0))
    NOTED.write_text(json.dumps({k: known[k] for k in sorted(known) if k in notebooks()}, indent=1) + '\n')

if __name__=='__main__':
    args = sys.argv[1:]
    if args[:1]==['--check']: sys.exit('\n'.join(stale()) or None)
    names = [o.removeprefix('nbs/').removesuffix('.ipynb') for o in args if o!='--record']
    unknown = [o for o in names if o not in notebooks()] if names else ['(none given)']
    if unknown: sys.exit(f'{unknown[0]}: no such notebook in nbs/; for example course/05_losses')
    for name in [] if args[0]=='--record' else names: run(name)
    record(names)
