"""Build the site into `_docs/`, as `nbdev-docs` does (needs Quarto), with four mends. Importing this module mends.

1. nbdev 3 reads title and addresses from `pyproject.toml`; ours stand in `settings.ini`, the one source of every value.
2. nbdev makes links of names in backticks even in the comments of a signature, where no link can be.
3. It links private names, which have no anchor.
4. It unfolds every `exports` cell, also one that says itself how it is folded, which would then say it twice.
"""
import re
from functools import wraps
from configparser import ConfigParser
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

def unless_folded(add_fold):
    "`add_fold` that leaves alone the cells which have a `code-fold` of their own"
    @wraps(add_fold)
    def once(cell):
        if not re.search(r'^#\|\s*code-fold:', cell.source, re.M): add_fold(cell)
    return once

if not hasattr(ConfigToml, 'is_mended'):
    ConfigToml.is_mended = True
    index['settings'].update({key: settings()[key] for key in ('git_url', 'doc_host', 'doc_baseurl')})
    for module, names in index['syms'].items():
        index['syms'][module] = {k: v for k, v in names.items() if '._' not in k}
    ConfigToml.__init__ = with_settings(ConfigToml.__init__)
    processors.add_fold = unless_folded(processors.add_fold)
    NbdevLookup.link_line = outside_signatures(NbdevLookup.link_line)

if __name__=='__main__':
    from nbdev.quarto import nbdev_docs
    (ROOT/'README.md').touch()             # newer than index.ipynb, so that Quarto leaves it to tools/readme.py
    nbdev_docs.__wrapped__(n_workers=0)    # in this process: a spawned one would not know the mends
