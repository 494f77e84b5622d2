"How the pages read: equations beside their code, examples, the way onward, exported code in sight, one number a place."
import json
import re
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
import outputs

def folder(name):
    "Name -> cells of the notebooks in the folder `name`"
    return {k: outputs.cells(path) for k, path in outputs.notebooks().items() if k.startswith(f'{name}/')}

PAGES, GUIDES = folder('course'), folder('guides')
NAMES = sorted(PAGES)

# Results of recipes that were given up: for the laboratory diary alone
GIVEN_UP = 'small valid recipe imagenet_raw imagenet_valid rounding'.split()
SUPERSEDED = [f'ablation/{o}' for o in GIVEN_UP] + [rf"recorded\('{o}'" for o in GIVEN_UP] + ['first_run']

def source(cell): return ''.join(cell['source'])

def prose(cells):
    "The words of a page: its Markdown without formulas, code and HTML"
    text = '\n'.join(source(c) for c in cells if c['cell_type']=='markdown')
    no_words = (r'\$\$.*?\$\$', r'`[^`]*`', r'</?[a-zA-Z][^>]*>', r'\]\([^)]*\)', r'\{[^}]*\}')
    for what in no_words: text = re.sub(what, ' ', text, flags=re.S)
    return text

def words(cells): return len(re.findall(r"[A-Za-z][\w'-]*", prose(cells)))

def shown(cell):
    "Whether a reader sees the code of `cell`"
    return cell['cell_type']=='code' and not re.search(r'^#\| *(hide|export$|echo: *false)', source(cell), re.M)

def anchors(pages):
    "(equation, page, lines from the anchor to the end of its text, the cell that follows) of each anchor"
    for name, cells in pages.items():
        for cell, after in zip(cells, cells[1:]+[None]):
            if cell['cell_type']!='markdown': continue
            text = source(cell)
            for match in re.finditer(r'\{#eq-(\d+)\}', text):
                yield int(match[1]), name, text[match.end():].count('\n'), after

def wrong_anchors(pages):
    "What is wrong with the anchors of the ten equations"
    found = list(anchors(pages))
    numbers = sorted(number for number, *_ in found)
    if numbers!=list(range(1, 11)): yield f'each of 1 to 10 once, not {numbers}'
    for number, name, lines, after in found:
        if after is None or not shown(after): yield f'{name}: no code in sight below Eq. {number}'
        elif lines>40: yield f'{name}: {lines} lines between Eq. {number} and its code'

def test_equations():
    "Ten equations, ten anchors, each within a screen of its code"
    assert not (wrong := list(wrong_anchors(PAGES))), wrong

def test_equations_can_fail():
    eq = dict(cell_type='markdown', source='$$x$$ {#eq-1}')
    hidden = dict(cell_type='code', source='#| hide\nx')
    far, code = dict(eq, source=eq['source'] + '\n'*50), dict(hidden, source='x')
    wrong = list(wrong_anchors({'a': [eq, hidden], 'b': [far, code]}))
    assert [o.split(':')[0] for o in wrong]==['each of 1 to 10 once, not [1, 1]', 'a', 'b'], wrong

@pytest.mark.parametrize('name', NAMES)
def test_length(name):
    assert words(PAGES[name])<=2500

def bare(cells):
    "How many words stand on a page for each example, and how many there may be"
    examples = len(re.findall(r'\bfor example\b|\bfor instance\b|\be\.g\.', prose(cells), re.I))
    return words(cells), 500*examples + 500

@pytest.mark.parametrize('name', NAMES)
def test_examples(name):
    "At least one example in 500 words"
    have, may = bare(PAGES[name])
    assert have<may, f'{have} words and {may//500-1} examples'

def onward(cells):
    "Refuse a page that does not end with a way onward and its reason"
    text = '\n'.join(source(c) for c in cells if c['cell_type']=='markdown')
    after = re.findall(r'\*\*Next:?\*\*:? (.*)', text)
    assert after and re.search(r'\]\([^)]+\)', after[-1]) and len(after[-1].split())>5, after

