"""Build the site into `_docs/`, as `nbdev_docs` does (needs Quarto), with one mend: nbdev makes links of names in backticks even in the comments of a signature,
where no link can be and its Markdown is shown instead. Importing this module is the mend; `tests/test_docs.py` does so, too."""
from nbdev.doclinks import NbdevLookup

if not hasattr(NbdevLookup, 'link_any_line'):
    NbdevLookup.link_any_line = NbdevLookup.link_line
    NbdevLookup.link_line = lambda self, l: l if l.startswith(('    ', ')->', '):')) else self.link_any_line(l)   # a line of a signature is code

if __name__=='__main__':
    from pathlib import Path
    from nbdev.quarto import nbdev_docs
    (Path(__file__).parent.parent/'README.md').touch()   # newer than index.ipynb, so that Quarto does not write it: tools/readme.py does
    nbdev_docs.__wrapped__(n_workers=0)   # in this process: a spawned one would not know the mend
