"""Draw the pages of the site without Quarto: nbdev processes each notebook, pandoc renders it into `_check/`.

    python tools/pages.py
"""
import json
import posixpath
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import build_site  # noqa: F401  the mends of nbdev
import pypandoc
import yaml
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.serve import proc_nbs

cfg = get_config()
PROC, OUT = cfg.config_path/'_proc', cfg.config_path/'_check'
SITE = f'{cfg.doc_host}{cfg.doc_baseurl}'.rstrip('/')
SOURCES = sorted(p.relative_to(cfg.nbs_path).as_posix() for p in nbglob(as_path=True))
FORMAT = 'ipynb+startnum+fenced_divs+link_attributes+bracketed_spans'

class Page(HTMLParser):
    "What a page has: ids, links, images"
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images = set(), [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if 'id' in found: self.ids.add(found['id'])
        if tag=='a' and found.get('href'): self.links.append(found['href'])
        if tag=='img' and found.get('src'): self.images.append(found['src'])

def markdown_of(outputs):
    "The Markdown among `outputs`"
    return [''.join(o['data']['text/markdown']) for o in outputs if 'text/markdown' in o.get('data', {})]

def prose(text): return dict(cell_type='markdown', source=text, metadata={})

def code_as_shown(cell, source):
    "A code cell without its directives, folded or hidden as they say"
    hidden = re.search(r'^#\|\s*echo:\s*false', source, re.M)
    fold = re.search(r'^#\|\s*code-summary:\s*"(.*)"', source, re.M)
    classes = re.search(r'^#\|\s*classes:\s*(.*)', source, re.M)
    shown = (f'#FOLD: {fold[1]}\n' if fold else '') + re.sub(r'^#\|.*\n?', '', source, flags=re.M)
    outputs = [o for o in cell['outputs'] if 'text/markdown' not in o.get('data', {})]
    for o in outputs:
        if 'data' in o: o.setdefault('metadata', {})
        if o['output_type']=='execute_result': o['execution_count'] = 1
    metadata = dict(classes=classes[1]) if classes else {}
    return dict(cell, source='' if hidden else shown, execution_count=None, outputs=outputs, metadata=metadata)

def as_quarto(cells):
    "The cells as Quarto shows them: directives obeyed and removed"
    for cell in cells:
        if cell['cell_type']=='raw': continue
        if cell['cell_type']=='markdown':
            yield dict(cell, metadata={})
            continue
        source = ''.join(cell['source'])
        said = markdown_of(cell['outputs'])
        if re.search(r'^#\|\s*output:\s*asis', source, re.M): yield prose('\n\n'.join(said).lstrip('-\n '))
        else:
            yield code_as_shown(cell, source)
            yield from map(prose, said)

LINE = r'<span[^>]*><a[^>]*></a><span class="co">#FOLD: ([^<]*)</span></span>\n?'
FOLD = re.compile(r'(<div class="sourceCode"[^>]*>(?:(?!</div>).)*?)' + LINE + r'((?:(?!</div>).)*</div>)', re.S)

def folded(text):
    "The page `text` with the code that a `code-fold` hides in a <details>"
    return FOLD.sub(r'<details><summary>\2</summary>\1\3</details>', text)

def render(name, nb, front, dest):
    "Let pandoc write the notebook `nb` to `dest`; what it complains of"
    styles = posixpath.relpath('styles.css', posixpath.dirname(name) or '.')
    command = [pypandoc.get_pandoc_path(), '-f', FORMAT, '-t', 'html', '-s', '--mathml', '--fail-if-warnings',
               '-c', styles, f'--resource-path={(PROC/name).parent}', '-M', f"title={front.get('title', name)}",
               '-M', f"subtitle={front.get('description', '')}",
               f'--extract-media={dest.stem}_files', '-o', dest.name]
    r = subprocess.run(command, input=json.dumps(nb), text=True, cwd=dest.parent, capture_output=True)
    if r.returncode==0: dest.write_text(folded(dest.read_text(encoding='utf-8')), encoding='utf-8')
    return r.stderr if r.returncode else ''

def make_page(name):
    "The page of the processed notebook `name`: address, front matter, HTML, saved outputs, error"
    nb = json.loads((PROC/name).read_text(encoding='utf-8'))
    heads = [yaml.safe_load(''.join(c['source']).strip('-\n ')) for c in nb['cells'] if c['cell_type']=='raw']
    front = heads[0] if heads else {}
    url = posixpath.join(posixpath.dirname(name), front.get('output-file', Path(name).stem+'.html'))
    dest = OUT/url
    dest.parent.mkdir(parents=True, exist_ok=True)
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    nb['cells'] = list(as_quarto(nb['cells']))
    error = render(name, nb, front, dest)
    text = '' if error else dest.read_text(encoding='utf-8')
    return dict(url=url, front=front, html=text, outputs=outputs, error=error, page=Page(text) if text else None)

def make_pages():
    "Process and render every notebook: {notebook: its page}"
    proc_nbs(force=True, n_workers=0)      # in this process; also proves that `show_doc` works for every exported name
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    shutil.copy(cfg.nbs_path/'styles.css', OUT)
    return {name: make_page(name) for name in SOURCES}

if __name__=='__main__':
    pages = make_pages()
    print(f'{len(pages)} pages in {OUT.name}/')