@pytest.mark.parametrize('name', NAMES)
def test_next(name):
    "The page ends with a way onward and its reason"
    if name!='course/19_your_turn': onward(PAGES[name])

def code_lines(cells, mark):
    "Exported lines of a page under `mark`, imports and blanks not counted"
    found = [source(c) for c in cells if c['cell_type']=='code' and re.match(rf'#\| {mark}\s*\n', source(c))]
    lines = '\n'.join(found).splitlines()
    return sum(bool(o.strip()) and not re.match(r'#\||import |from ', o) for o in lines)

def test_code_is_in_sight():
    "At least nine tenths of the code that course pages export stand on them"
    seen, unseen = (sum(code_lines(cells, mark) for cells in PAGES.values()) for mark in ('exports', 'export'))
    assert seen>500 and seen/(seen+unseen)>=.9, (seen, unseen)

@pytest.mark.parametrize('name', NAMES)
def test_no_superseded_results(name):
    "One number, one place: no page reads what was given up"
    code = '\n'.join(source(c) for c in PAGES[name] if c['cell_type']=='code')
    wrong = [o for o in SUPERSEDED if re.search(rf'{o}(?![\w])', code)]
    assert not wrong, wrong

@pytest.mark.parametrize('name', NAMES)
def test_promise(name):
    "Title, promise, and what the reader can do afterwards"
    first = '\n'.join(source(c) for c in PAGES[name][:4])
    assert re.match(r'# .+\n+> .+', first)
    assert name=='course/19_your_turn' or re.search(r'After this page you can\n+(- .+\n?){3}', first)

@pytest.mark.parametrize('name', sorted(GUIDES))
def test_guide(name):
    "A guide is one task: a title, a promise, something to copy, at most 700 words with examples, and a way onward"
    cells = GUIDES[name]
    assert re.match(r'# .+\n+> .+', source(cells[0]))
    have, may = bare(cells)
    assert have<=700 and have<may, have
    onward(cells)
    assert any(shown(c) or '```' in source(c) for c in cells)

def test_guides_are_found():
    "Each command has a guide that calls or quotes it, besides the page of all commands"
    text = json.dumps([cells for name, cells in GUIDES.items() if name!='guides/commands'])
    commands = 'ablate doctor embed export pose search train transfer'.split()
    missing = [o for o in commands if f'pgflkd_{o}' not in text]
    assert len(GUIDES)>10 and not missing, missing

def quoted(cells):
    "(command, option) of each command line that a page quotes"
    text = '\n'.join(source(c) for c in cells).replace('\\\n', ' ')
    for line in re.findall(r'pgflkd_\w+ [^\n`]*', text):
        for part in re.findall(r'pgflkd_(\w+)((?:(?!pgflkd_).)*)', line.split(' # ')[0]):
            for option in re.findall(r'(?<!\S)--([\w-]+)', part[1]): yield part[0], option

def test_quoted_options_exist():
    "Every option that a guide, a course page or the front page gives to a command is one of that command"
    import inspect
    from importlib.metadata import entry_points
    known = {e.name.removeprefix('pgflkd_'): inspect.signature(e.load()).parameters
             for e in entry_points(group='console_scripts') if e.name.startswith('pgflkd_')}
    pages = GUIDES | PAGES | {'index': outputs.cells(root/'nbs/index.ipynb')}
    found = [(name, *o) for name, cells in pages.items() for o in quoted(cells)]
    wrong = [o for o in found if o[2]!='help' and o[2].replace('-', '_') not in known.get(o[1], ())]
    assert len(found)>50 and not wrong, wrong

def test_silent_has_all_boxes():
    "The page of open choices has every box that a page carries"
    page = json.dumps(outputs.cells(root/'nbs/reference/silent.ipynb'))
    box = re.compile(r'callout-note title=\\"What [^"]*leaves? open')
    texts = {name: path.read_text(encoding='utf-8') for name, path in outputs.notebooks().items()}
    missing = [n for n, text in texts.items() if box.search(text) and f'../{n}.ipynb' not in page]
    assert not missing, f'run python tools/outputs.py reference/silent; missing: {missing}'
