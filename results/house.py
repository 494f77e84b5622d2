"""How the house stands: the numbers of `house.csv`.

    python results/house.py            # print what can be read off the source (a second)
    python results/house.py --all      # measure everything, the slow rows too, and write results/house.csv (minutes)
"""
import ast
import inspect
import io
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tokenize
from importlib import metadata
from pathlib import Path

import pandas as pd
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT/'pgflkd'

# Which wing may rest on which: a module imports only from its own line and from lines above it
WINGS = [
    'errors files',
    'records pose keypoints metrics rerank slider',
    'augment readers.folders data',
    'world.capsules world.people world.wardrobe world.scenery world.camera world.plan synthetic',
    'baseline losses foreground semantics network where san texture',
    'callbacks checkpoint precision interpret attribution robustness diagnose',
    'deploy learner',
    'readers.poses occlude datasets estimate gallery protocols',
    'commands.train commands.ablate commands.transfer commands.doctor '
    'commands.pose commands.export commands.embed commands.search',
    'all',
]
WING = {module: i for i, line in enumerate(WINGS) for module in line.split()}

def modules():
    "Name with dots -> path of every module of the library"
    paths = [p for p in sorted(LIB.rglob('*.py')) if not p.stem.startswith('_')]
    return {'.'.join(p.relative_to(LIB).with_suffix('').parts): p for p in paths}

def imports(name, path, known):
    "Modules of the library that `path` imports, wherever the line stands, inside functions too"
    here, found = name.split('.')[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): found |= {a.name.removeprefix('pgflkd.') for a in node.names}
        if not isinstance(node, ast.ImportFrom): continue
        if node.level: base = here[:len(here)-node.level+1] + (node.module.split('.') if node.module else [])
        elif (node.module or '').split('.')[0]=='pgflkd': base = node.module.split('.')[1:]
        else: continue
        found |= {'.'.join(base), *('.'.join([*base, a.name]) for a in node.names)}
    return found & set(known) - {name}

def arrows():
    "Module -> the modules that it imports"
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}

def circles(graph):
    "Circles of imports, each as a list of modules"
    found, done = [], set()
    def walk(module, path):
        if module in path: return found.append([*path[path.index(module):], module])
        if module in done: return
        for other in sorted(graph[module]): walk(other, [*path, module])
        done.add(module)
    for module in graph: walk(module, [])
    return found

def floors(graph):
    "How many floors the house has: the longest way down, each module counted"
    height = {}
    def climb(module):
        if module not in height: height[module] = 1 + max((climb(o) for o in graph[module]), default=0)
        return height[module]
    return max(map(climb, graph))

def arrows_up(graph):
    "Imports of a module from a higher wing"
    return [f'{m} -> {o}' for m, others in graph.items() for o in others if WING.get(o, 99)>WING.get(m, -1)]

def expressions(node):
    "How many expressions stand below `node`"
    return sum(isinstance(o, ast.expr) for o in ast.walk(node))

def bodies(tree):
    "The statements of each function of `tree`, without its docstring: (name, statements)"
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
        first = node.body[0]
        has_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        yield node.name, node.body[1:] if has_doc else node.body

def density():
    "Expressions a line in the bodies of functions"
    lines = count = 0
    for path in modules().values():
        for _, body in bodies(ast.parse(path.read_text(encoding='utf-8'))):
            if not body: continue
            count += sum(map(expressions, body))
            lines += len({line for o in body for line in range(o.lineno, o.end_lineno+1)})
    return count/lines

def breaches(path):
    "What breaks the three numbers of the style in the file `path`: one statement a line, 120 columns, 150 expressions"
    source = path.read_text(encoding='utf-8')
    head = re.search(r'^__all__ = \[.*?\]', source, re.M|re.S)                # nbdev wraps it
    exempt = head[0].splitlines() if head else []
    for i, line in enumerate(source.splitlines(), 1):
        if len(line)>120 and line not in exempt: yield f'{path.name}:{i} has {len(line)} columns'
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string==';': yield f'{path.name}:{token.start[0]} has several statements'
    for name, body in bodies(ast.parse(source)):
        if (n := sum(map(expressions, body)))>150: yield f'{path.name}: {name} has {n} expressions'

def lines():
    "Lines of all exported modules"
    return sum(len(p.read_text(encoding='utf-8').splitlines()) for p in LIB.rglob('*.py') if p.name!='_modidx.py')

