"""Build the site into `_docs/`, as `nbdev-docs` does (needs Quarto), with five mends. Importing this module mends.

1. nbdev 3 reads title and addresses from `pyproject.toml`; ours stand in `settings.ini`, the one source of every value.
2. nbdev makes links of names in backticks even in the comments of a signature, where no link can be.
3. It links private names, which have no anchor.
4. It shows the source of an `exports` cell below its signature and docstring, which stand in the source once more. Ours
   keeps heading and link above a source in sight, and signature and docstring above one that the page folds.
5. It runs the imports of a page, and what they warn of would stand on it.
"""
import re
import warnings
from configparser import ConfigParser
from itertools import groupby
from pathlib import Path

from nbdev import processors
from nbdev.config import ConfigToml
from nbdev.doclinks import NbdevLookup

from pgflkd._modidx import d as index

ROOT = Path(__file__).resolve().parent.parent
KEYS = ('lib_name', 'title', 'description', 'git_url', 'doc_host', 'doc_baseurl', 'user', 'repo')

def settings():
    "The values of settings.ini"
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']

def with_settings(init):
    "`ConfigToml.__init__` that takes what pyproject.toml does not say from settings.ini"
    def __init__(self, *args):
        init(self, *args)
        values = settings()
        for key in KEYS: self[key] = values[key]
    return __init__

def outside_signatures(link_line):
    "`NbdevLookup.link_line` that leaves the lines of a signature alone"
    def plain(self, line): return line if line.startswith(('    ', ')->', '):')) else link_line(self, line)
    return plain

class DocsInOrder(processors.add_show_docs):
    "Docs in the order of the names of their cell; each knows if the page shows its source: 'open', 'folded' or not"
    def begin(self):
        super().begin()
        cells, source = [], ''
        for doc, run in groupby(self.nb.cells, lambda cell: getattr(cell, 'has_sd', False)):
            run = list(run)
            if doc: run = run[::-1]             # nbdev puts the last name first
            for cell in run:
                if doc: cell.source_is = source
            last = run[-1]
            folded = re.search(r'^#\|\s*code-fold:', last.source, re.M)
            source = ('folded' if folded else 'open') if 'exports' in last.directives_ else ''
            cells += run
        self.nb.cells[:] = cells
        for i, cell in enumerate(cells): cell.idx_ = i

def shorten(cell):
    "Leave of the `show_doc` cell `cell` what its source does not say in sight; of classes no bare arguments"
    for output in cell.outputs:
        heading, signature, text = ''.join(output.data['text/markdown']).split('\n```', 2)
        bare_class = re.match(r'python\ndef [A-Z]', signature) and '# ' not in signature
        if cell.source_is=='open': text = ''
        elif not bare_class: text = f'\n```{signature}\n```{text}'
        output.data['text/markdown'] = heading + text

class SourceOnce(processors.Processor):
    "Put the docs of each `exports` cell above it, and say nothing twice"
    def begin(self):
        above, found = [], []
        for cell in reversed(self.nb.cells):
            if getattr(cell, 'has_sd', False):
                shorten(cell)
                (above if cell.source_is else found).append(cell)
            else:
                found += [cell, *above]
                above = []
        self.nb.cells[:] = found[::-1]

def as_it_is(cell): "An `exports` cell is folded as the page says, and not otherwise"

if not hasattr(ConfigToml, 'is_mended'):
    ConfigToml.is_mended = True
    index['settings'].update({key: settings()[key] for key in ('git_url', 'doc_host', 'doc_baseurl')})
    for module, names in index['syms'].items():
        index['syms'][module] = {k: v for k, v in names.items() if '._' not in k}
    ConfigToml.__init__ = with_settings(ConfigToml.__init__)
    processors.add_fold = as_it_is
    processors.add_show_docs = DocsInOrder
    processors.mv_exports = SourceOnce
    warnings.filterwarnings('ignore', category=FutureWarning, module='torch.jit')
    NbdevLookup.link_line = outside_signatures(NbdevLookup.link_line)

if __name__=='__main__':
    from nbdev.quarto import nbdev_docs
    (ROOT/'README.md').touch()             # newer than index.ipynb, so that Quarto leaves it to tools/readme.py
    nbdev_docs.__wrapped__(n_workers=0)    # in this process: a spawned one would not know the mends
