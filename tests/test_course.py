"The notebooks as a course: every page can be reached, its outputs belong to its code, its figures have words."
import ast
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
import outputs

pages = {name: outputs.cells(path) for name, path in outputs.notebooks().items()}
code = {name: [''.join(c['source']) for c in cells if c['cell_type']=='code'] for name, cells in pages.items()}

def written():
    "Module -> the notebook that writes it"
    found = {}
    for name, sources in code.items():
        for match in filter(None, (re.match(r'#\| default_exp ([\w.]+)', s) for s in sources)): found[match[1]] = name
    return found

writes = written()

def every_cell():
    "Each cell with the name of its notebook and its source"
    for name, cells in pages.items():
        for cell in cells: yield name, cell, ''.join(cell['source'])

def test_one_notebook_one_module():
    "Every module comes from the notebook that its header names, and no notebook writes two"
    paths = [p.relative_to(root/'pgflkd') for p in (root/'pgflkd').rglob('*.py') if not p.stem.startswith('_')]
    modules = {'.'.join(p.with_suffix('').parts) for p in paths}
    assert set(writes)==modules
    assert len(set(writes.values()))==len(writes)

def test_imports_need_no_folder():
    "The site's build runs the cells with imports of a page that writes a module, from another folder"
    wrong = [(name, module) for name in writes.values() for module in imported(code[name]) if not find_spec(module)]
    assert not wrong, wrong
    assert list(imported(['import json', 'from report import steps', 'x = 1']))==['json', 'report']

def imported(sources):
    "The packages that the cells `sources` import at their top"
    for node in (node for s in sources if re.search(r'^(from|import) ', s, re.M) for node in ast.parse(s).body):
        if isinstance(node, ast.Import): yield from (o.name.split('.')[0] for o in node.names)
        if isinstance(node, ast.ImportFrom): yield node.module.split('.')[0]

def test_folders():
    "The folder says how to read a page"
    assert {name.split('/')[0] for name in pages}=={'index', 'course', 'guides', 'world', 'engine', 'reference'}
    assert not [n for n in writes.values() if n.startswith('guides/')], 'a guide exports nothing'

def test_sizes():
    "300 kB a notebook, 5 MB of outputs in all"
    heavy = {n: p.stat().st_size for n, p in outputs.notebooks().items() if p.stat().st_size>300_000}
    total = sum(len(json.dumps(cell.get('outputs', []))) for _, cell, _ in every_cell())
    assert not heavy and total<=5_000_000, (heavy, total)

def more_than_promised(pages):
    "Names of the pages whose first cell holds more than a title and a promise: nbdev drops the rest of that cell"
    alone = re.compile(r'# [^\n]+\n+> [^\n]+')
    return [name for name, cells in pages.items() if not alone.fullmatch(''.join(cells[0]['source']).strip())]

def test_first_cell():
    "Nothing is lost below a promise"
    lost = dict(source='# Title\n\n> Promise.\n\nA sentence that no reader would see.')
    assert more_than_promised({'planted': [lost]})==['planted']
    assert not (wrong := more_than_promised(pages)), f'move the rest to a cell of its own: {wrong}'

def listed(contents):
    "Names of the notebooks that the sidebar `contents` lists"
    for entry in contents:
        if isinstance(entry, str): yield entry.removesuffix('.ipynb')
        else: yield from listed(entry['contents'])

def test_sidebar():
    "Every notebook stands in the sidebar once, and nothing else does"
    y = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    names = list(listed(y['website']['sidebar']['contents']))
    assert sorted(names)==sorted(pages), f'missing: {set(pages)-set(names)}; too many: {set(names)-set(pages)}'

def test_fresh():
    "No notebook's code is newer than its outputs"
    assert not (wrong := outputs.stale()), '\n'.join(wrong)

def test_directives():
    "Each `#| key: value` is YAML, as Quarto reads it (a colon inside needs quotes)"
    for name, _, source in every_cell():
        for line in [o for o in source.splitlines() if re.match(r'#\|\s*[\w-]+:', o)]:
            try: value = yaml.safe_load(line[2:].strip())
            except yaml.YAMLError: value = None
            simple = isinstance(value, dict) and not any(isinstance(o, dict) for o in value.values())
            assert simple, f'{name}: put quotes around the value of {line[:90]!r}'

def test_links():
    "No name in backticks inside the text of a link (nbdev makes it a link of its own), and no link to a page that left"
    wrong = []
    for name, cell, source in every_cell():
        if cell['cell_type']!='markdown': continue
        wrong += [f'{name}: {m}' for m in re.findall(r'\[`[^`\]]+`\]\([^)]*\)', source)]
        wrong += [f'{name}: {m}' for m in re.findall(r'\(#gone[^)]*\)', source)]
    assert not wrong, '\n'.join(wrong)

def test_figures():
    "Every picture has words for those who do not see it"
    wrong = []
    for name, cell, source in every_cell():
        drawn = any(kind.startswith('image/') for o in cell.get('outputs', []) for kind in o.get('data', {}))
        if drawn and '#| fig-alt:' not in source: wrong.append(f'{name}: no fig-alt: {source[:70]!r}')
    assert not wrong, '\n'.join(wrong)

def shown(cell):
    "The text in the outputs of `cell`"
    for o in cell.get('outputs', []):
        yield ''.join(o.get('text', ''))
        yield from (''.join(v) for kind, v in o.get('data', {}).items() if kind.startswith('text/'))

def test_nothing_private():
    "Nothing private to a machine or a moment is saved: no paths, no progress bars, no warnings"
    wrong = []
    for name, cell, _ in every_cell():
        for text in shown(cell):
            wrong += [f'{name}: {m!r}' for m in re.findall(r'/(?:root|home|work|Users|tmp)/\S+|\d+%\||<progress', text)]
        for o in cell.get('outputs', []):
            if o['output_type']=='error' or o.get('name')=='stderr': wrong.append(f'{name}: {o.get("name")}')
    assert not wrong, '\n'.join(wrong)

def test_page_of_names():
    "The page of all names has all names"
    from pgflkd._modidx import d
    page = json.dumps(pages['reference/names'])
    symbols = {s.removeprefix(f'{module}.') for module, names in d['syms'].items() for s in names}
    symbols = {s for s in symbols if '.' not in s and not s.startswith('_')}
    missing = [n for n in symbols if n not in page]
    assert len(symbols)>150 and not missing, f'run python tools/outputs.py reference/names; missing: {missing[:8]}'

def test_course_code_is_shown():
    "The course shows the code that it exports"
    hidden = [f'{name}: {s[:60]!r}' for name, sources in code.items() if name.startswith('course/') for s in sources
              if re.match(r'#\|\s*export\s*\n(?!import|from)', s)]
    assert not hidden, '\n'.join(hidden)

def test_workflows():
    "The workflows are YAML, and what they call exists"
    for f in (root/'.github/workflows').glob('*.yml'):
        steps = [s for job in yaml.safe_load(f.read_text())['jobs'].values() for s in job['steps']]
        for step in steps:
            called = re.findall(r'(?:^|\s)((?:\.ci|tools)/\S+)', step.get('run', ''))
            assert all((root/o).exists() for o in called), f'{f.name}: {called}'
