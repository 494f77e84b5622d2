"The notebooks as a course: their order, their size, whether every page can be reached, whether the outputs belong to the code."
import ast, importlib.util, json, re
from pathlib import Path
import yaml
from IPython.core.inputtransformer2 import TransformerManager

root = Path(__file__).resolve().parent.parent
nbs  = {p.stem: json.loads(p.read_text(encoding='utf-8'))['cells'] for p in sorted((root/'nbs').glob('*.ipynb'))}
code = {k: [''.join(c['source']) for c in cells if c['cell_type']=='code'] for k,cells in nbs.items()}
spec = importlib.util.spec_from_file_location('outputs', root/'tools/outputs.py')
outputs = importlib.util.module_from_spec(spec); spec.loader.exec_module(outputs)

def order(name): return re.match(r'(\d*)([a-z]?)_?', name).groups()    # 15, 15b, 20: as they stand in the folder
writes = {m[1]: k for k,cells in code.items() for c in cells if (m := re.match(r'#\| default_exp (\w+)', c))}

def imports(src):
    "Modules of ours that `src` imports, wherever the line stands"
    tree = ast.parse(TransformerManager().transform_cell(src))   # %magics become calls
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('pgflkd.'): yield n.module.split('.')[1]
        elif isinstance(n, ast.ImportFrom) and n.module=='pgflkd': yield from (a.name for a in n.names if a.name in writes)
        elif isinstance(n, ast.Import): yield from (a.name.split('.')[1] for a in n.names if a.name.startswith('pgflkd.'))

def exported(src): return bool(re.match(r'#\| ?export', src))

# What a chapter shows with the help of a later one. It says so where it does; a new pair is a decision, not an accident.
BORROWS = {'10_pose': {'player'}, '14b_rerank': {'interpret'}, '15_interpret': {'baseline','losses'}, '15b_influence': {'baseline','losses'}, '15d_stress': {'baseline','losses'}, '33b_texture': {'learner'}}
FRONT_DOOR = {'52_datasets': {'crops','occlude'}}                      # names that users look for there, made in 52a and 52b

def test_order():
    "What a notebook exports rests on lower chapters only; what it shows may borrow from later ones where that is written down"
    wrong = []
    for k,cells in code.items():
        if not re.match('[1-5]', k): continue                          # 00, 60-69 and index export nothing and look back on everything
        for src in cells:
            for m in imports(src):
                if order(writes[m])<=order(k) or m in FRONT_DOOR.get(k, ()) or m in BORROWS.get(k, ()) and not exported(src): continue
                at_top = any(l.startswith(('from','import')) and f'pgflkd.{m}' in l for l in src.splitlines())
                if exported(src) and not at_top: continue              # inside a function: only when it is called
                wrong.append(f'{k} imports {m}, which chapter {writes[m]} writes')
    assert len(writes)>30 and not wrong, '\n'.join(wrong)

def test_numbers():
    "Notebooks that export nothing are 00, 60-69 and the index"
    silent = {k for k in code if k not in writes.values()}
    assert not [k for k in silent if not re.match(r'00_|6\d_|index', k)] and not [k for k in writes.values() if re.match(r'00_|6\d_', k)]

def test_pages_have_names():
    "No two notebooks become one page: nbdev leaves the number out"
    pages = [k.split('_', 1)[-1] for k in nbs]
    assert len(set(pages))==len(pages), f'these names are taken twice: {[k for k in nbs if pages.count(k.split("_", 1)[-1])>1]}'

def test_sizes():
    "300 kB a notebook, 5 MB of outputs in all"
    heavy = {p.stem: p.stat().st_size for p in (root/'nbs').glob('*.ipynb')}
    total = sum(len(json.dumps(c.get('outputs', []))) for cells in nbs.values() for c in cells)
    assert not [k for k,v in heavy.items() if v>300_000] and total<=5_000_000, f'{total} bytes of outputs; the five largest notebooks: {sorted(heavy.items(), key=lambda o: -o[1])[:5]}'