def tokens():
    "Names, signs and texts of all exported modules: how much is written, whatever stands on a line"
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    texts = [io.StringIO(p.read_text(encoding='utf-8')) for p in LIB.rglob('*.py') if p.name!='_modidx.py']
    return sum(o.type not in blank for text in texts for o in tokenize.generate_tokens(text.readline))

def public_names():
    "Module -> the names that it offers"
    found = {}
    for name, path in modules().items():
        match = re.search(r'^__all__ = (\[.*?\])', path.read_text(encoding='utf-8'), re.M|re.S)
        if name!='all' and match: found[name] = ast.literal_eval(match[1])
    return found

def words(text): return set(re.findall(r'\w+', text))

def sources():
    "Module, or path of another file -> the words of its code; `pgflkd.all`, the published surface, is one of them"
    found = {m: words(p.read_text(encoding='utf-8')) for m, p in modules().items()}
    patterns = ('settings.ini', 'tests/*.py', 'tools/*.py', 'results/**/*.py', 'examples/*.py')
    for path in [p for pattern in patterns for p in ROOT.glob(pattern)]:
        found[str(path)] = words(path.read_text(encoding='utf-8'))
    for path in (ROOT/'nbs').rglob('*.ipynb'):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        code = '\n'.join(''.join(c['source']) for c in cells if c['cell_type']=='code')
        written = re.search(r'#\| default_exp ([\w.]+)', code)
        found[f'{written[1]} in its notebook' if written else str(path)] = words(code)
    return found

def lonely_names():
    "Public names that no other module, notebook, test or script uses"
    found = sources()
    def used(module, name): return any(name in seen for other, seen in found.items() if other.split(' ')[0]!=module)
    return [f'{m}.{n}' for m, names in public_names().items() for n in names if not used(m, n)]

def switches():
    "Switches of the network's constructor beside body, classes and teachers"
    from pgflkd.network import PGFLKD
    others = ('self', 'body', 'n_classes', 'teachers')
    return [k for k in inspect.signature(PGFLKD.__init__).parameters if k not in others]

def quick_rows():
    "What can be read off the source: {row: value}"
    graph = arrows()
    every = sum(map(len, public_names().values()))
    broken = sum(len(list(breaches(p))) for p in modules().values())
    return {
        'exported lines': lines(),
        'tokens, without comments and blank space': tokens(),
        'lines over 120 columns, several statements, functions over 150 expressions': broken,
        'modules': len(graph),
        'floors': floors(graph),
        'circles': len(circles(graph)),
        'arrows up': len(arrows_up(graph)),
        'expressions a body line': round(density(), 2),
        'public names': every,
        'public names that nobody else uses': len(lonely_names()),
        "switches of the network's constructor beside teachers": len(switches()),
    }

def cpu_seconds(command, n=3):
    "Median CPU seconds of `command` in a fresh process"
    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime+after.ru_stime-before.ru_utime-before.ru_stime
    return round(statistics.median(once() for _ in range(n)), 2)

def two_networks():
    "The baseline and PGFL-KD with a ResNet-50, and their losses"
    from pgflkd.baseline import Baseline, reid_body
    from pgflkd.foreground import Foreground
    from pgflkd.losses import Consistent, MultiPart, ReID, Terms
    from pgflkd.network import PGFLKD
    from pgflkd.semantics import Semantics
    teachers = [Foreground(2048, 2), Semantics(2048, 2)]
    yield Baseline(reid_body(weights=None), 2), Terms(ReID())
    yield PGFLKD(reid_body(weights=None), 2, teachers), Terms(ReID(), Consistent(), MultiPart())

def step_ratio(n=5):
    "A training step of PGFL-KD against the baseline's: ResNet-50, 384x128, 8 pictures, medians of `n` in turns"
    import torch
    from pgflkd.pose import draw_hint
    torch.set_num_threads(1)
    torch.manual_seed(0)
    joints = torch.rand(8, 17, 3)*torch.tensor([128., 384, 1])
    x, hint, pid = torch.randn(8, 3, 384, 128), draw_hint(joints, (24, 8), (384, 128)), torch.arange(8)//4
    def step(net, loss):
        start = time.process_time()
        loss(net(x, hint), torch.stack([pid, pid], 1), pid).backward()
        return time.process_time()-start
    pairs = list(two_networks())
    times = [[step(*o) for o in pairs] for _ in range(n+1)][1:]
    base, ours = (statistics.median(o) for o in zip(*times))
    return round(ours/base, 3)

