"""The outputs that are saved in the notebooks, and the code they were made from (`tools/outputs.json`: notebook -> hash of its code cells).

    python tools/outputs.py 20_losses ...            run each, keep its outputs, shrink its figures, note its code
    python tools/outputs.py --record 20_losses ...   the same without running: right after another tool has run it
    python tools/outputs.py --check                  which notebooks have code that is newer than their outputs?
"""
import base64, hashlib, io, json, os, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
noted = root/'tools/outputs.json'

def code_hash(fn):
    "Hash of the code cells of the notebook `fn`: prose may change, code may not"
    cells = [''.join(c['source']) for c in json.loads(fn.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code']
    return hashlib.sha256('\0'.join(cells).encode()).hexdigest()[:16]

def notebooks(): return {p.stem: p for p in sorted((root/'nbs').glob('*.ipynb'))}

def stale():
    "What is wrong, a line a notebook"
    was, now = json.loads(noted.read_text()), {k: code_hash(p) for k,p in notebooks().items()}
    return ([f'{k}: its code changed after its outputs were made; run python tools/outputs.py {k}' for k in now if was.get(k)!=now[k]] +
            [f'{k}: no such notebook; take it out of {noted.name}' for k in was if k not in now])

def fewest(im):
    "The picture `im` with 32 or 64 colours if that changes its values by less than half a step of 255 on the average, else with 256"
    from PIL import Image, ImageChops, ImageStat
    for n in (32, 64):
        few = im.quantize(n, dither=Image.Dither.NONE)
        if max(ImageStat.Stat(ImageChops.difference(im, few.convert('RGB'))).mean)<.5: return few
    return im.quantize(256, dither=Image.Dither.NONE)

def shrink(fn):
    "Save each PNG in the outputs of `fn` with few colours where that is smaller, and tables as HTML alone, which is what every page shows; bytes gained"
    from PIL import Image
    old = fn.read_text(encoding='utf-8'); nb = json.loads(old)
    for data in [o['data'] for c in nb['cells'] for o in c.get('outputs', []) if 'data' in o]:
        if 'text/html' in data: data.pop('text/plain', None)
        if 'image/png' not in data: continue
        png = ''.join(data['image/png']); im, f = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
        if im.mode=='P': continue
        fewest(im.convert('RGB')).save(f, 'PNG', optimize=True)
        small = base64.b64encode(f.getvalue()).decode() + '\n'*png.endswith('\n')
        if len(small)<len(png): data['image/png'] = small
    text = json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n'      # as nbdev_clean writes it
    if text!=old: fn.write_text(text, encoding='utf-8')
    return len(old)-len(text)

def record(names):
    "Shrink the figures of the notebooks `names` and note their code"
    known = json.loads(noted.read_text()) if noted.exists() else {}
    for n in names:
        fn = notebooks()[n]
        gained = shrink(fn)
        known[n] = code_hash(fn)
        print(f'{n}: {fn.stat().st_size//1000} kB' + f', {gained//1000} kB less'*(gained>0))
    noted.write_text(json.dumps({k: known[k] for k in sorted(known) if k in notebooks()}, indent=1) + '\n')

if __name__=='__main__':
    args = sys.argv[1:]
    if args[:1]==['--check']: sys.exit('\n'.join(stale()) or None)
    only_record, names = args[:1]==['--record'], [Path(o).stem for o in args if o!='--record']
    if bad := [n for n in names if n not in notebooks()] or ['(none given)']*(not names): sys.exit(f'{bad[0]}: no such notebook in nbs/')
    for n in [] if only_record else names:
        subprocess.run([sys.executable, '-m', 'pytest', '-q', '-n0', f'tests/test_notebooks.py::test_runs[{n}.ipynb]'], cwd=root, env=dict(os.environ, SAVE='1'), check=True)
        subprocess.run(['nbdev_clean', '--fname', str(notebooks()[n])], cwd=root, check=True)
    record(names)