def test_sidebar():
    "Every notebook stands in the sidebar once, and nothing else does"
    y = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    listed = [o for s in y['website']['sidebar']['contents'] for o in ([s] if isinstance(s, str) else s['contents'])]
    assert sorted(listed)==sorted(f'{k}.ipynb' for k in nbs), f'not in the sidebar: {sorted(set(f"{k}.ipynb" for k in nbs)-set(listed))}; in it without a notebook: {sorted(set(listed)-set(f"{k}.ipynb" for k in nbs))}; twice: {sorted({o for o in listed if listed.count(o)>1})}'

def test_on_the_map():
    "The index page links every chapter, so that the README does"
    text = ''.join(''.join(c['source']) for c in nbs['index'])
    assert not (missing := [k for k in nbs if k!='index' and f'/{k.split("_",1)[1]}.html' not in text]), f'not on the map of nbs/index.ipynb: {missing}'

def test_fresh():
    "No notebook's code is newer than its outputs"
    assert not (wrong := outputs.stale()), '\n'.join(wrong)

def test_directives():
    "Each `#| key: value` is YAML, as Quarto reads it (a colon inside needs quotes)"
    for k,cells in code.items():
        for l in [l for src in cells for l in src.splitlines() if re.match(r'#\|\s*[\w-]+:', l)]:
            try: v = yaml.safe_load(l[2:].strip())
            except yaml.YAMLError: v = None
            assert isinstance(v, dict) and not any(isinstance(o, dict) for o in v.values()), f'{k}: put quotes around the value of {l[:90]!r}'

def test_links():
    "No name in backticks inside the text of a link: nbdev makes it a link of its own, and neither works"
    wrong = [f'{k}: {m[0]}' for k,cells in nbs.items() for c in cells if c['cell_type']=='markdown' for m in re.finditer(r'\[`[^`\]]+`\]\([^)]*\)', ''.join(c['source']))]
    assert not wrong, '\n'.join(wrong)

def test_figures():
    "Every picture has words for those who do not see it"
    wrong = []
    for k,cells in nbs.items():
        for c in cells:
            src = ''.join(c['source'])
            if not any(m.startswith('image/') for o in c.get('outputs', []) for m in o.get('data', {})): continue
            if '#| fig-alt:' not in src: wrong.append(f'{k}: no fig-alt: {src[:70]!r}')
    assert not wrong, '\n'.join(wrong)

def test_hidden_runs():
    "Nothing private to a machine or a moment is saved: no paths, no progress bars"
    wrong = []
    for k,cells in nbs.items():
        for c in cells:
            for o in c.get('outputs', []):
                text = ''.join(o.get('text', '')) + ''.join(''.join(v) for m,v in o.get('data', {}).items() if m in ('text/plain','text/markdown','text/html'))
                if m := re.search(r'/(?:root|home|work|Users|tmp)/\S+|\d+%\||<progress', text): wrong.append(f'{k}: {m[0]!r}')
    assert not wrong, '\n'.join(wrong)

def test_api_page():
    "The page of all names has all names"
    from pgflkd._modidx import d
    page = json.dumps(nbs['68_api'])
    names = [s.split('.')[-1] for m in d['syms'].values() for s in m if s.count('.')==2 and not s.split('.')[-1].startswith('_')]
    missing = [n for n in names if f'`{n}`' not in page and f'[{n}]' not in page]
    assert len(names)>150 and not missing, f'run python tools/outputs.py 68_api; missing: {missing[:8]}'

def test_workflows():
    "The workflows are YAML, and what they call exists"
    for f in (root/'.github/workflows').glob('*.yml'):
        y = yaml.safe_load(f.read_text())
        for step in [s for j in y['jobs'].values() for s in j['steps']]:
            for called in re.findall(r'(?:^|\s)(\.ci/\S+)', step.get('run', '')): assert (root/called).exists(), f'{f.name}: {called}'