def search_seconds():
    "CPU seconds of one `pgflkd_search` in a gallery of 20,000, with process start: by the network, by its ONNX file"
    import numpy as np
    from fastai.vision.core import imagenet_stats
    from PIL import Image
    from torchvision.models import mobilenet_v2
    from pgflkd.baseline import Baseline, reid_body
    from pgflkd.deploy import export
    from pgflkd.gallery import Gallery
    folder = Path(tempfile.mkdtemp())
    net = Baseline(reid_body(mobilenet_v2, None, 8), 2).eval()
    features = np.random.default_rng(0).normal(size=(20_000, 1280)).astype(np.float32)
    Image.effect_noise((64, 128), 90).convert('RGB').save(folder/'query.jpg')
    command, found = Path(sys.executable).parent/'pgflkd_search', []
    for onnx in (False, True):
        card = dict(size=(128, 64), stats=imagenet_stats)
        gallery = Gallery.create(folder/f'{onnx}/gallery', export(net, folder/f'{onnx}/student.safetensors', **card))
        gallery.add(features/np.linalg.norm(features, axis=1, keepdims=True))
        if onnx: export(net, folder/'True/gallery/network.onnx', **card)
        found.append(cpu_seconds([str(command), str(folder/f'{onnx}/gallery'), str(folder/'query.jpg')]))
    return found

def packages():
    "What `pip install pgflkd` brings beside torch and what torch itself wants"
    def closure(name, found):
        for line in metadata.requires(name) or []:
            wanted = Requirement(line)
            if wanted.marker and not wanted.marker.evaluate({'extra': ''}): continue
            other = canonicalize_name(wanted.name)
            if other in found: continue
            found.add(other)
            closure(other, found)
        return found
    return len(closure('pgflkd', set()) - closure('torch', {'torch'}))

def slow_rows():
    "What has to be run: {row: value}"
    scripts = Path(sys.executable).parent
    network, onnx = search_seconds()
    helps = {o: cpu_seconds([str(scripts/o), '--help']) for o in ('pgflkd_search', 'pgflkd_embed', 'pgflkd_train')}
    return {
        "packages beside torch's own": packages(),
        **{f'{o} --help, CPU seconds': seconds for o, seconds in helps.items()},
        'pgflkd_search, gallery of 20,000, CPU seconds with process start': network,
        'the same with its network in the gallery, as pgflkd_embed leaves it': onnx,
        "PGFL-KD's step against the baseline's, ResNet-50 384x128": step_ratio(),
    }

BEFORE = {'exported lines': 9456, 'tokens, without comments and blank space': 123559, 'modules': 50, 'floors': 12,
          'circles': 1, 'arrows up': 3, 'expressions a body line': 15.4, 'public names': 493,
          'public names that nobody else uses': 163, "switches of the network's constructor beside teachers": 12}

GOAL = {'exported lines': 6800, 'lines over 120 columns, several statements, functions over 150 expressions': 0,
        'modules': 42, 'floors': 9, 'circles': 0, 'arrows up': 0, 'expressions a body line': 8.5,
        'public names that nobody else uses': 30, "switches of the network's constructor beside teachers": 3,
        'pgflkd_search --help, CPU seconds': .5, 'pgflkd_embed --help, CPU seconds': .5,
        'the same with its network in the gallery, as pgflkd_embed leaves it': 2,
        "PGFL-KD's step against the baseline's, ResNet-50 384x128": 1.05}

if __name__=='__main__':
    from pgflkd.records import run_facts
    rows = quick_rows() | (slow_rows() if '--all' in sys.argv else {})
    def line(what): return dict(what=what, before=BEFORE.get(what), goal=GOAL.get(what), now=rows[what])
    table = pd.DataFrame([line(what) | run_facts('cpu') for what in rows])
    if '--all' in sys.argv: table.to_csv(Path(__file__).with_suffix('.csv'), index=False)
    print(table[['what', 'before', 'goal', 'now']].to_string(index=False))
    for name in lonely_names(): print('nobody else uses', name)
    for arrow in arrows_up(arrows()): print('up:', arrow)
